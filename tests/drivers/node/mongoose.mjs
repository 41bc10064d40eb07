// The driver scenario for mongoose: mongoose.mjs URI [--view VIEW] [--compressor NAME] [--only NAME,...]
// Through its models where it has an own way; the rest goes to the `mongodb` package of its own, as everybody's `connection.db`.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { on } from 'node:events';
import mongoose from 'mongoose';
import { checks } from './checks.mjs';
import { fails, gone, range, readArguments, run, same, View } from './harness.mjs';

const { uri, view: wanted, compressor, only } = readArguments();
const { Long } = mongoose.mongo;
const options = {
  monitorCommands: true,
  serverSelectionTimeoutMS: 10_000,
  dbName: `drivers_mongoose_${compressor ?? wanted}`,
};
if (compressor) options.compressors = [compressor];

/** Opens a connection; its MongoClient exists as soon as `openUri` has been called, so that the view misses nothing. */
async function open(extra = {}) {
  const connection = mongoose.createConnection();
  const opening = connection.openUri(uri, { ...options, ...extra });
  const view = new View(connection.getClient());
  await opening;
  return { connection, view };
}

let connection;

const fields = { _id: Number, n: Number, tag: String, text: String, data: Buffer };
const settings = { versionKey: false, autoCreate: false, autoIndex: false };
const schema = new mongoose.Schema(fields, settings);

/** A model whose collection exists and is empty, or has these documents. */
async function model(name, documents = []) {
  const made = connection.model(name, schema, name);
  await connection.dropCollection(name);
  await made.createCollection();
  if (documents.length) await made.insertMany(documents);
  return made;
}

const stage = {
  driver: mongoose.mongo,
  wanted,
  compressor,

  async connect() {
    ({ connection, view: stage.view } = await open());
    stage.client = connection.getClient();
    stage.db = connection.db;
  },
  close: () => connection.close(),

  /** Another client, to be closed. */
  open: async extra => (await open(extra)).connection.getClient(),

  /** An empty collection that exists, or one with these documents. */
  async collection(name, documents = [], extra = {}) {
    await connection.dropCollection(name);
    await connection.createCollection(name, extra);
    const made = stage.db.collection(name);
    if (documents.length) await made.insertMany(documents);
    return made;
  },
};

