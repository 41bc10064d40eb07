package main

// Documents: writing, finding, aggregating, and what the options of a command ask for.

import (
	"context"
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

func connect(ctx context.Context, s *scenario) {
	try(s.client.Ping(ctx, nil))
	holds(s.admin(ctx, bson.D{e("buildInfo", 1)})["version"] != "", "the server has no version")
	try(s.db.Drop(ctx))
}

func compression(ctx context.Context, s *scenario) {
	// A later hello that does not ask repeats what the connection negotiated in its handshake.
	var wanted any
	if s.compressor != "" {
		wanted = bson.A{s.compressor}
	}
	same(s.admin(ctx, bson.D{e("hello", 1)})["compression"], wanted, "negotiated compression")
}

func crud(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "crud")
	tagged := func(i int) bson.D { return bson.D{e("n", i), e("tag", string("ab"[i%2]))} }
	same(must(c.InsertOne(ctx, bson.D{e("_id", 1), e("n", 1), e("tag", "a")})).InsertedID, int32(1), "inserted id")
	same(len(must(c.InsertMany(ctx, numbered(11, tagged)[2:])).InsertedIDs), 9, "inserted")
	found := func(filter bson.D) (d bson.M) { try(c.FindOne(ctx, filter).Decode(&d)); return d }
	same(found(bson.D{e("_id", 7)})["n"], int32(7), "n")
	cursor, err := c.Find(ctx, bson.D{e("n", bson.M{"$gte": 8})}, options.Find().SetSort(bson.M{"_id": 1}))
	same(ids(ctx, cursor, err), []int{8, 9, 10}, "found")
	one := bson.D{e("_id", 1)}
	same(must(c.UpdateOne(ctx, one, bson.M{"$inc": bson.M{"n": 10}})).ModifiedCount, int64(1), "updated one")
	seen := bson.M{"$set": bson.M{"seen": true}}
	same(must(c.UpdateMany(ctx, bson.D{e("tag", "b")}, seen)).ModifiedCount, int64(4), "updated many")
	upsert := options.UpdateOne().SetUpsert(true)
	upserted := must(c.UpdateOne(ctx, bson.D{e("_id", 11)}, bson.M{"$set": bson.M{"n": 11}}, upsert))
	same(upserted.UpsertedID, int32(11), "upserted id")
	replacement := bson.D{e("replaced", true)}
	same(must(c.ReplaceOne(ctx, bson.D{e("_id", 2)}, replacement)).ModifiedCount, int64(1), "replaced")
	same(found(bson.D{e("_id", 2)}), bson.M{"_id": int32(2), "replaced": true}, "replaced document")
	same(must(c.DeleteOne(ctx, bson.D{e("_id", 3)})).DeletedCount, int64(1), "deleted one")
	several := bson.D{e("_id", bson.M{"$in": bson.A{4, 5}})}
	same(must(c.DeleteMany(ctx, several)).DeletedCount, int64(2), "deleted many")

	var d bson.M
	increment := bson.M{"$inc": bson.M{"n": 1}}
	after := options.FindOneAndUpdate().SetReturnDocument(options.After)
	try(c.FindOneAndUpdate(ctx, one, increment, after).Decode(&d))
	same(d["n"], int32(12), "found and updated")
	six, wanted := bson.D{e("_id", 6)}, bson.M{"_id": int32(6), "r": int32(1)}
	afterReplace := options.FindOneAndReplace().SetReturnDocument(options.After)
	d = nil
	try(c.FindOneAndReplace(ctx, six, bson.D{e("r", 1)}, afterReplace).Decode(&d))
	same(d, wanted, "found and replaced")
	d = nil
	try(c.FindOneAndDelete(ctx, six).Decode(&d))
	same(d, wanted, "found and deleted")
	same(c.FindOne(ctx, six).Err(), mongo.ErrNoDocuments, "error of a document that is gone")
	same(count(ctx, c, bson.D{}), 7, "count")
	same(must(c.EstimatedDocumentCount(ctx)), int64(7), "estimated count")
	var tags []string
	try(c.Distinct(ctx, "tag", bson.D{}).Decode(&tags))
	slices.Sort(tags)
	same(tags, []string{"a", "b"}, "distinct")
}

