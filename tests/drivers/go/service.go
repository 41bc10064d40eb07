package main

// Sizes, deadlines, retries, the proxy's own answers, and what the driver thinks of the server in the end.

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
)

const mebibyte = 1 << 20

func random(size int) []byte {
	data := make([]byte, size)
	must(rand.Read(data))
	return data
}

func largeDocument(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "large")
	data := random(15 * mebibyte)
	must(c.InsertOne(ctx, bson.D{e("_id", 1), e("data", data)}))
	_, found := must(c.FindOne(ctx, bson.M{"_id": 1}).Raw()).Lookup("data").Binary()
	holds(bytes.Equal(found, data), "the document came back different")
}

func largeBulk(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "large_bulk")
	data := random(47_000_000 / 4)
	documents := numbered(4, func(int) bson.D { return bson.D{e("data", data)} })
	before := s.view.count("insert")
	must(c.InsertMany(ctx, documents))
	same(s.view.count("insert")-before, 1, "messages that the documents took")
	cursor := must(c.Find(ctx, bson.D{}))
	read := 0
	for cursor.Next(ctx) {
		_, found := cursor.Current.Lookup("data").Binary()
		holds(bytes.Equal(found, data), "a document came back different")
		read++
	}
	try(cursor.Err())
	try(cursor.Close(ctx))
	same(read, 4, "documents")
	try(c.Drop(ctx))
}

func gridfs(ctx context.Context, s *scenario) {
	bucket := s.db.GridFSBucket()
	data := random(20 * mebibyte)
	file := must(bucket.UploadFromStream(ctx, "file", bytes.NewReader(data)))
	hash := sha256.New()
	same(must(bucket.DownloadToStream(ctx, file, hash)), int64(len(data)), "bytes")
	wanted := sha256.Sum256(data)
	holds(bytes.Equal(hash.Sum(nil), wanted[:]), "the file came back different")
	try(bucket.Delete(ctx, file))
	same(count(ctx, bucket.GetChunksCollection(), bson.D{}), 0, "chunks left")
}

func unacknowledgedWrite(ctx context.Context, s *scenario) {
	s.collection(ctx, "unacknowledged")
	// One socket only: the read comes right behind the write.
	client, view := s.connect(func(o *options.ClientOptions) { o.SetMaxPoolSize(1) })
	db := client.Database(s.db.Name())
	c := db.Collection("unacknowledged")
	silent := db.Collection("unacknowledged", options.Collection().SetWriteConcern(writeconcern.Unacknowledged()))
	for i := range 100 {
		holds(!must(silent.InsertOne(ctx, bson.M{"_id": i})).Acknowledged, "the write was acknowledged")
		same(id(must(c.FindOne(ctx, bson.M{"_id": i}).Raw())), i, "own write")
	}
	must(silent.InsertOne(ctx, bson.M{"_id": 1}))
	must(silent.UpdateMany(ctx, bson.D{}, bson.M{"$set": bson.M{"n": 1}}))
	same(count(ctx, c, bson.D{e("n", 1)}), 100, "count")
	must(silent.DeleteMany(ctx, bson.D{e("_id", bson.M{"$lt": 40})}))
	same(count(ctx, c, bson.D{}), 60, "count after the deletion")
	view.verifyCalm()
	try(client.Disconnect(ctx))
}

func stableAPI(ctx context.Context, s *scenario) {
	s.collection(ctx, "stable_api", numbered(50, nil)...)
	client, view := s.connect(func(o *options.ClientOptions) {
		o.SetServerAPIOptions(options.ServerAPI(options.ServerAPIVersion1).SetStrict(true).SetDeprecationErrors(true))
	})
	db := client.Database(s.db.Name())
	c := db.Collection("stable_api")
	must(c.InsertOne(ctx, bson.M{"_id": 50}))
	cursor, err := c.Find(ctx, bson.D{}, options.Find().SetBatchSize(20).SetSort(bson.M{"_id": 1}))
	same(ids(ctx, cursor, err), upTo(51), "ids")
	same(count(ctx, c, bson.D{}), 51, "count")
	try(client.Ping(ctx, nil))
	fails(323, c.Distinct(ctx, "_id", bson.D{}).Err())
	for _, command := range []string{"whatsmyuri", "serverStatus", "connPoolStats"} {
		fails(323, client.Database("admin").RunCommand(ctx, bson.D{e(command, 1)}).Err())
	}
	try(s.db.Collection("stable_api").Distinct(ctx, "_id", bson.D{}).Err())
	view.verifyCalm()
	try(client.Disconnect(ctx))
}

