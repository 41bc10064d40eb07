// Large messages, limits, trouble, and what the connection says about itself.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { fails, range, same, sha256, View } from './harness.mjs';

const MEGABYTE = 1_000_000;
// Retryable, but not a change of the server's state, which would make a driver without proxy drop its pool.
const HOST_UNREACHABLE = 6;

/** The answers to connection-scoped commands, which a proxy must give itself. */
async function verifyCommands(db, view) {
  const admin = db.admin();
  const stats = await admin.command({ connPoolStats: 1 });
  assert.ok(typeof stats.hosts === 'object' && typeof stats.totalCreated === 'number', 'shape of connPoolStats');
  assert.match((await admin.command({ whatsmyuri: 1 })).you, /^127\.0\.0\.1:\d+$/);
  const { username: user } = db.client.options.credentials ?? {};
  const users = (await admin.command({ connectionStatus: 1 })).authInfo.authenticatedUsers;
  same(users, user ? [{ user, db: 'admin' }] : []);
  const hello = await admin.command({ hello: 1 });
  assert.equal(hello.isWritablePrimary, true);
  if (view === 'replicaset') {
    assert.equal(hello.setName, 'rs0');
  } else {
    assert.equal(hello.msg, 'isdbgrid');
    same(['setName', 'hosts', 'me', 'primary'].filter(key => key in hello), []);
    assert.ok(Object.keys(stats.hosts).length > 0, 'connPoolStats names no server');
  }
  assert.equal((await admin.command({ isMaster: 1 })).ismaster, true);
  assert.equal((await admin.command({ buildInfo: 1 })).ok, 1);
  assert.equal((await db.command({ dbStats: 1 })).db, db.databaseName);
}

/** The server fails commands on the collection meanwhile. A fail point has no other owner: one driver at a time. */
async function failing(s, collection, mode, data, operation) {
  const failPoint = { configureFailPoint: 'failCommand', mode };
  await s.db.admin().command({ ...failPoint, data: { namespace: collection.namespace, ...data } });
  try {
    return await operation();
  } finally {
    await s.db.admin().command({ ...failPoint, mode: 'off' });
  }
}

