package main

// Cursors of every kind, and change streams.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

func batches(ctx context.Context, s *scenario) {
	const documents = 12_000
	text := func(i int) bson.D { return bson.D{e("text", fmt.Sprintf("document %d", i))} }
	c := s.collection(ctx, "batches")
	same(len(must(c.InsertMany(ctx, numbered(documents, text))).InsertedIDs), documents, "inserted")
	before := s.view.count("getMore")
	cursor := must(c.Find(ctx, bson.D{}, options.Find().SetBatchSize(1000)))
	seen := make([]bool, documents)
	for cursor.Next(ctx) {
		i := id(cursor.Current)
		holds(!seen[i], "a document came twice")
		same(cursor.Current.Lookup("text").StringValue(), fmt.Sprintf("document %d", i), "text")
		seen[i] = true
	}
	try(cursor.Err())
	try(cursor.Close(ctx))
	for i, s := range seen {
		holds(s, fmt.Sprintf("document %d did not come", i))
	}
	holds(s.view.count("getMore")-before >= 11, "the result came in too few batches")
	same(must(c.DeleteMany(ctx, bson.D{})).DeletedCount, int64(documents), "deleted")
}

func cursor(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "cursor", numbered(5000, nil)...)
	o := options.Find().SetSort(bson.M{"_id": 1}).SetBatchSize(100)
	found, err := c.Find(ctx, bson.D{}, o)
	same(ids(ctx, found, err), upTo(5000), "ids")
	found, err = c.Find(ctx, bson.D{}, o.SetSkip(10).SetLimit(250))
	same(ids(ctx, found, err), span(10, 260), "ids after skip and limit")
}

func cursorClose(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "cursor_close", numbered(100, nil)...)
	found := must(c.Find(ctx, bson.D{}, options.Find().SetSort(bson.M{"_id": 1}).SetBatchSize(10)))
	for i := range 15 {
		holds(found.Next(ctx), "the cursor ended")
		same(id(found.Current), i, "id")
	}
	cursorID := found.ID()
	holds(cursorID != 0, "the cursor is exhausted already")
	try(found.Close(ctx))
	s.gone(ctx, c, cursorID)
}

func cursorTimeoutFree(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "cursor_timeout_free", numbered(100, nil)...)
	o := options.Find().SetSort(bson.M{"_id": 1}).SetBatchSize(10)
	for _, free := range []bool{true, false} {
		found := must(c.Find(ctx, bson.D{}, o.SetNoCursorTimeout(free)))
		same(s.idleCursor(ctx, found.ID()).Lookup("cursor", "noCursorTimeout").Boolean(), free, "noCursorTimeout")
		same(ids(ctx, found, nil), upTo(100), "ids")
	}
}

func changeStream(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "change_stream")
	stream := must(c.Watch(ctx, mongo.Pipeline{}, options.ChangeStream().SetMaxAwaitTime(500*time.Millisecond)))
	cursorID := stream.ID()
	before := s.view.count("getMore")
	read := make(chan []bson.Raw, 1)
	go func() {
		seen := []bson.Raw{}
		for deadline := time.Now().Add(20 * time.Second); len(seen) < 20 && time.Now().Before(deadline); {
			if stream.TryNext(ctx) {
				seen = append(seen, append(bson.Raw{}, stream.Current...))
			} else if stream.Err() != nil {
				break
			}
		}
		read <- seen
	}()
	s.view.await("getMore", before)
	for i := range 20 {
		must(c.InsertOne(ctx, bson.M{"_id": i}))
	}
	seen := <-read
	try(stream.Err())
	found := []int{}
	for _, change := range seen {
		found = append(found, id(change.Lookup("fullDocument").Document()))
	}
	same(found, upTo(20), "inserts seen")
	try(stream.Close(ctx))
	s.gone(ctx, c, cursorID)

	resumed := must(c.Watch(ctx, mongo.Pipeline{}, options.ChangeStream().SetResumeAfter(seen[9].Lookup("_id").Document())))
	same(changes(ctx, resumed, 10), span(10, 20), "inserts after resuming")
	try(resumed.Close(ctx))
}

// changes reads the ids of the documents of this many changes.
func changes(ctx context.Context, stream *mongo.ChangeStream, count int) []int {
	found := []int{}
	for range count {
		if !stream.Next(ctx) {
			panic(fmt.Sprintf("the stream ended after %d changes: %v", len(found), stream.Err()))
		}
		found = append(found, id(stream.Current.Lookup("documentKey").Document()))
	}
	return found
}

func changeStreamResume(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "change_stream_resume")
	insert := func(ids []int) {
		for _, i := range ids {
			must(c.InsertOne(ctx, bson.M{"_id": i}))
		}
	}
	stream := must(c.Watch(ctx, mongo.Pipeline{}, options.ChangeStream().SetBatchSize(3)))
	killed := stream.ID()
	insert(upTo(10))
	found := changes(ctx, stream, 4)
	reply := run(ctx, s.db, bson.D{e("killCursors", c.Name()), e("cursors", bson.A{killed})})
	same(reply["cursorsKilled"], bson.A{killed}, "cursors killed")
	insert(span(10, 20))
	found = append(found, changes(ctx, stream, 16)...)
	same(found, upTo(20), "inserts seen")
	holds(stream.ID() != killed, "the stream did not resume")
	must(c.InsertOne(ctx, bson.M{"_id": 20}))
	same(changes(ctx, stream, 1), []int{20}, "next insert")
	try(stream.Close(ctx))
}

