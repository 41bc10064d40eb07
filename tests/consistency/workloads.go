package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"

	"mongomux/consistency/check"
)

const database = "consistency"

// keys are documents that are there before anybody begins. A few at a time are worked on, each for so many operations:
// histories of a key have to be short to be put in order.
type keys struct {
	name, field  string
	empty        any
	count, width int
	each         int64
	used         atomic.Int64
}

func (k *keys) any(random *rand.Rand) string {
	first := int(k.used.Add(1)/k.each) * k.width
	return k.at(min(first, k.count-k.width) + random.IntN(k.width))
}

// make makes all of them.
func (k *keys) make(ctx context.Context, client *mongo.Client) error {
	var all []any
	for i := range k.count {
		all = append(all, bson.M{"_id": k.at(i), k.field: k.empty})
	}
	_, err := client.Database(database).Collection(k.name).InsertMany(ctx, all)
	return err
}

// read adds what is left of each that was worked on, as reads that come last.
func (k *keys) read(ctx context.Context, client *mongo.Client, h *history) error {
	docs := client.Database(database).Collection(k.name, options.Collection().SetReadConcern(readconcern.Linearizable()))
	for i := range min(k.count, (int(k.used.Load()/k.each)+1)*k.width) {
		var d document
		key, call := k.at(i), h.now()
		if err := docs.FindOne(ctx, bson.M{"_id": key}).Decode(&d); err != nil {
			return err
		}
		h.add(check.Op{
			Client: check.Final, Kind: check.Read, Key: key, Seen: d.seen(), Call: call, Return: h.now(), Outcome: check.Done,
		})
	}
	return nil
}

func (k *keys) at(i int) string { return fmt.Sprintf("%s%d", k.name, i) }

// history is what all workers of a workload have done and seen.
type history struct {
	begin time.Time
	last  *atomic.Int64 // the last value written by anybody
	over  *atomic.Bool  // nothing more is begun
	// Others than the driver may send an operation twice.
	hiddenRetries bool

	mutex   sync.Mutex
	Ops     []check.Op
	Txns    []check.Txn       `json:",omitempty"`
	Strange []check.Violation `json:",omitempty"`
}

func (h *history) now() time.Duration { return time.Since(h.begin) }

func (h *history) add(op check.Op) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.Ops = append(h.Ops, op)
}

func (h *history) addTxn(txn check.Txn) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.Txns = append(h.Txns, txn)
}

// isStrange is what no order of operations explains: an answer to something else.
func (h *history) isStrange(key, format string, arguments ...any) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.Strange = append(h.Strange, check.Violation{Kind: "strange answer", Key: key, Text: fmt.Sprintf(format, arguments...)})
}

// worker does one thing after the other.
type worker struct {
	name   string
	client *mongo.Client
	random *rand.Rand
	keys   *keys
	*history
}

// document has a value, or a list.
type document struct {
	ID string `bson:"_id"`
	V  *int64
	L  []int64
}

func (d document) seen() []int64 {
	if d.V != nil {
		return []int64{*d.V}
	}
	return d.L
}

func (w *worker) in(concern *readconcern.ReadConcern) *mongo.Collection {
	return w.client.Database(database).Collection(w.keys.name, options.Collection().SetReadConcern(concern))
}

func (w *worker) pause() { time.Sleep(time.Duration(w.random.IntN(30)) * time.Millisecond) }

