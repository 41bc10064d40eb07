package main

// Where and in which order reads and writes take place: read options, sessions, transactions.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
)

func readOptions(ctx context.Context, s *scenario) {
	s.collection(ctx, "read_options", bson.D{e("_id", 1)})
	for _, level := range []*readconcern.ReadConcern{
		readconcern.Local(), readconcern.Majority(), readconcern.Available(), readconcern.Linearizable(),
	} {
		c := s.db.Collection("read_options", options.Collection().SetReadConcern(level))
		cursor, err := c.Find(ctx, bson.D{})
		same(ids(ctx, cursor, err), []int{1}, "ids under "+level.Level)
	}
	c := s.db.Collection("read_options", options.Collection().SetReadConcern(&readconcern.ReadConcern{Level: "none"}))
	_, err := c.Find(ctx, bson.D{})
	fails(9, err)
}

func readPreferences(ctx context.Context, s *scenario) {
	s.collection(ctx, "read_preferences", numbered(50, nil)...)
	stale := readpref.WithMaxStaleness(90 * time.Second)
	for _, preference := range []*readpref.ReadPref{
		readpref.Primary(), readpref.PrimaryPreferred(), readpref.SecondaryPreferred(), readpref.Nearest(),
		readpref.SecondaryPreferred(stale), readpref.Nearest(readpref.WithTags("no", "such"), readpref.WithTagSets(nil)),
	} {
		c := s.db.Collection("read_preferences", options.Collection().SetReadPreference(preference))
		cursor, err := c.Find(ctx, bson.D{}, options.Find().SetBatchSize(20).SetSort(bson.M{"_id": 1}))
		same(ids(ctx, cursor, err), upTo(50), "ids under "+preference.Mode().String())
		same(count(ctx, c, bson.D{}), 50, "count under "+preference.Mode().String())
	}
	// The set has no secondary: only who insists on one is refused, by whoever selects the server.
	client, _ := s.connect(func(o *options.ClientOptions) { o.SetServerSelectionTimeout(300 * time.Millisecond) })
	find := bson.D{e("find", "read_preferences"), e("maxTimeMS", 300)}
	insisting := options.RunCmd().SetReadPreference(readpref.Secondary())
	err := client.Database(s.db.Name()).RunCommand(context.WithoutCancel(ctx), find, insisting).Err()
	if s.wanted == "replicaset" {
		holds(err != nil && codeOf(err) == -1, fmt.Sprintf("the driver has found a secondary: %v", err))
	} else {
		fails(50, err)
	}
	try(client.Disconnect(ctx))
}

func causalReads(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "causal_reads")
	nearest := s.db.Collection("causal_reads", options.Collection().SetReadPreference(readpref.Nearest()))
	session := must(s.client.StartSession(options.Session().SetCausalConsistency(true)))
	defer session.EndSession(ctx)
	inside := mongo.NewSessionContext(ctx, session)
	sent, _ := s.view.record(func() {
		for i := range 20 {
			must(c.InsertOne(inside, bson.M{"_id": i}))
			same(id(must(nearest.FindOne(inside, bson.M{"_id": i}).Raw())), i, "own write")
		}
	})
	finds := named(sent, "find")
	same(len(finds), 20, "finds")
	for _, find := range finds {
		_, err := find.LookupErr("readConcern", "afterClusterTime")
		holds(err == nil, "a find does not wait for what the session has seen")
	}
	other := must(s.client.StartSession(options.Session().SetCausalConsistency(true)))
	defer other.EndSession(ctx)
	try(other.AdvanceClusterTime(session.ClusterTime()))
	try(other.AdvanceOperationTime(session.OperationTime()))
	same(id(must(nearest.FindOne(mongo.NewSessionContext(ctx, other), bson.M{"_id": 19}).Raw())), 19, "write of another session")
}

