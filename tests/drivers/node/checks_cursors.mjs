// Cursors: batches, options, and their end.

import assert from 'node:assert/strict';
import { fails, gone, range, same } from './harness.mjs';

export const cursors = s => ({
  async cursor() {
    const c = await s.collection('cursor', range(0, 2000).map(i => ({ _id: i, n: -i, text: 'x'.repeat(50) })));
    const seen = [];
    const found = c.find({}, { projection: { text: 0 } }).sort({ n: 1 }).skip(10).limit(1500).batchSize(100);
    for await (const document of found) seen.push(document);
    same(seen, range(490, 1990).reverse().map(i => ({ _id: i, n: -i })));
  },

  async cursor_close() {
    const c = await s.collection('cursor_close', range(0, 100).map(i => ({ _id: i })));
    const cursor = c.find().sort({ _id: 1 }).batchSize(10);
    for (const i of range(0, 15)) assert.equal((await cursor.next())._id, i);
    const id = cursor.id;
    assert.ok(id, 'the cursor is exhausted already');
    await cursor.close();
    await gone(s.db, c.collectionName, s.driver.Long.fromValue(id));
  },

  async cursor_timeout_free() {
    const c = await s.collection('timeout_free', range(0, 100).map(i => ({ _id: i })));
    // The server keeps such a cursor for as long as its session lives.
    const { result, commands } = await s.view.record('find', () =>
      s.client.withSession(session =>
        c.find({}, { session, noCursorTimeout: true }).sort({ _id: 1 }).batchSize(10).toArray(),
      ),
    );
    same(result.map(d => d._id), range(0, 100));
    same(commands.map(command => command.noCursorTimeout), [true]);
  },

  async aggregate() {
    const c = await s.collection('aggregate', range(0, 3000).map(i => ({ _id: i, group: i % 300, n: i })));
    const pipeline = [{ $group: { _id: '$group', sum: { $sum: '$n' } } }, { $sort: { _id: 1 } }];
    const wanted = range(0, 300).map(g => ({ _id: g, sum: 13_500 + 10 * g }));
    same(await c.aggregate(pipeline, { batchSize: 50 }).toArray(), wanted);
    same(await c.aggregate(pipeline, { allowDiskUse: true, cursor: { batchSize: 0 } }).toArray(), wanted);
  },

  async aggregate_out() {
    const c = await s.collection('aggregate_from', range(0, 300).map(i => ({ _id: i, group: i % 3 })));
    const out = await s.collection('aggregate_out', [{ _id: -1 }]);
    const merged = await s.collection('aggregate_merged', [{ _id: 1, old: 1 }]);
    same(await c.aggregate([{ $match: { group: 1 } }, { $out: 'aggregate_out' }]).toArray(), []);
    same([await out.countDocuments(), await out.findOne({ _id: -1 })], [100, null]);
    const merge = { $merge: { into: 'aggregate_merged', whenMatched: 'merge' } };
    await c.aggregate([{ $match: { group: 1 } }, merge]).toArray();
    assert.equal(await merged.countDocuments(), 100);
    same(await merged.findOne({ _id: 1 }), { _id: 1, old: 1, group: 1 });
  },

  async collation() {
    const c = await s.collection('collation', ['b', 'A', 'a', 'B', 'ä'].map(_id => ({ _id })));
    const collation = { locale: 'de', strength: 2 };
    same((await c.find({ _id: 'a' }, { collation }).toArray()).map(d => d._id).sort(), ['A', 'a']);
    const first = await c.find().sort({ _id: 1 }).collation({ locale: 'de', strength: 1 }).next();
    assert.ok('Aaä'.includes(first._id), first._id);
    assert.equal(await c.countDocuments({ _id: 'B' }, { collation }), 2);
    assert.equal((await c.deleteMany({ _id: 'b' }, { collation })).deletedCount, 2);
    same(await c.distinct('_id', { _id: 'A' }, { collation }), ['A']);
    const folded = await s.collection('collation_default', [{ _id: 'x' }], { collation });
    same(await folded.findOne({ _id: 'X' }), { _id: 'x' });
  },

  async explain() {
    const c = await s.collection('explain', range(0, 5).map(i => ({ _id: i, k: i })));
    const explained = await c.find({ k: 3 }).explain('executionStats');
    same([explained.ok, explained.executionStats.nReturned], [1, 1]);
    const aggregated = await c.aggregate([{ $match: { k: { $gte: 3 } } }]).explain('executionStats');
    assert.equal(aggregated.executionStats.totalDocsExamined, 5);
  },

  async let_and_comment() {
    const c = await s.collection('comment', range(0, 10).map(i => ({ _id: i, n: i })));
    const greater = { $expr: { $gt: ['$n', '$$limit'] } };
    await s.db.command({ profile: 2 });
    try {
      const found = c.find(greater, { let: { limit: 6 }, comment: 'tag find' }).batchSize(2);
      same((await found.toArray()).map(d => d._id).sort(), [7, 8, 9]);
      const update = { $set: { seen: 1 } };
      assert.equal((await c.updateMany(greater, update, { let: { limit: 5 }, comment: 'tag update' })).modifiedCount, 4);
      assert.equal((await c.deleteMany(greater, { let: { limit: 7 }, comment: 'tag delete' })).deletedCount, 2);
      const options = { let: { limit: 4 }, comment: { tag: 'aggregate' } };
      same(await c.aggregate([{ $match: greater }, { $count: 'n' }], options).toArray(), [{ n: 3 }]);
      await c.insertOne({ _id: 11 }, { comment: 'tag insert' });
    } finally {
      await s.db.command({ profile: 0 });
    }
    const profile = await s.db.collection('system.profile').find({ ns: c.namespace }).toArray();
    // A getMore carries the comment of its find.
    const wanted = ['tag find', 'tag find', 'tag update', 'tag delete', { tag: 'aggregate' }, 'tag insert'];
    const sorted = comments => comments.map(comment => JSON.stringify(comment)).sort();
    same(sorted(profile.map(entry => entry.command.comment)), sorted(wanted));
  },

  async hint() {
    const c = await s.collection('hint', range(0, 20).map(i => ({ _id: i, a: i, b: i })));
    await c.createIndex({ a: 1 });
    await c.createIndex({ b: 1 }, { name: 'by_b' });
    const query = { a: 3, b: 3 };
    for (const [wanted, hint] of [['by_b', 'by_b'], ['a_1', { a: 1 }], ['_id_', { _id: 1 }]]) {
      same(await c.find(query, { hint }).toArray(), [{ _id: 3, ...query }]);
      const { queryPlanner } = await c.find(query, { hint }).explain();
      assert.ok(JSON.stringify(queryPlanner.winningPlan).includes(`"indexName":"${wanted}"`), wanted);
    }
    assert.equal((await c.updateOne(query, { $set: { n: 1 } }, { hint: 'by_b' })).modifiedCount, 1);
    assert.equal((await c.deleteOne(query, { hint: { a: 1 } })).deletedCount, 1);
    await fails(2, () => c.find(query, { hint: 'no_such_index' }).toArray());
  },

  async list_cursors() {
    const names = range(10, 34).map(i => `list_${i}`);
    await Promise.all(names.map(name => s.db.collection(name).insertOne({})));
    const listed = await s.view.record('getMore', () =>
      s.db.listCollections({ name: /^list_/ }, { batchSize: 7 }).toArray(),
    );
    same(listed.result.map(d => d.name).sort(), names);
    assert.ok(listed.commands.length >= 3, 'several batches of collections');
    const c = s.db.collection(names[0]);
    await c.createIndexes(range(0, 12).map(i => ({ key: { [`k${i}`]: 1 }, name: `${i}` })));
    const indexes = await s.view.record('getMore', () => c.listIndexes({ batchSize: 4 }).toArray());
    same(indexes.result.map(d => d.name), ['_id_', ...range(0, 12).map(String)]);
    assert.ok(indexes.commands.length >= 3, 'several batches of indexes');
  },

  async kill_cursors() {
    const c = await s.collection('kill_cursors', range(0, 100).map(i => ({ _id: i })));
    const found = range(0, 3).map(() => c.find().batchSize(10));
    for (const one of found) await one.next();
    const ids = found.map(one => s.driver.Long.fromValue(one.id));
    const unknown = s.driver.Long.fromNumber(1234567);
    const reply = await s.db.command(
      { killCursors: c.collectionName, cursors: [ids[0], unknown, ids[1]] },
      { promoteLongs: false },
    );
    const text = longs => longs.map(String).sort();
    same([text(reply.cursorsKilled), text(reply.cursorsNotFound)], [text(ids.slice(0, 2)), text([unknown])]);
    same([reply.cursorsAlive, reply.cursorsUnknown], [[], []]);
    for (const one of found.slice(0, 2)) await fails(43, () => one.toArray());
    assert.equal((await found[2].toArray()).length, 99);
  },

  async tailable() {
    const documents = range(0, 5).map(i => ({ _id: i }));
    const c = await s.collection('tailable', documents, { capped: true, size: 100_000 });
    const options = { tailable: true, awaitData: true, maxAwaitTimeMS: 500, batchSize: 2 };
    const found = c.find({}, options);
    const take = async () => {
      const seen = [];
      for (let i = 0; i < 5; i += 1) seen.push((await found.next())._id);
      return seen;
    };
    same(await take(), range(0, 5));
    const waiting = s.view.sent('getMore');
    const reading = take();
    await waiting;
    for (const i of range(5, 10)) await c.insertOne({ _id: i });
    same(await reading, range(5, 10));
    const { id, closed } = found;
    assert.equal(closed, false);
    await found.close();
    await gone(s.db, c.collectionName, s.driver.Long.fromValue(id));
  },
});