func maxTime(ctx context.Context, s *scenario) {
	s.collection(ctx, "max_time", numbered(3, nil)...)
	find := bson.D{e("find", "max_time"), e("filter", bson.M{"$where": "sleep(1000) || true"})}
	// A context with a deadline would add a maxTimeMS of its own.
	fails(50, s.db.RunCommand(context.WithoutCancel(ctx), append(find, e("maxTimeMS", 50))).Err())
	c := s.db.Collection("max_time")
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err := c.Find(short, bson.M{"$where": "sleep(1000) || true"})
	holds(mongo.IsTimeout(err), fmt.Sprintf("the error is not of a deadline: %v", err))
	same(count(ctx, c, bson.D{}), 3, "count afterwards")
}

func writeConcern(ctx context.Context, s *scenario) {
	s.collection(ctx, "write_concern")
	under := func(concern *writeconcern.WriteConcern) *mongo.Collection {
		return s.db.Collection("write_concern", options.Collection().SetWriteConcern(concern))
	}
	journal := true
	majority := under(&writeconcern.WriteConcern{W: "majority", Journal: &journal})
	holds(must(majority.InsertOne(ctx, bson.M{"_id": 1})).Acknowledged, "the write was not acknowledged")
	// There is one member only. The write itself is done.
	_, err := under(&writeconcern.WriteConcern{W: 2}).InsertOne(ctx, bson.M{"_id": 2})
	failure, ok := err.(mongo.WriteException)
	holds(ok && failure.WriteConcernError != nil && len(failure.WriteErrors) == 0, fmt.Sprintf("w:2 gave %v", err))
	same(failure.WriteConcernError.Code, 100, "code under w:2")
	_, err = under(writeconcern.Custom("none")).InsertOne(ctx, bson.M{"_id": 3})
	failure, ok = err.(mongo.WriteException)
	holds(ok && failure.WriteConcernError != nil, fmt.Sprintf("w:none gave %v", err))
	same(failure.WriteConcernError.Code, 79, "code under w:none")
	same(count(ctx, majority, bson.D{}), 3, "count")
}

// failNext lets the server answer one command of this name as told, and gives back a function that ends this.
func (s *scenario) failNext(ctx context.Context, command string, how ...bson.E) func() {
	data := append(bson.D{e("failCommands", bson.A{command})}, how...)
	on := bson.D{e("configureFailPoint", "failCommand"), e("mode", bson.M{"times": 1}), e("data", data)}
	s.admin(ctx, on)
	return func() { s.admin(ctx, bson.D{e("configureFailPoint", "failCommand"), e("mode", "off")}) }
}

func retryableReads(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "retryable_reads", numbered(50, nil)...)
	reads := map[string]func(){
		"find":      func() { same(id(must(c.FindOne(ctx, bson.M{"_id": 7}).Raw())), 7, "id") },
		"aggregate": func() { same(count(ctx, c, bson.D{}), 50, "count") },
		"distinct":  func() { try(c.Distinct(ctx, "_id", bson.D{}).Err()) },
	}
	for name, read := range reads {
		for _, code := range []int{6, 89, 262} {
			off := s.failNext(ctx, name, e("errorCode", code))
			sent, failures := s.view.record(read)
			off()
			what := fmt.Sprintf("%s that gets code %d once: ", name, code)
			same(len(named(sent, name)), 2, what+"attempts")
			same(failures, []string{name}, what+"failures")
		}
	}
}

func retryableWrites(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "retryable_writes", bson.D{e("_id", 0), e("n", 0)})
	increment := func() { must(c.UpdateOne(ctx, bson.M{"_id": 0}, bson.M{"$inc": bson.M{"n": 1}})) }
	inDoubt := e("writeConcernError", bson.D{e("code", 262), e("errmsg", "in doubt")})
	labels := e("errorLabels", bson.A{"RetryableWriteError"})
	// Refused before it was done, twice, and done but in doubt.
	for i, how := range [][]bson.E{{e("errorCode", 6)}, {e("errorCode", 262)}, {inDoubt, labels}} {
		off := s.failNext(ctx, "update", how...)
		sent, _ := s.view.record(increment)
		off()
		updates := named(sent, "update")
		what := fmt.Sprintf("update with %v once: ", how[0])
		same(len(updates), 2, what+"attempts")
		same(updates[0].Lookup("txnNumber"), updates[1].Lookup("txnNumber"), what+"txnNumber of the retry")
		same(count(ctx, c, bson.D{e("n", i+1)}), 1, what+"count of what was done exactly once")
	}
	off := s.failNext(ctx, "insert", e("errorCode", 6))
	must(c.InsertMany(ctx, []any{bson.M{"_id": 1}, bson.M{"_id": 2}}))
	off()
	same(count(ctx, c, bson.D{}), 3, "count after an insert that was sent twice")
}