func catalog(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "catalog", numbered(5, func(i int) bson.D { return bson.D{e("k", i)} })...)
	unique := mongo.IndexModel{Keys: bson.D{e("k", 1)}, Options: options.Index().SetUnique(true)}
	same(must(c.Indexes().CreateOne(ctx, unique)), "k_1", "index name")
	same(indexNames(ctx, c), []string{"_id_", "k_1"}, "indexes")
	holds(slices.Contains(must(s.db.ListCollectionNames(ctx, bson.D{})), "catalog"), "the collection is not listed")
	databases := must(s.client.ListDatabaseNames(ctx, bson.D{}))
	holds(slices.Contains(databases, s.db.Name()), "the database is not listed")
	try(c.Indexes().DropOne(ctx, "k_1"))
	same(indexNames(ctx, c), []string{"_id_"}, "indexes after the drop")
	from, to := s.db.Name()+".catalog", s.db.Name()+".renamed"
	s.admin(ctx, bson.D{e("renameCollection", from), e("to", to), e("dropTarget", true)})
	same(count(ctx, s.db.Collection("renamed"), bson.D{}), 5, "count after rename")
	try(s.db.Collection("renamed").Drop(ctx))
	holds(!slices.Contains(must(s.db.ListCollectionNames(ctx, bson.D{})), "renamed"), "the dropped collection is listed")
}

func indexNames(ctx context.Context, c *mongo.Collection) []string {
	names := []string{}
	for _, index := range must(c.Indexes().ListSpecifications(ctx)) {
		names = append(names, index.Name)
	}
	slices.Sort(names)
	return names
}

func bulkWrite(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "bulk")
	models := []mongo.WriteModel{}
	for _, d := range numbered(1000, func(int) bson.D { return bson.D{e("n", 0)} }) {
		models = append(models, mongo.NewInsertOneModel().SetDocument(d))
	}
	set := func(n int) bson.M { return bson.M{"$set": bson.M{"n": n}} }
	increment := bson.M{"$inc": bson.M{"n": 1}}
	models = append(models,
		mongo.NewUpdateOneModel().SetFilter(bson.M{"_id": 0}).SetUpdate(set(5)),
		mongo.NewUpdateManyModel().SetFilter(bson.M{}).SetUpdate(increment),
		mongo.NewReplaceOneModel().SetFilter(bson.M{"_id": 1}).SetReplacement(bson.M{"n": 7}),
		mongo.NewDeleteOneModel().SetFilter(bson.M{"_id": 2}),
		mongo.NewUpdateOneModel().SetFilter(bson.M{"_id": -1}).SetUpdate(set(1)).SetUpsert(true))
	r := must(c.BulkWrite(ctx, models))
	counts := []int64{r.InsertedCount, r.ModifiedCount, r.DeletedCount, r.UpsertedCount}
	same(counts, []int64{1000, 1002, 1, 1}, "inserted, modified, deleted, upserted")
	values := []int64{}
	for _, i := range []int{0, 1, 3} {
		values = append(values, must(c.FindOne(ctx, bson.M{"_id": i}).Raw()).Lookup("n").AsInt64())
	}
	same(values, []int64{6, 7, 1}, "values")

	// In any order: each of the two that fail is named, all others are done.
	inserts := []mongo.WriteModel{}
	for _, i := range []int{5000, 10, 5001, 11, 5002} {
		inserts = append(inserts, mongo.NewInsertOneModel().SetDocument(bson.M{"_id": i}))
	}
	_, err := c.BulkWrite(ctx, inserts, options.BulkWrite().SetOrdered(false))
	same(indexesOf(err), []int{1, 3}, "indexes of the writes that failed")
	same(count(ctx, c, bson.D{e("_id", bson.M{"$gte": 5000})}), 3, "count of those that did not")
}