func sessions(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "sessions", numbered(50, nil)...)
	session := must(s.client.StartSession())
	inside := mongo.NewSessionContext(ctx, session)
	sent, _ := s.view.record(func() {
		must(c.InsertOne(inside, bson.M{"_id": 50}))
		cursor, err := c.Find(inside, bson.D{}, options.Find().SetBatchSize(20).SetSort(bson.M{"_id": 1}))
		same(ids(ctx, cursor, err), upTo(51), "ids")
		session.EndSession(ctx)
		same(count(ctx, c, bson.D{}), 51, "count")
	})
	lsids := []string{}
	for _, one := range sent {
		lsids = append(lsids, one.command.Lookup("lsid").String())
	}
	same(len(lsids), 5, "insert, find, two getMores, and the count that is given the session again")
	for _, lsid := range lsids {
		same(lsid, lsids[0], "lsid")
	}
	// Twenty at once, each its own; ended by name in the end.
	var all bson.A
	for range 20 {
		session := must(s.client.StartSession())
		defer session.EndSession(ctx)
		same(count(mongo.NewSessionContext(ctx, session), c, bson.D{}), 51, "count")
		all = append(all, session.ID())
	}
	same(s.admin(ctx, bson.D{e("refreshSessions", all)})["ok"], 1.0, "ok of refreshSessions")
	same(s.admin(ctx, bson.D{e("endSessions", all)})["ok"], 1.0, "ok of endSessions")
}

func snapshotReads(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "snapshot_reads", numbered(50, nil)...)
	session := must(s.client.StartSession(options.Session().SetSnapshot(true)))
	defer session.EndSession(ctx)
	inside := mongo.NewSessionContext(ctx, session)
	same(count(inside, c, bson.D{}), 50, "count")
	must(c.DeleteMany(ctx, bson.M{"_id": bson.M{"$lt": 25}}))
	cursor, err := c.Find(inside, bson.D{}, options.Find().SetBatchSize(20).SetSort(bson.M{"_id": 1}))
	same(ids(inside, cursor, err), upTo(50), "ids of before the deletion")
	var distinct []int
	try(c.Distinct(inside, "_id", bson.D{}).Decode(&distinct))
	same(len(distinct), 50, "distinct ids of before the deletion")
	same(count(ctx, c, bson.D{}), 25, "count outside")
}

func (s *scenario) transaction(ctx context.Context, work func(ctx context.Context) any) (any, error) {
	session := must(s.client.StartSession())
	defer session.EndSession(ctx)
	return session.WithTransaction(ctx, func(ctx context.Context) (result any, err error) {
		// What the driver may start over must reach it as an error.
		defer func() {
			if caught := recover(); caught != nil {
				failure, isError := caught.(error)
				if !isError {
					failure = errors.New(fmt.Sprint(caught))
				}
				result, err = nil, failure
			}
		}()
		return work(ctx), nil
	})
}

func transactionCommit(ctx context.Context, s *scenario) {
	a, b := s.collection(ctx, "commit_a"), s.collection(ctx, "commit_b")
	result := must(s.transaction(ctx, func(inside context.Context) any {
		must(a.InsertOne(inside, bson.M{"_id": 1}))
		must(b.InsertOne(inside, bson.M{"_id": 2}))
		same(count(inside, a, bson.D{}), 1, "count inside")
		same(count(ctx, a, bson.D{}), 0, "count outside before the commit")
		return "done"
	}))
	same(result, "done", "result")
	must(s.transaction(ctx, func(inside context.Context) any { return must(a.InsertOne(inside, bson.M{"_id": 3})) }))
	same([]int{count(ctx, a, bson.D{}), count(ctx, b, bson.D{})}, []int{2, 1}, "counts after the commit")
	// A commit that is sent again is answered again.
	session := must(s.client.StartSession())
	defer session.EndSession(ctx)
	try(session.StartTransaction())
	must(a.InsertOne(mongo.NewSessionContext(ctx, session), bson.M{"_id": 4}))
	try(session.CommitTransaction(ctx))
	try(session.CommitTransaction(ctx))
	same(count(ctx, a, bson.D{}), 3, "count after two commits of one transaction")
}