func commands(ctx context.Context, s *scenario) {
	stats := s.admin(ctx, bson.D{e("connPoolStats", 1)})
	hosts, isDocument := stats["hosts"].(bson.D)
	holds(isDocument && stats["totalCreated"] != nil, fmt.Sprintf("shape of connPoolStats: %v", stats))
	mine := s.admin(ctx, bson.D{e("whatsmyuri", 1)})["you"].(string)
	host, port, _ := strings.Cut(mine, ":")
	same(host, "127.0.0.1", "whatsmyuri")
	must(strconv.Atoi(port))
	var status struct {
		AuthInfo struct{ AuthenticatedUsers []struct{ User, DB string } }
	}
	var due []struct{ User, DB string }
	if credential := options.Client().ApplyURI(s.uri).Auth; credential != nil {
		due = append(due, struct{ User, DB string }{credential.Username, "admin"})
	}
	try(s.client.Database("admin").RunCommand(ctx, bson.D{e("connectionStatus", 1)}).Decode(&status))
	found := status.AuthInfo.AuthenticatedUsers
	holds(slices.Equal(found, due), fmt.Sprintf("users are %v, not %v", found, due))
	hello := s.admin(ctx, bson.D{e("hello", 1)})
	same(hello["isWritablePrimary"], true, "isWritablePrimary")
	if s.wanted == "replicaset" {
		same(hello["setName"], "rs0", "setName")
	} else {
		same(hello["msg"], "isdbgrid", "msg")
		for _, key := range []string{"setName", "hosts", "me", "primary"} {
			holds(hello[key] == nil, "hello has the field "+key+" of a set")
		}
		holds(len(hosts) > 0, "connPoolStats names no server")
	}
	same(s.admin(ctx, bson.D{e("isMaster", 1)})["ismaster"], true, "ismaster")
	same(s.admin(ctx, bson.D{e("buildInfo", 1)})["ok"], 1.0, "ok of buildInfo")
	same(run(ctx, s.db, bson.D{e("dbStats", 1)})["db"], s.db.Name(), "dbStats")
}

func concurrency(ctx context.Context, s *scenario) {
	// Every reply carries the token of its request: one that went to the wrong goroutine shows.
	text := func(i int) string { return strings.Repeat(fmt.Sprintf("document %d", i), 20) }
	c := s.collection(ctx, "concurrency", numbered(50, func(i int) bson.D { return bson.D{e("text", text(i))} })...)
	var work sync.WaitGroup
	problems := make(chan any, 50)
	for i := range 50 {
		work.Go(func() {
			defer func() { problems <- recover() }()
			for n := range 20 {
				token := fmt.Sprintf("%d:%d:%d", i, n, time.Now().UnixNano())
				fields := bson.D{e("text", 1), e("token", bson.M{"$literal": token})}
				var found bson.M
				try(c.FindOne(ctx, bson.M{"_id": i}, options.FindOne().SetProjection(fields)).Decode(&found))
				same(found, bson.M{"_id": int32(i), "text": text(i), "token": token}, "reply")
			}
		})
	}
	work.Wait()
	for range 50 {
		if problem := <-problems; problem != nil {
			panic(problem)
		}
	}
}

func monitoringQuiet(_ context.Context, s *scenario) { s.view.verifyCalm() }

func verifyView(_ context.Context, s *scenario) {
	var topology, servers = "", []string{}
	s.view.update(func() {
		topology = s.view.topology.Kind
		for _, server := range s.view.topology.Servers {
			servers = append(servers, server.Kind)
		}
	})
	same(topology, views[s.wanted][0], "topology type")
	same(servers, []string{views[s.wanted][1]}, "server types")
	s.view.verifyCalm()
}

func closeClient(ctx context.Context, s *scenario) {
	try(s.db.Drop(ctx))
	s.view.verifyCalm()
	try(s.client.Disconnect(ctx))
	// The heartbeat that was under way has failed, by the driver's own hand.
	s.view.update(func() { s.view.heartbeatsFailed = nil })
	s.view.verifyCalm()
}