func changeStreamMany(ctx context.Context, s *scenario) {
	const streams, inserts = 8, 10
	var work sync.WaitGroup
	problems := make(chan any, streams)
	collections, opened := []*mongo.Collection{}, []*mongo.ChangeStream{}
	for i := range streams {
		c := s.collection(ctx, fmt.Sprintf("change_stream_%d", i))
		collections, opened = append(collections, c), append(opened, must(c.Watch(ctx, mongo.Pipeline{})))
	}
	for i, stream := range opened {
		work.Go(func() {
			defer func() { problems <- recover() }()
			same(changes(ctx, stream, inserts), span(100*i, 100*i+inserts), fmt.Sprintf("inserts seen by stream %d", i))
			try(stream.Close(ctx))
		})
	}
	for n := range inserts {
		for i, c := range collections {
			must(c.InsertOne(ctx, bson.M{"_id": 100*i + n}))
		}
	}
	work.Wait()
	for range streams {
		if problem := <-problems; problem != nil {
			panic(problem)
		}
	}
}

func tailable(ctx context.Context, s *scenario) {
	c := s.db.Collection("tailable")
	try(c.Drop(ctx))
	try(s.db.CreateCollection(ctx, "tailable", options.CreateCollection().SetCapped(true).SetSizeInBytes(1<<20)))
	must(c.InsertMany(ctx, numbered(3, nil)))
	o := options.Find().SetCursorType(options.TailableAwait).SetMaxAwaitTime(500 * time.Millisecond)
	cursor := must(c.Find(ctx, bson.D{}, o))
	next := func() int {
		holds(cursor.Next(ctx), fmt.Sprintf("the cursor ended: %v", cursor.Err()))
		return id(cursor.Current)
	}
	same([]int{next(), next(), next()}, upTo(3), "ids of before")
	before := s.view.count("getMore")
	inserted := make(chan any, 1)
	go func() {
		defer func() { inserted <- recover() }()
		s.view.await("getMore", before)
		for i := 3; i < 10; i++ {
			must(c.InsertOne(ctx, bson.M{"_id": i}))
		}
	}()
	found := []int{}
	for range 7 {
		found = append(found, next())
	}
	same(<-inserted, nil, "insert")
	same(found, span(3, 10), "ids of what came while it waited")
	cursorID := cursor.ID()
	holds(cursorID != 0, "the cursor ended")
	try(cursor.Close(ctx))
	s.gone(ctx, c, cursorID)
}

func listCursors(ctx context.Context, s *scenario) {
	// More than one batch of each: as many as a catalogue has that is read while others use it.
	const many, size = 40, 6
	db := s.client.Database(s.db.Name() + "_list")
	try(db.Drop(ctx))
	defer func() { try(db.Drop(ctx)) }()
	indexes := []mongo.IndexModel{}
	for i := range many {
		try(db.CreateCollection(ctx, fmt.Sprintf("c%d", i)))
		indexes = append(indexes, mongo.IndexModel{Keys: bson.D{e(fmt.Sprintf("k%d", i), 1)}})
	}
	must(db.Collection("c0").Indexes().CreateMany(ctx, indexes))
	names := func(cursor *mongo.Cursor, err error) int {
		try(err)
		seen := map[string]bool{}
		for cursor.Next(ctx) {
			name := cursor.Current.Lookup("name").StringValue()
			holds(!seen[name], name+" came twice")
			seen[name] = true
		}
		try(cursor.Err())
		try(cursor.Close(ctx))
		return len(seen)
	}
	before := s.view.count("getMore")
	same(names(db.ListCollections(ctx, bson.D{}, options.ListCollections().SetBatchSize(size))), many, "collections")
	same(names(db.Collection("c0").Indexes().List(ctx, options.ListIndexes().SetBatchSize(size))), many+1, "indexes")
	holds(s.view.count("getMore")-before >= 2*(many/size), "the lists came in too few batches")
}

func killCursors(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "kill_cursors", numbered(100, nil)...)
	var open []*mongo.Cursor
	var cursorIDs bson.A
	for range 3 {
		open = append(open, must(c.Find(ctx, bson.D{}, options.Find().SetBatchSize(5))))
		cursorIDs = append(cursorIDs, open[len(open)-1].ID())
	}
	reply := run(ctx, s.db, bson.D{e("killCursors", c.Name()), e("cursors", append(bson.A{int64(77)}, cursorIDs...))})
	same(reply["cursorsKilled"], cursorIDs, "cursors killed")
	same(reply["cursorsNotFound"], bson.A{int64(77)}, "cursors not found")
	for _, cursor := range open {
		for range 5 {
			holds(cursor.Next(ctx), "the first batch is lost")
		}
		same(cursor.Next(ctx), false, "next of a killed cursor")
		fails(43, cursor.Err())
		// With a load balancer it has kept its connection until now.
		try(cursor.Close(ctx))
	}
}