const models = {
  async crud() {
    const M = await model('crud');
    await M.create({ _id: 1, n: 1, tag: 'a' });
    assert.equal((await M.insertMany(range(2, 11).map(i => ({ _id: i, n: i, tag: 'ab'[i % 2] })))).length, 9);
    assert.equal((await M.findById(7)).n, 7);
    same((await M.find({ n: { $gte: 8 } }).sort('_id').lean()).map(d => d._id), [8, 9, 10]);
    const saved = await M.findById(1);
    saved.n += 10;
    await saved.save();
    assert.equal((await M.updateMany({ tag: 'b' }, { text: 'seen' })).modifiedCount, 4);
    assert.equal((await M.updateOne({ _id: 11 }, { n: 11 }, { upsert: true })).upsertedId, 11);
    assert.equal((await M.replaceOne({ _id: 2 }, { text: 'replaced' })).modifiedCount, 1);
    same(await M.findById(2).lean(), { _id: 2, text: 'replaced' });
    assert.equal((await M.deleteOne({ _id: 3 })).deletedCount, 1);
    assert.equal((await M.deleteMany({ _id: { $in: [4, 5] } })).deletedCount, 2);
    assert.equal((await M.findByIdAndUpdate(1, { $inc: { n: 1 } }, { returnDocument: 'after' })).n, 12);
    assert.equal((await M.findByIdAndDelete(6))._id, 6);
    assert.equal(await M.countDocuments(), 7);
    assert.equal(await M.estimatedDocumentCount(), 7);
    same((await M.distinct('tag')).sort(), ['a', 'b']);
  },

  async bulk_write() {
    const M = await model('bulk');
    const { insertedCount, modifiedCount, deletedCount } = await M.bulkWrite([
      ...range(0, 1000).map(i => ({ insertOne: { document: { _id: i, n: 0 } } })),
      { updateMany: { filter: {}, update: { $inc: { n: 1 } } } },
      { deleteOne: { filter: { _id: 2 } } },
    ]);
    same([insertedCount, modifiedCount, deletedCount], [1000, 1000, 1]);
    await M.bulkSave((await M.find({ _id: { $lt: 2 } })).map(document => document.set('n', 9)));
    assert.equal(await M.countDocuments({ n: 9 }), 2);
  },

  async cursor() {
    const M = await model('cursor', range(0, 10_000).map(i => ({ _id: i, text: 'x'.repeat(50) })));
    const seen = [];
    for await (const document of M.find().sort('_id').lean().cursor({ batchSize: 100 })) seen.push(document._id);
    same(seen, range(0, 10_000));
  },

  async cursor_close() {
    const M = await model('cursor_close', range(0, 100).map(i => ({ _id: i })));
    const cursor = M.find().sort('_id').cursor({ batchSize: 10 });
    for (const i of range(0, 15)) assert.equal((await cursor.next())._id, i);
    const { id } = cursor.cursor;
    assert.ok(id, 'the cursor is exhausted already');
    await cursor.close();
    await gone(connection.db, 'cursor_close', Long.fromValue(id));
  },

  async aggregate() {
    const M = await model('aggregate', range(0, 300).map(i => ({ _id: i, n: i })));
    const groups = M.aggregate().group({ _id: { $mod: ['$n', 3] }, sum: { $sum: '$n' } }).sort('_id');
    same(await groups, [0, 1, 2].map(g => ({ _id: g, sum: 14_850 + 100 * g })));
  },

  async transaction_commit() {
    const [A, B] = [await model('commit_a'), await model('commit_b')];
    await connection.transaction(async session => {
      await A.create([{ _id: 1 }], { session });
      await new B({ _id: 2 }).save({ session });
      assert.equal(await A.countDocuments().session(session), 1, 'count inside');
      assert.equal(await A.countDocuments(), 0, 'count outside before the commit');
    });
    same([await A.countDocuments(), await B.countDocuments()], [1, 1]);
  },

  async transaction_abort() {
    const M = await model('abort');
    const session = await connection.startSession();
    const aborted = session.withTransaction(async () => {
      await M.create([{ _id: 1 }], { session });
      assert.equal(await M.countDocuments().session(session), 1, 'count inside');
      throw new RangeError('abort');
    });
    await assert.rejects(aborted, RangeError);
    await session.endSession();
    assert.equal(await M.countDocuments(), 0);
  },

  async change_stream() {
    // To close a stream that waits, the driver sends killCursors. Behind a load balancer it does so on the very socket on
    // which the getMore waits, takes the reply of the one for that of the other, and mixes up all that come after.
    if (wanted === 'loadbalanced') return native.change_stream();
    const M = await model('change_stream');
    const stream = M.watch([], { maxAwaitTimeMS: 500 });
    // As an event emitter: mongoose's own way, and the driver's push mode.
    const seen = [];
    const waiting = stage.view.sent('getMore');
    const changes = on(stream, 'change', { signal: AbortSignal.timeout(20_000) });
    await waiting;
    const id = stage.view.cursorId;
    for (const i of range(0, 20)) await M.create({ _id: i });
    for await (const [change] of changes) {
      seen.push(change.fullDocument._id);
      if (seen.length === 20) break;
    }
    same(seen, range(0, 20));
    await stream.close();
    await gone(connection.db, 'change_stream', Long.fromValue(id));
  },

  async large_document() {
    const M = await model('large');
    const data = randomBytes(15 * 1024 * 1024);
    await M.create({ _id: 1, data });
    assert.ok(data.equals((await M.findById(1)).data), 'the document came back different');
  },

  async unacknowledged_write() {
    await model('unacknowledged');
    // One socket only: the read comes right behind the write.
    const single = await open({ maxPoolSize: 1 });
    const silent = new mongoose.Schema(fields, { ...settings, writeConcern: { w: 0 } });
    const M = single.connection.model('unacknowledged', silent, 'unacknowledged');
    for (const i of range(0, 100)) {
      await new M({ _id: i }).save();
      same(await M.findById(i).lean(), { _id: i });
    }
    single.view.verifyCalm();
    await single.connection.close();
  },

  async error_codes() {
    const M = await model('error_codes', [{ _id: 1 }]);
    same((await fails(11000, () => M.create({ _id: 1 }))).keyValue, { _id: 1 });
    await fails(11000, () => M.insertMany([{ _id: 2 }, { _id: 1 }], { ordered: false }));
    await fails(2, () => M.find({ $noSuchOperator: 1 }).setOptions({ strictQuery: false }).lean());
    assert.equal(await M.countDocuments(), 2);
  },

  async concurrency() {
    // Every reply carries the token of its request: one that went to the wrong promise shows.
    const M = await model('concurrency', range(0, 50).map(i => ({ _id: i, n: i })));
    const worker = async i => {
      for (let n = 0; n < 20; n += 1) {
        const token = `${i}:${n}:${process.hrtime.bigint()}`;
        same(await M.findById(i, { n: 1, token: { $literal: token } }).lean(), { _id: i, n: i, token });
      }
    };
    await Promise.all(range(0, 50).map(worker));
  },

  async read_preferences() {
    const M = await model('read_preferences', range(0, 50).map(i => ({ _id: i })));
    for (const mode of ['primary', 'primaryPreferred', 'secondaryPreferred', 'nearest']) {
      assert.equal((await M.find().read(mode).readConcern('majority').lean()).length, 50, mode);
    }
    await native.read_preferences();
  },

  async max_time() {
    const M = await model('max_time', range(0, 3).map(i => ({ _id: i })));
    await fails(50, () => M.find({ $where: 'sleep(1000) || true' }).maxTimeMS(50).lean());
    assert.equal((await M.find().maxTimeMS(10_000).lean()).length, 3);
  },

  async hint() {
    const M = await model('hint', range(0, 20).map(i => ({ _id: i, n: i })));
    await M.collection.createIndex({ n: 1 }, { name: 'by_n' });
    same(await M.find({ n: 3 }).hint('by_n').lean(), [{ _id: 3, n: 3 }]);
    await fails(2, () => M.find({ n: 3 }).hint('no_such_index').lean());
  },

  async collation() {
    const M = await model('collation', [{ _id: 1, tag: 'a' }, { _id: 2, tag: 'A' }, { _id: 3, tag: 'b' }]);
    assert.equal((await M.find({ tag: 'a' }).collation({ locale: 'de', strength: 2 })).length, 2);
  },
};

const native = checks(stage);
await run(Object.entries({ ...native, ...models }), only);