func transactionAbort(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "abort")
	enough := errors.New("abort")
	_, err := s.transaction(ctx, func(inside context.Context) any {
		must(c.InsertOne(inside, bson.M{"_id": 1}))
		same(count(inside, c, bson.D{}), 1, "count inside")
		panic(enough)
	})
	same(err, enough, "error")
	same(count(ctx, c, bson.D{}), 0, "count after the abort")
	session := must(s.client.StartSession())
	defer session.EndSession(ctx)
	try(session.StartTransaction())
	must(c.InsertOne(mongo.NewSessionContext(ctx, session), bson.M{"_id": 2}))
	try(session.AbortTransaction(ctx))
	same(count(ctx, c, bson.D{}), 0, "count after the second abort")
}

func transactionConflict(ctx context.Context, s *scenario) {
	// Write conflicts reach the driver with their label, or WithTransaction would not start over.
	c := s.collection(ctx, "conflict", bson.D{e("_id", 1), e("n", 0)})
	var work sync.WaitGroup
	problems := make(chan error, 12)
	for range 4 {
		work.Go(func() {
			for range 3 {
				_, err := s.transaction(ctx, func(inside context.Context) any {
					n := must(c.FindOne(inside, bson.M{"_id": 1}).Raw()).Lookup("n").AsInt64()
					return must(c.UpdateOne(inside, bson.M{"_id": 1}, bson.M{"$set": bson.M{"n": n + 1}}))
				})
				problems <- err
			}
		})
	}
	work.Wait()
	for range 12 {
		try(<-problems)
	}
	same(count(ctx, c, bson.D{e("n", 12)}), 1, "count of the sum of all increments")
	// Seen without the driver's help: the second writer is told 112, and that it may start over.
	first, second := must(s.client.StartSession()), must(s.client.StartSession())
	defer first.EndSession(ctx)
	defer second.EndSession(ctx)
	try(first.StartTransaction())
	try(second.StartTransaction())
	increment := bson.M{"$inc": bson.M{"n": 1}}
	must(c.UpdateOne(mongo.NewSessionContext(ctx, first), bson.M{"_id": 1}, increment))
	_, err := c.UpdateOne(mongo.NewSessionContext(ctx, second), bson.M{"_id": 1}, increment)
	fails(112, err)
	holds(err.(mongo.ServerError).HasErrorLabel("TransientTransactionError"), "the label of the conflict is lost")
	try(second.AbortTransaction(ctx))
	try(first.CommitTransaction(ctx))
	same(count(ctx, c, bson.D{e("n", 13)}), 1, "count of the sum")
}

func transactionCursor(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "transaction_cursor", numbered(500, nil)...)
	found := must(s.transaction(ctx, func(inside context.Context) any {
		o := options.Find().SetSort(bson.M{"_id": 1}).SetBatchSize(50)
		cursor := must(c.Find(inside, bson.D{}, o))
		// What is written outside meanwhile is not seen.
		must(c.DeleteMany(ctx, bson.M{"_id": bson.M{"$gte": 250}}))
		return ids(inside, cursor, nil)
	}))
	same(found, upTo(500), "ids")
	same(count(ctx, c, bson.D{}), 250, "count afterwards")
}

func transactionErrors(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "transaction_errors", bson.D{e("_id", 1)})
	session := must(s.client.StartSession())
	defer session.EndSession(ctx)
	inside := mongo.NewSessionContext(ctx, session)
	try(session.StartTransaction())
	must(c.InsertOne(inside, bson.M{"_id": 2}))
	_, err := c.InsertOne(inside, bson.M{"_id": 1})
	fails(11000, err)
	// The error has ended it: what comes after does not run outside of a transaction.
	_, err = c.InsertOne(inside, bson.M{"_id": 3})
	fails(251, err)
	holds(err.(mongo.ServerError).HasErrorLabel("TransientTransactionError"), "the label of the aborted transaction is lost")
	fails(251, session.CommitTransaction(ctx))
	same(count(ctx, c, bson.D{}), 1, "count")
	try(session.StartTransaction())
	must(c.InsertOne(inside, bson.M{"_id": 2}))
	try(session.CommitTransaction(ctx))
	same(count(ctx, c, bson.D{}), 2, "count after another transaction of the session")
}