export const limits = s => ({
  async large_document() {
    const c = await s.collection('large');
    const data = randomBytes(15 * 1024 * 1024);
    await c.insertOne({ _id: 1, data });
    assert.ok(data.equals((await c.findOne({ _id: 1 })).data.buffer), 'the document came back different');
  },

  async large_bulk() {
    const c = await s.collection('large_bulk');
    // What repeats compresses fast, and a document that came back as another one would show.
    const text = () => randomBytes(500).toString('hex').repeat(MEGABYTE / 1000);
    const documents = range(0, 47).map(i => ({ _id: i, text: text() }));
    const { result, commands } = await s.view.record('insert', () => c.insertMany(documents));
    // This driver ends a message at the size of the largest document, 16 MB, where others go on to 48 MB.
    same([result.insertedCount, commands.length], [47, 3]);
    same(await c.find().sort({ _id: 1 }).toArray(), documents);
    await c.drop();
  },

  async gridfs() {
    const bucket = new s.driver.GridFSBucket(s.db);
    const data = randomBytes(20 * 1024 * 1024);
    const upload = bucket.openUploadStream('file');
    upload.end(data);
    await once(upload, 'finish');
    const chunks = await bucket.openDownloadStream(upload.id).toArray();
    assert.equal(sha256(Buffer.concat(chunks)), sha256(data));
    await bucket.delete(upload.id);
    assert.equal(await s.db.collection('fs.chunks').countDocuments(), 0);
  },

  async unacknowledged_write() {
    await s.collection('unacknowledged');
    // One socket only: the read comes right behind the write.
    const single = await s.open({ maxPoolSize: 1 });
    const calm = new View(single);
    const c = single.db(s.db.databaseName).collection('unacknowledged');
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

  async stable_api() {
    const { collectionName } = await s.collection('stable_api', range(0, 10).map(i => ({ _id: i })));
    const client = await s.open({ serverApi: { version: '1', strict: true, deprecationErrors: true } });
    const db = client.db(s.db.databaseName);
    const c = db.collection(collectionName);
    assert.equal((await db.admin().ping()).ok, 1);
    assert.equal((await c.find().batchSize(3).toArray()).length, 10);
    await c.insertOne({ _id: 10 });
    await client.withSession(session => session.withTransaction(() => c.insertOne({ _id: 11 }, { session })));
    assert.equal(await c.countDocuments(), 12);
    // What the server would refuse, and what a proxy answers itself.
    for (const name of ['dbStats', 'whatsmyuri', 'connPoolStats', 'isMaster']) {
      await fails(323, () => db.command({ [name]: 1 }));
    }
    await fails(323, () => db.command({ distinct: collectionName, key: '_id' }));
    await client.close();
  },

  async max_time() {
    const c = await s.collection('max_time', range(0, 3).map(i => ({ _id: i })));
    const slow = { $where: 'sleep(1000) || true' };
    await fails(50, () => c.find(slow, { maxTimeMS: 50 }).toArray());
    await fails(50, () => s.db.command({ count: c.collectionName, query: slow, maxTimeMS: 50 }));
    assert.equal((await c.find({}, { maxTimeMS: 10_000 }).batchSize(2).toArray()).length, 3);
  },

  async write_concern() {
    const c = await s.collection('write_concern');
    const majority = { writeConcern: { w: 'majority', wtimeoutMS: 10_000 } };
    assert.equal((await c.insertOne({ _id: 1 }, majority)).acknowledged, true);
    assert.equal((await c.insertOne({ _id: 2 }, { writeConcern: { w: 1, journal: true } })).acknowledged, true);
    // The set has one member.
    const error = await fails(100, () => c.insertOne({ _id: 3 }, { writeConcern: { w: 2, wtimeoutMS: 500 } }));
    assert.equal(error.name, 'MongoWriteConcernError');
    assert.equal(await c.countDocuments(), 3, 'the write itself is done');
  },

  async retryable_reads() {
    const c = await s.collection('retryable_reads', range(0, 10).map(i => ({ _id: i })));
    const reads = {
      find: () => c.find().toArray(),
      aggregate: () => c.aggregate([{ $match: {} }]).toArray(),
      distinct: () => c.distinct('_id'),
    };
    for (const [name, read] of Object.entries(reads)) {
      for (const errorCode of [HOST_UNREACHABLE, 89, 9001]) {
        const data = { failCommands: [name], errorCode };
        const once = () => failing(s, c, { times: 1 }, data, read);
        const { result, commands } = await s.view.record(name, once);
        same([result.length, commands.length], [10, 2], `${name} after ${errorCode}`);
      }
    }
    const data = { failCommands: ['find'], errorCode: HOST_UNREACHABLE };
    await fails(HOST_UNREACHABLE, () => failing(s, c, 'alwaysOn', data, reads.find));
  },

  async retryable_writes() {
    const c = await s.collection('retryable_writes', range(0, 10).map(i => ({ _id: i, n: 0 })));
    const increment = { $inc: { n: 1 } };
    const writes = {
      update: () => c.updateOne({ _id: 1 }, increment),
      findAndModify: () => c.findOneAndUpdate({ _id: 2 }, increment),
      insert: () => c.insertOne({ of: 'insert' }),
      delete: () => c.deleteOne({ _id: { $gte: 5 } }),
    };
    const errorLabels = ['RetryableWriteError'];
    const before = { errorCode: HOST_UNREACHABLE, errorLabels };
    const after = { writeConcernError: { code: HOST_UNREACHABLE, errmsg: 'x', errorLabels } };
    // Once before the write is done and once after: its statement number keeps it from being done again.
    for (const failure of [before, after]) {
      for (const [name, write] of Object.entries(writes)) {
        const once = () => failing(s, c, { times: 1 }, { failCommands: [name], ...failure }, write);
        const { commands } = await s.view.record(name, once);
        assert.equal(commands.length, 2, `attempts of ${name}`);
        assert.equal(new Set(commands.map(command => String(command.txnNumber))).size, 1, 'transaction numbers');
      }
    }
    same([(await c.findOne({ _id: 1 })).n, (await c.findOne({ _id: 2 })).n], [2, 2]);
    assert.equal(await c.countDocuments({ of: 'insert' }), 2);
    assert.equal(await c.countDocuments({ _id: { $type: 'number' } }), 8, 'what two deletes left');
    // What cannot be retried is told.
    const data = { failCommands: ['update'], errorCode: HOST_UNREACHABLE };
    await fails(HOST_UNREACHABLE, () => failing(s, c, { times: 1 }, data, () => c.updateMany({}, increment)));
  },

  async error_codes() {
    const c = await s.collection('error_codes', [{ _id: 1, n: 1 }]);
    same((await fails(11000, () => c.insertOne({ _id: 1 }))).keyValue, { _id: 1 });
    const bulk = await fails(11000, () => c.insertMany([{ _id: 2 }, { _id: 1 }, { _id: 3 }], { ordered: false }));
    same(bulk.writeErrors.map(e => [e.index, e.code]), [[1, 11000]]);
    assert.equal(bulk.result.insertedCount, 2);
    await fails(59, () => s.db.command({ noSuchCommand: 1 }));
    await fails(2, () => c.find({ $noSuchOperator: 1 }).toArray());
    assert.equal(await c.countDocuments(), 3);
  },

  commands: () => verifyCommands(s.db, s.wanted),

  async concurrency() {
    // Every reply carries the token of its request: one that went to the wrong promise shows.
    const document = i => ({ _id: i, text: `document ${i}`.repeat(20) });
    const c = await s.collection('concurrency', range(0, 50).map(document));
    const worker = async i => {
      for (let n = 0; n < 20; n += 1) {
        const token = `${i}:${n}:${process.hrtime.bigint()}`;
        const found = await c.findOne({ _id: i }, { projection: { text: 1, token: { $literal: token } } });
        same(found, { ...document(i), token });
      }
    };
    await Promise.all(range(0, 50).map(worker));
  },

  async monitoring_quiet() {
    s.view.verifyCalm();
    // Behind a load balancer there is nobody to monitor.
    assert.equal(s.view.heartbeats > 0, s.wanted !== 'loadbalanced', 'there were heartbeats');
  },

  view: async () => s.view.verify(s.wanted),

  async close() {
    await s.db.dropDatabase();
    await s.close();
    s.view.verifyCalm();
  },
});