func bulkWriteClient(ctx context.Context, s *scenario) {
	if s.admin(ctx, bson.D{e("hello", 1)})["maxWireVersion"].(int32) < 25 {
		panic(lacking("the command bulkWrite came with server 8.0"))
	}
	c, d := s.collection(ctx, "bulk_a"), s.collection(ctx, "bulk_b")
	insert := func(c *mongo.Collection, i int) mongo.ClientBulkWrite {
		model := mongo.NewClientInsertOneModel().SetDocument(bson.M{"_id": i})
		return mongo.ClientBulkWrite{Database: s.db.Name(), Collection: c.Name(), Model: model}
	}
	remove := mongo.NewClientDeleteOneModel().SetFilter(bson.M{"_id": 1})
	r := must(s.client.BulkWrite(ctx, []mongo.ClientBulkWrite{insert(c, 1), insert(d, 2),
		{Database: s.db.Name(), Collection: c.Name(), Model: remove}}))
	same([]int64{r.InsertedCount, r.DeletedCount}, []int64{2, 1}, "inserted, deleted")
	same([]int{count(ctx, c, bson.D{}), count(ctx, d, bson.D{})}, []int{0, 1}, "counts")
}

func aggregate(ctx context.Context, s *scenario) {
	grouped := func(i int) bson.D { return bson.D{e("group", i%3), e("n", i)} }
	c := s.collection(ctx, "aggregate", numbered(300, grouped)...)
	group := bson.D{e("_id", "$group"), e("sum", bson.M{"$sum": "$n"})}
	pipeline := bson.A{bson.M{"$group": group}, bson.M{"$sort": bson.M{"_id": 1}}}
	var groups []bson.M
	try(must(c.Aggregate(ctx, pipeline)).All(ctx, &groups))
	wanted := []bson.M{}
	for g := range 3 {
		wanted = append(wanted, bson.M{"_id": int32(g), "sum": int32(14850 + 100*g)})
	}
	same(groups, wanted, "groups")

	sorted := bson.A{bson.M{"$sort": bson.M{"_id": 1}}}
	before := s.view.count("getMore")
	cursor, err := c.Aggregate(ctx, sorted, options.Aggregate().SetBatchSize(25).SetAllowDiskUse(true))
	same(ids(ctx, cursor, err), upTo(300), "ids")
	holds(s.view.count("getMore")-before >= 11, "the result came in too few batches")
}

func aggregateOut(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "aggregate_source", numbered(30, func(i int) bson.D { return bson.D{e("group", i%3)} })...)
	match := bson.M{"$match": bson.M{"group": 1}}
	out := must(c.Aggregate(ctx, bson.A{match, bson.M{"$out": "aggregate_out"}}))
	same(out.Next(ctx), false, "$out has a document")
	try(out.Err())
	try(out.Close(ctx))
	target := s.db.Collection("aggregate_out")
	same(count(ctx, target, bson.D{}), 10, "count after $out")
	merge := bson.D{e("into", "aggregate_out"), e("whenMatched", "fail"), e("whenNotMatched", "insert")}
	others := bson.M{"$match": bson.M{"group": bson.M{"$ne": 1}}}
	try(must(c.Aggregate(ctx, bson.A{others, bson.M{"$merge": merge}})).Close(ctx))
	same(count(ctx, target, bson.D{}), 30, "count after $merge")
	_, err := c.Aggregate(ctx, bson.A{match, bson.M{"$merge": merge}})
	fails(11000, err)
}