// registers: reads that are linearizable, writes, swaps, and compare-and-set of the value that this worker saw last.
func (w *worker) registers(ctx context.Context) {
	docs := w.in(readconcern.Linearizable())
	last := map[string]int64{}
	for !w.over.Load() {
		w.pause()
		key := w.keys.any(w.random)
		op := check.Op{Client: w.name, Key: key, Kind: []string{check.Read, check.Write, check.Swap, check.Cas}[w.random.IntN(4)]}
		if op.Kind != check.Read {
			op.Value, op.Old = w.last.Add(1), last[key]
		}
		id, set := bson.M{"_id": key}, bson.M{"$set": bson.M{"v": op.Value}}
		watching, attempts := watched(ctx)
		op.Call = w.now()
		var err error
		matched := int64(1)
		switch op.Kind {
		case check.Read:
			err = w.find(watching, docs, key, func(d document) { op.Seen = d.seen() })
		case check.Write:
			matched, err = update(watching, docs, id, set)
		case check.Cas:
			matched, err = update(watching, docs, bson.M{"_id": key, "v": op.Old}, set)
		case check.Swap:
			var before document
			err = docs.FindOneAndUpdate(watching, id, set).Decode(&before)
			if err == nil {
				op.Seen = before.seen()
				w.isAbout(key, before)
			}
		}
		op.Return = w.now()
		op.Outcome, op.Why = attempts.outcome(err)
		if op.Kind != check.Cas {
			op.Old = 0
		}
		if err == nil && matched == 0 {
			if op.Kind == check.Write {
				w.isStrange(key, "there is no such document: %s", op)
			}
			delete(last, key)
			op.Outcome, op.Why = w.noMatch(attempts), "no match"
		}
		if len(op.Seen) > 0 {
			last[key] = op.Seen[0]
		}
		if op.Value != 0 && op.Outcome == check.Done {
			last[key] = op.Value
		}
		w.add(op)
	}
}

// noMatch is what a compare-and-set has come to that did not match. It is no read: a primary that was deposed and does not
// know says so as well. Nor is it certain when it was sent twice: a server keeps no record of an update that changed nothing,
// and the first copy may still arrive.
func (w *worker) noMatch(attempts *attempts) check.Outcome {
	if attempts.begun > 1 || w.hiddenRetries {
		return check.Unknown
	}
	return check.Refused
}

func update(ctx context.Context, docs *mongo.Collection, filter, change bson.M) (int64, error) {
	result, err := docs.UpdateOne(ctx, filter, change)
	if err != nil {
		return 0, err
	}
	return result.MatchedCount, nil
}

func (w *worker) find(ctx context.Context, docs *mongo.Collection, key string, found func(document)) error {
	var d document
	err := docs.FindOne(ctx, bson.M{"_id": key}).Decode(&d)
	if errors.Is(err, mongo.ErrNoDocuments) {
		w.isStrange(key, "%s finds no document", w.name)
	}
	if err == nil {
		w.isAbout(key, d)
		found(d)
	}
	return err
}

func (w *worker) isAbout(key string, d document) {
	if d.ID != key {
		w.isStrange(key, "%s is answered with %+v", w.name, d)
	}
}

// lists: appends, and reads that are linearizable.
func (w *worker) lists(ctx context.Context) {
	docs := w.in(readconcern.Linearizable())
	for !w.over.Load() {
		w.pause()
		if key := w.keys.any(w.random); w.random.IntN(2) == 0 {
			w.append(ctx, docs, key)
		} else {
			w.read(ctx, docs, key, check.Read)
		}
	}
}

// causal: the same in a causally consistent session, with reads from whoever has them.
func (w *worker) causal(ctx context.Context) {
	docs := w.in(readconcern.Majority())
	session, err := w.client.StartSession(options.Session().SetCausalConsistency(true))
	if err != nil {
		w.isStrange("", "%s has no session: %v", w.name, err)
		return
	}
	defer session.EndSession(context.Background())
	docs = docs.Clone(options.Collection().SetReadPreference(readpref.SecondaryPreferred()))
	for !w.over.Load() {
		w.pause()
		key, inside := w.keys.any(w.random), mongo.NewSessionContext(ctx, session)
		w.append(inside, docs, key)
		// At once: a moment later a secondary has it anyway.
		w.read(inside, docs, key, check.Stale)
	}
}

func (w *worker) append(ctx context.Context, docs *mongo.Collection, key string) {
	op := check.Op{Client: w.name, Key: key, Kind: check.Append, Value: w.last.Add(1)}
	ctx, attempts := watched(ctx)
	op.Call = w.now()
	matched, err := update(ctx, docs, bson.M{"_id": key}, bson.M{"$push": bson.M{"l": op.Value}})
	op.Return = w.now()
	if err == nil && matched != 1 {
		w.isStrange(key, "there is no such document: %s", op)
	}
	op.Outcome, op.Why = attempts.outcome(err)
	w.add(op)
}

