// The driver scenario for the `mongodb` package: scenario.mjs URI [--view VIEW] [--compressor NAME]

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { GridFSBucket, Long, MongoClient } from 'mongodb';
import { fails, gone, range, readArguments, run, same, sha256, verifyCommands, View } from './harness.mjs';

const { uri, view: wanted, compressor } = readArguments();
const options = { monitorCommands: true, serverSelectionTimeoutMS: 10_000 };
if (compressor) options.compressors = [compressor];

const client = new MongoClient(uri, options);
const view = new View(client);
const db = client.db(`drivers_node_${compressor ?? wanted}`);

/** An empty collection that exists, or one with these documents. */
async function collection(name, documents = []) {
  await db.dropCollection(name);
  const created = await db.createCollection(name);
  if (documents.length) await created.insertMany(documents);
  return created;
}

const checks = {
  async connect() {
    await client.connect();
    assert.equal((await db.admin().command({ ping: 1 })).ok, 1);
    await db.dropDatabase();
  },

  async compression() {
    // A later hello that does not ask repeats what the connection negotiated in its handshake.
    same((await db.admin().command({ hello: 1 })).compression, [compressor]);
  },

  async crud() {
    const c = await collection('crud');
    assert.equal((await c.insertOne({ _id: 1, n: 1, tag: 'a' })).insertedId, 1);
    const many = range(2, 11).map(i => ({ _id: i, n: i, tag: 'ab'[i % 2] }));
    assert.equal((await c.insertMany(many)).insertedCount, 9);
    assert.equal((await c.findOne({ _id: 7 })).n, 7);
    same((await c.find({ n: { $gte: 8 } }).sort({ _id: 1 }).toArray()).map(d => d._id), [8, 9, 10]);
    assert.equal((await c.updateOne({ _id: 1 }, { $inc: { n: 10 } })).modifiedCount, 1);
    assert.equal((await c.updateMany({ tag: 'b' }, { $set: { seen: true } })).modifiedCount, 4);
    assert.equal((await c.updateOne({ _id: 11 }, { $set: { n: 11 } }, { upsert: true })).upsertedId, 11);
    assert.equal((await c.replaceOne({ _id: 2 }, { replaced: true })).modifiedCount, 1);
    same(await c.findOne({ _id: 2 }), { _id: 2, replaced: true });
    assert.equal((await c.deleteOne({ _id: 3 })).deletedCount, 1);
    assert.equal((await c.deleteMany({ _id: { $in: [4, 5] } })).deletedCount, 2);
    assert.equal((await c.findOneAndUpdate({ _id: 1 }, { $inc: { n: 1 } }, { returnDocument: 'after' })).n, 12);
    same(await c.findOneAndReplace({ _id: 6 }, { r: 1 }, { returnDocument: 'after' }), { _id: 6, r: 1 });
    same(await c.findOneAndDelete({ _id: 6 }), { _id: 6, r: 1 });
    assert.equal(await c.countDocuments({}), 7);
    assert.equal(await c.estimatedDocumentCount(), 7);
    same((await c.distinct('tag')).sort(), ['a', 'b']);
  },

  async catalog() {
    const c = await collection('catalog', range(0, 5).map(i => ({ _id: i, k: i })));
    assert.equal(await c.createIndex({ k: 1 }, { unique: true }), 'k_1');
    same((await c.listIndexes().toArray()).map(i => i.name), ['_id_', 'k_1']);
    assert.ok((await db.listCollections().toArray()).some(found => found.name === 'catalog'));
    assert.ok((await db.admin().listDatabases()).databases.some(found => found.name === db.databaseName));
    assert.equal((await c.find({ k: 3 }).explain()).ok, 1);
    await c.rename('renamed', { dropTarget: true });
    assert.equal(await db.collection('renamed').countDocuments(), 5);
  },

  async bulk_write() {
    const c = await collection('bulk');
    const result = await c.bulkWrite([
      ...range(0, 1000).map(i => ({ insertOne: { document: { _id: i, n: 0 } } })),
      { updateOne: { filter: { _id: 0 }, update: { $set: { n: 5 } } } },
      { updateMany: { filter: {}, update: { $inc: { n: 1 } } } },
      { replaceOne: { filter: { _id: 1 }, replacement: { n: 7 } } },
      { deleteOne: { filter: { _id: 2 } } },
      { updateOne: { filter: { _id: -1 }, update: { $set: { n: 1 } }, upsert: true } },
    ]);
    const { insertedCount, modifiedCount, deletedCount, upsertedCount } = result;
    same([insertedCount, modifiedCount, deletedCount, upsertedCount], [1000, 1002, 1, 1]);
    same(await Promise.all([0, 1, 3].map(async i => (await c.findOne({ _id: i })).n)), [6, 7, 1]);
  },

  async cursor() {
    const c = await collection('cursor', range(0, 10_000).map(i => ({ _id: i, text: 'x'.repeat(50) })));
    const seen = [];
    for await (const document of c.find().sort({ _id: 1 }).batchSize(100)) seen.push(document._id);
    same(seen, range(0, 10_000));
  },

  async cursor_close() {
    const c = await collection('cursor_close', range(0, 100).map(i => ({ _id: i })));
    const cursor = c.find().sort({ _id: 1 }).batchSize(10);
    for (const i of range(0, 15)) assert.equal((await cursor.next())._id, i);
    const id = cursor.id;
    assert.ok(id, 'the cursor is exhausted already');
    await cursor.close();
    await gone(db, c.collectionName, Long.fromValue(id));
  },

  async aggregate() {
    const c = await collection('aggregate', range(0, 300).map(i => ({ _id: i, group: i % 3, n: i })));
    const pipeline = [{ $group: { _id: '$group', sum: { $sum: '$n' } } }, { $sort: { _id: 1 } }];
    same(await c.aggregate(pipeline).toArray(), [0, 1, 2].map(g => ({ _id: g, sum: 14_850 + 100 * g })));
    await c.aggregate([{ $match: { group: 1 } }, { $out: 'aggregate_out' }]).toArray();
    assert.equal(await db.collection('aggregate_out').countDocuments(), 100);
  },

  async read_options() {
    const c = await collection('read_options', [{ _id: 1 }]);
    for (const readPreference of ['secondaryPreferred', 'nearest', 'primaryPreferred']) {
      same(await c.findOne({}, { readPreference, readConcern: { level: 'majority' } }), { _id: 1 });
    }
    await client.withSession({ causalConsistency: true }, async session => {
      for (const i of range(2, 12)) {
        await c.insertOne({ _id: i }, { session });
        same(await c.findOne({ _id: i }, { session, readPreference: 'nearest' }), { _id: i });
      }
    });
  },

  async transaction_commit() {
    const [a, b] = [await collection('commit_a'), await collection('commit_b')];
    await client.withSession(async session => {
      const result = await session.withTransaction(async () => {
        await a.insertOne({ _id: 1 }, { session });
        await b.insertOne({ _id: 2 }, { session });
        assert.equal(await a.countDocuments({}, { session }), 1, 'count inside');
        assert.equal(await a.countDocuments({}), 0, 'count outside before the commit');
        return 'done';
      });
      assert.equal(result, 'done');
      await session.withTransaction(() => a.insertOne({ _id: 3 }, { session }));
    });
    same([await a.countDocuments(), await b.countDocuments()], [2, 1]);
  },

  async transaction_abort() {
    const c = await collection('abort');
    await client.withSession(async session => {
      const aborted = session.withTransaction(async () => {
        await c.insertOne({ _id: 1 }, { session });
        assert.equal(await c.countDocuments({}, { session }), 1, 'count inside');
        throw new RangeError('abort');
      });
      await assert.rejects(aborted, RangeError);
      assert.equal(await c.countDocuments(), 0, 'count after the abort');
      session.startTransaction();
      await c.insertOne({ _id: 2 }, { session });
      await session.abortTransaction();
      assert.equal(await c.countDocuments(), 0, 'count after the second abort');
    });
  },

  async transaction_conflict() {
    // Write conflicts reach the driver with their label, or withTransaction would not start over.
    const c = await collection('conflict', [{ _id: 1, n: 0 }]);
    const worker = () =>
      client.withSession(async session => {
        for (let i = 0; i < 3; i += 1) {
          await session.withTransaction(async () => {
            const { n } = await c.findOne({ _id: 1 }, { session });
            await c.updateOne({ _id: 1 }, { $set: { n: n + 1 } }, { session });
          });
        }
      });
    await Promise.all([worker(), worker(), worker(), worker()]);
    assert.equal((await c.findOne({ _id: 1 })).n, 12);
  },

  async transaction_cursor() {
    const c = await collection('transaction_cursor', range(0, 500).map(i => ({ _id: i })));
    await client.withSession(session =>
      session.withTransaction(async () => {
        const found = await c.find({}, { session }).sort({ _id: 1 }).batchSize(50).toArray();
        same(found.map(d => d._id), range(0, 500));
      }),
    );
  },

  async change_stream() {
    const c = await collection('change_stream');
    const stream = c.watch([], { maxAwaitTimeMS: 500 });
    const waiting = view.sent('getMore');
    const seen = [];
    const reading = (async () => {
      const deadline = Date.now() + 20_000;
      while (seen.length < 20 && Date.now() < deadline) {
        const change = await stream.tryNext();
        if (change) seen.push(change);
      }
    })();
    await waiting;
    const id = view.cursorId;
    for (const i of range(0, 20)) await c.insertOne({ _id: i });
    await reading;
    same(seen.map(change => change.fullDocument._id), range(0, 20));
    await stream.close();
    await gone(db, c.collectionName, Long.fromValue(id));
    const resumed = c.watch([], { resumeAfter: seen[9]._id });
    for (const i of range(10, 20)) assert.equal((await resumed.next()).documentKey._id, i);
    await resumed.close();
  },

  async large_document() {
    const c = await collection('large');
    const data = randomBytes(15 * 1024 * 1024);
    await c.insertOne({ _id: 1, data });
    assert.ok(data.equals((await c.findOne({ _id: 1 })).data.buffer), 'the document came back different');
  },

  async unacknowledged_write() {
    await collection('unacknowledged');
    // One socket only: the read comes right behind the write.
    const single = new MongoClient(uri, { ...options, maxPoolSize: 1 });
    const calm = new View(single);
    const c = single.db(db.databaseName).collection('unacknowledged');
    const silent = { writeConcern: { w: 0 } };
    for (const i of range(0, 100)) {
      assert.equal((await c.insertOne({ _id: i }, silent)).acknowledged, false);
      same(await c.findOne({ _id: i }), { _id: i });
    }
    await c.insertOne({ _id: 1 }, silent);
    await c.updateMany({}, { $set: { n: 1 } }, silent);
    assert.equal(await c.countDocuments({ n: 1 }), 100);
    calm.verifyCalm();
    await single.close();
  },

  async gridfs_file() {
    const bucket = new GridFSBucket(db);
    const data = randomBytes(20 * 1024 * 1024);
    const upload = bucket.openUploadStream('file');
    upload.end(data);
    await once(upload, 'finish');
    const chunks = await bucket.openDownloadStream(upload.id).toArray();
    assert.equal(sha256(Buffer.concat(chunks)), sha256(data));
    await bucket.delete(upload.id);
    assert.equal(await db.collection('fs.chunks').countDocuments(), 0);
  },

  commands: () => verifyCommands(db, wanted),

  async error_codes() {
    const c = await collection('error_codes', [{ _id: 1, n: 1 }]);
    same((await fails(11000, () => c.insertOne({ _id: 1 }))).keyValue, { _id: 1 });
    const bulk = await fails(11000, () => c.insertMany([{ _id: 2 }, { _id: 1 }, { _id: 3 }], { ordered: false }));
    same(bulk.writeErrors.map(e => [e.index, e.code]), [[1, 11000]]);
    assert.equal(bulk.result.insertedCount, 2);
    await fails(59, () => db.command({ noSuchCommand: 1 }));
    await fails(2, () => c.find({ $noSuchOperator: 1 }).toArray());
    await fails(50, () => c.find({ $where: 'sleep(1000) || true' }, { maxTimeMS: 50 }).toArray());
    assert.equal(await c.countDocuments(), 3);
  },

  async concurrency() {
    // Every reply carries the token of its request: one that went to the wrong promise shows.
    const document = i => ({ _id: i, text: `document ${i}`.repeat(20) });
    const c = await collection('concurrency', range(0, 50).map(document));
    const worker = async i => {
      for (let n = 0; n < 20; n += 1) {
        const token = `${i}:${n}:${process.hrtime.bigint()}`;
        const found = await c.findOne({ _id: i }, { projection: { text: 1, token: { $literal: token } } });
        same(found, { ...document(i), token });
      }
    };
    await Promise.all(range(0, 50).map(worker));
  },

  view: async () => view.verify(wanted),

  async close() {
    await db.dropDatabase();
    await client.close();
    same(view.serversLost, []);
  },
};

const loadBalanced = [
  'connect', 'crud', 'cursor', 'cursor_close', 'transaction_commit', 'transaction_abort', 'view', 'close',
];
const chosen = Object.entries(checks)
  .filter(([name]) => wanted !== 'loadbalanced' || loadBalanced.includes(name))
  .filter(([name]) => name !== 'compression' || compressor);
await run(chosen);