func collation(ctx context.Context, s *scenario) {
	words := []string{"b", "A", "a", "B", "c10", "c9"}
	c := s.collection(ctx, "collation", numbered(len(words), func(i int) bson.D { return bson.D{e("w", words[i])} })...)
	blind := &options.Collation{Locale: "en", Strength: 2}
	numeric := &options.Collation{Locale: "en", NumericOrdering: true}
	a := bson.D{e("w", "a")}
	cursor, err := c.Find(ctx, a, options.Find().SetCollation(blind).SetSort(bson.M{"_id": 1}))
	same(ids(ctx, cursor, err), []int{1, 2}, "found")
	c10 := bson.D{e("w", bson.M{"$gte": "c"})}
	cursor, err = c.Find(ctx, c10, options.Find().SetCollation(numeric).SetSort(bson.M{"w": 1}))
	same(ids(ctx, cursor, err), []int{5, 4}, "in numeric order")
	same(must(c.CountDocuments(ctx, a, options.Count().SetCollation(blind))), int64(2), "count")
	var distinct []string
	try(c.Distinct(ctx, "w", bson.D{}, options.Distinct().SetCollation(blind)).Decode(&distinct))
	same(len(distinct), 4, "distinct words")
	set := bson.M{"$set": bson.M{"seen": true}}
	many := options.UpdateMany().SetCollation(blind)
	same(must(c.UpdateMany(ctx, a, set, many)).ModifiedCount, int64(2), "updated")
	same(must(c.DeleteMany(ctx, a)).DeletedCount, int64(1), "deleted without a collation")
}

func explain(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "explain", numbered(20, func(i int) bson.D { return bson.D{e("k", i)} })...)
	explained := func(command bson.D) bson.M {
		return run(ctx, s.db, bson.D{e("explain", command), e("verbosity", "executionStats")})
	}
	found := explained(bson.D{e("find", "explain"), e("filter", bson.M{"k": bson.M{"$lt": 5}})})
	stats := must(bson.Marshal(found["executionStats"]))
	same(bson.Raw(stats).Lookup("nReturned").AsInt64(), int64(5), "nReturned")
	holds(found["queryPlanner"] != nil, "find has no queryPlanner")
	one := bson.D{e("q", bson.M{}), e("limit", 0)}
	removal := explained(bson.D{e("delete", "explain"), e("deletes", bson.A{one})})
	holds(removal["queryPlanner"] != nil, "delete has no queryPlanner")
	pipeline := bson.A{bson.M{"$match": bson.M{"k": 3}}}
	explained(bson.D{e("aggregate", "explain"), e("pipeline", pipeline), e("cursor", bson.M{})})
	explained(bson.D{e("count", "explain"), e("query", bson.M{"k": 3})})
	same(count(ctx, c, bson.D{}), 20, "count after an explained delete")
}

func letAndComment(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "let", numbered(50, func(i int) bson.D { return bson.D{e("n", i)} })...)
	equal := bson.D{e("$expr", bson.M{"$gte": bson.A{"$n", "$$least"}})}
	let := bson.M{"least": 20}
	o := options.Find().SetLet(let).SetComment("tale of the find").SetBatchSize(5).SetSort(bson.M{"_id": 1})
	cursor := must(c.Find(ctx, equal, o))
	holds(cursor.Next(ctx), "nothing found")
	same(id(cursor.Current), 20, "first id")
	originating := s.idleCursor(ctx, cursor.ID()).Lookup("cursor", "originatingCommand", "comment")
	same(originating.StringValue(), "tale of the find", "comment that the server keeps")
	same(ids(ctx, cursor, nil), span(21, 50), "other ids")
	pipeline := bson.A{bson.M{"$match": equal}, bson.M{"$sort": bson.M{"_id": 1}}}
	found, err := c.Aggregate(ctx, pipeline, options.Aggregate().SetLet(bson.M{"least": 45}).SetComment("another"))
	same(ids(ctx, found, err), span(45, 50), "aggregated ids")
	update := bson.A{bson.M{"$set": bson.M{"least": "$$least"}}}
	many := options.UpdateMany().SetLet(let).SetComment(bson.M{"of": "an update"})
	same(must(c.UpdateMany(ctx, equal, update, many)).ModifiedCount, int64(30), "updated")
	same(count(ctx, c, bson.D{e("least", 20)}), 30, "count of what was set")
	same(must(c.DeleteMany(ctx, equal, options.DeleteMany().SetLet(let))).DeletedCount, int64(30), "deleted")
}