func (w *worker) read(ctx context.Context, docs *mongo.Collection, key, kind string) {
	op := check.Op{Client: w.name, Key: key, Kind: kind, Call: w.now()}
	ctx, attempts := watched(ctx)
	err := w.find(ctx, docs, key, func(d document) { op.Seen = d.seen() })
	op.Return = w.now()
	op.Outcome, op.Why = attempts.outcome(err)
	w.add(op)
}

// longestCommit is how long the outcome of a commit is asked for.
const longestCommit = 8 * time.Second

// transactions of one to four reads and appends, at snapshots, each written by a majority. A session whose commit ended in
// doubt may still have its transaction open, and is left; what a new one sees need not follow upon it.
func (w *worker) transactions(ctx context.Context) {
	for number := 0; !w.over.Load(); number++ {
		session, err := w.client.StartSession(options.Session().SetDefaultTransactionOptions(
			options.Transaction().SetReadConcern(readconcern.Snapshot()).SetReadPreference(readpref.Primary())))
		if err != nil {
			w.isStrange("", "%s has no session: %v", w.name, err)
			return
		}
		for name := fmt.Sprintf("%s.%d", w.name, number); !w.over.Load() && w.transaction(ctx, session, name); {
			w.pause()
		}
		session.EndSession(ctx)
	}
}

// transaction is false when the session is not to go on.
func (w *worker) transaction(ctx context.Context, session *mongo.Session, name string) bool {
	txn := check.Txn{Client: name, Call: w.now()}
	err := session.StartTransaction()
	if err != nil {
		w.isStrange("", "%s cannot begin: %v", name, err)
		return false
	}
	inside := mongo.NewSessionContext(ctx, session)
	if txn.Steps, err = w.steps(inside); err != nil {
		// Nobody asks for its commit.
		txn.Outcome, txn.Why = check.Refused, err.Error()
		_ = session.AbortTransaction(inside)
	} else {
		txn.Outcome, txn.Why = w.commit(ctx, session)
	}
	txn.Return = w.now()
	w.addTxn(txn)
	return err != nil || txn.Outcome == check.Done
}

// steps are those that were tried, the one that failed included.
func (w *worker) steps(ctx context.Context) ([]check.Step, error) {
	docs := w.client.Database(database).Collection(w.keys.name)
	var steps []check.Step
	for range 1 + w.random.IntN(4) {
		step := check.Step{Key: w.keys.any(w.random)}
		var err error
		if w.random.IntN(2) == 0 {
			step.Append = w.last.Add(1)
			var matched int64
			matched, err = update(ctx, docs, bson.M{"_id": step.Key}, bson.M{"$push": bson.M{"l": step.Append}})
			if err == nil && matched != 1 {
				w.isStrange(step.Key, "there is no such document, for %s", w.name)
			}
		} else {
			err = w.find(ctx, docs, step.Key, func(d document) { step.Seen = d.seen() })
		}
		steps = append(steps, step)
		if err != nil {
			return steps, err
		}
	}
	return steps, nil
}

// commit asks again while the outcome is unknown, as the drivers' own helper for transactions does.
func (w *worker) commit(ctx context.Context, session *mongo.Session) (check.Outcome, string) {
	ctx, attempts := watched(ctx)
	for end := time.Now().Add(longestCommit); ; {
		err := session.CommitTransaction(ctx)
		if err == nil {
			return check.Done, ""
		}
		if hasLabel(err, "TransientTransactionError") {
			return check.Refused, err.Error()
		}
		inDoubt := hasLabel(err, "UnknownTransactionCommitResult") || mongo.IsTimeout(err)
		if !inDoubt || time.Now().After(end) {
			return attempts.outcome(err)
		}
	}
}