// idleCursor is what the server says about a cursor that waits for its getMore.
func (s *scenario) idleCursor(ctx context.Context, cursor int64) bson.Raw {
	current := bson.M{"$currentOp": bson.M{"idleCursors": true, "allUsers": true}}
	match := bson.M{"$match": bson.M{"type": "idleCursor", "cursor.cursorId": cursor}}
	found := must(s.client.Database("admin").Aggregate(ctx, bson.A{current, match}))
	holds(found.Next(ctx), "the server does not know the cursor")
	document := append(bson.Raw{}, found.Current...)
	try(found.Close(ctx))
	return document
}

func hint(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "hint", numbered(20, func(i int) bson.D { return bson.D{e("k", i), e("l", -i)} })...)
	must(c.Indexes().CreateOne(ctx, mongo.IndexModel{Keys: bson.D{e("k", 1)}}))
	must(c.Indexes().CreateOne(ctx, mongo.IndexModel{Keys: bson.D{e("l", 1)}}))
	filter := bson.D{e("k", bson.M{"$gte": 10})}
	// What no sort asks to be in order comes in the order of the index.
	cursor, err := c.Find(ctx, filter, options.Find().SetHint("l_1"))
	found := ids(ctx, cursor, err)
	same(found[0], 19, "first in the order of the index")
	cursor, err = c.Find(ctx, filter, options.Find().SetHint(bson.D{e("k", 1)}))
	same(ids(ctx, cursor, err), span(10, 20), "ids")
	cursor, err = c.Aggregate(ctx, bson.A{bson.M{"$match": filter}}, options.Aggregate().SetHint("l_1"))
	same(ids(ctx, cursor, err), found, "aggregated ids")
	_, err = c.Find(ctx, filter, options.Find().SetHint("none_1"))
	fails(2, err)
	set := bson.M{"$set": bson.M{"seen": true}}
	_, err = c.UpdateOne(ctx, filter, set, options.UpdateOne().SetHint("none_1"))
	fails(2, err)
	same(must(c.UpdateOne(ctx, filter, set, options.UpdateOne().SetHint("l_1"))).ModifiedCount, int64(1), "updated")
	_, err = c.DeleteOne(ctx, filter, options.DeleteOne().SetHint("none_1"))
	fails(2, err)
	same(must(c.DeleteOne(ctx, filter, options.DeleteOne().SetHint("l_1"))).DeletedCount, int64(1), "deleted")
	same(count(ctx, c, bson.D{e("_id", 19)}), 0, "count of the last")
}

func errorCodes(ctx context.Context, s *scenario) {
	c := s.collection(ctx, "error_codes", bson.D{e("_id", 1), e("n", 1)})
	_, err := c.InsertOne(ctx, bson.D{e("_id", 1)})
	fails(11000, err)
	holds(mongo.IsDuplicateKeyError(err), "the error is not of a duplicate key")
	keyValue := err.(mongo.WriteException).WriteErrors[0].Raw.Lookup("keyValue", "_id")
	same(keyValue.AsInt64(), int64(1), "keyValue")
	_, err = c.InsertMany(ctx, []any{bson.M{"_id": 2}, bson.M{"_id": 1}, bson.M{"_id": 3}},
		options.InsertMany().SetOrdered(false))
	same(indexesOf(err), []int{1}, "indexes of the writes that failed")
	fails(59, s.db.RunCommand(ctx, bson.D{e("noSuchCommand", 1)}).Err())
	_, err = c.Find(ctx, bson.D{e("$noSuchOperator", 1)})
	fails(2, err)
	holds(strings.Contains(err.Error(), "$noSuchOperator"), "the text of the error is lost")
	fails(26, s.db.RunCommand(ctx, bson.D{e("listIndexes", "no_such_collection")}).Err())
	fails(73, s.db.RunCommand(ctx, bson.D{e("create", "")}).Err())
	same(count(ctx, c, bson.D{}), 3, "count")
}

// indexesOf is which writes failed because of a duplicate key.
func indexesOf(err error) []int {
	indexes := []int{}
	failure, ok := err.(mongo.BulkWriteException)
	holds(ok, "the error is not of a bulk write")
	for _, one := range failure.WriteErrors {
		same(one.Code, 11000, "code")
		indexes = append(indexes, one.Index)
	}
	return indexes
}
