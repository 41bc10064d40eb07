// The driver scenario for mongosh: URI=... VIEW=... mongosh "$URI" --file mongosh.js
// Written the way people write in the shell: no await, its own helpers. mongosh adds directConnection=true to the URI.

const assert = require('assert').strict;
const crypto = require('crypto');

const view = process.env.VIEW;
const client = db.getMongo()._serviceProvider.mongoClient;
let poolsCleared = 0;
client.on('connectionPoolCleared', () => (poolsCleared += 1));
db = db.getSiblingDB('drivers_mongosh');

// The shell's values come from another realm, which `deepEqual` minds.
const same = (found, wanted) => assert.equal(EJSON.stringify(found), EJSON.stringify(wanted));

const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

/** An empty collection that exists, or one with these documents. */
function collection(name, documents = []) {
  const c = db.getCollection(name);
  c.drop();
  db.createCollection(name);
  if (documents.length) c.insertMany(documents);
  return c;
}

/** The operation must fail with this server code; returns the error. */
function fails(code, operation) {
  let error;
  try {
    operation();
  } catch (caught) {
    error = caught;
  }
  assert.ok(error, `no error, code ${code} was due`);
  assert.equal(error.code, code, `code of ${error}`);
  return error;
}

/** Waits for a promise of an explicit `async` function, which the shell does not await by itself. */
function settle(promise) {
  let outcome;
  promise.then(() => (outcome = {}), error => (outcome = { error }));
  while (!outcome) sleep(5);
  if (outcome.error) throw outcome.error;
}

const checks = {
  connect() {
    assert.equal(db.adminCommand({ ping: 1 }).ok, 1);
    assert.ok(db.version());
    db.dropDatabase();
  },

  crud() {
    const c = collection('crud');
    assert.equal(c.insertOne({ _id: 1, n: 1, tag: 'a' }).insertedId, 1);
    c.insertMany(range(2, 11).map(i => ({ _id: i, n: i, tag: 'ab'[i % 2] })));
    assert.equal(c.findOne({ _id: 7 }).n, 7);
    same(c.find({ n: { $gte: 8 } }).sort({ _id: 1 }).map(d => d._id).toArray(), [8, 9, 10]);
    assert.equal(c.updateOne({ _id: 1 }, { $inc: { n: 10 } }).modifiedCount, 1);
    assert.equal(c.updateMany({ tag: 'b' }, { $set: { seen: true } }).modifiedCount, 4);
    assert.equal(c.updateOne({ _id: 11 }, { $set: { n: 11 } }, { upsert: true }).upsertedCount, 1);
    assert.equal(c.replaceOne({ _id: 2 }, { replaced: true }).modifiedCount, 1);
    assert.equal(c.deleteOne({ _id: 3 }).deletedCount, 1);
    assert.equal(c.deleteMany({ _id: { $in: [4, 5] } }).deletedCount, 2);
    assert.equal(c.findOneAndUpdate({ _id: 1 }, { $inc: { n: 1 } }, { returnDocument: 'after' }).n, 12);
    assert.equal(c.findAndModify({ query: { _id: 6 }, remove: true })._id, 6);
    assert.equal(c.countDocuments(), 7);
    assert.equal(c.estimatedDocumentCount(), 7);
    same(c.distinct('tag').sort(), ['a', 'b']);
  },

  catalog() {
    const c = collection('catalog', [{ _id: 1, k: 1 }]);
    assert.equal(c.createIndex({ k: 1 }), 'k_1');
    same(c.getIndexes().map(i => i.name), ['_id_', 'k_1']);
    assert.ok(db.getCollectionNames().includes('catalog'));
    assert.ok(db.getMongo().getDBs().databases.some(found => found.name === db.getName()));
    assert.equal(c.find({ k: 1 }).explain().ok, 1);
    assert.equal(db.stats().db, db.getName());
    assert.ok(db.serverStatus().version);
    assert.equal(rs.status().set, 'rs0');
  },

  bulk_write() {
    const c = collection('bulk');
    const result = c.bulkWrite([
      ...range(0, 1000).map(i => ({ insertOne: { document: { _id: i, n: 0 } } })),
      { updateMany: { filter: {}, update: { $inc: { n: 1 } } } },
      { deleteOne: { filter: { _id: 2 } } },
    ]);
    same([result.insertedCount, result.modifiedCount, result.deletedCount], [1000, 1000, 1]);
  },

  cursor() {
    const c = collection('cursor', range(0, 10000).map(i => ({ _id: i, text: 'x'.repeat(50) })));
    const seen = [];
    c.find().sort({ _id: 1 }).batchSize(100).forEach(document => { seen.push(document._id); });
    same(seen, range(0, 10000));
  },

  cursor_close() {
    const c = collection('cursor_close', range(0, 100).map(i => ({ _id: i })));
    const cursor = c.find().sort({ _id: 1 }).batchSize(10);
    for (const i of range(0, 15)) assert.equal(cursor.next()._id, i);
    const id = cursor._cursor.id;
    assert.ok(id && String(id) !== '0', 'the cursor is exhausted already');
    cursor.close();
    // One that still exists would answer 50738 to this session.
    fails(43, () => db.runCommand({ getMore: Long.fromString(String(id)), collection: 'cursor_close' }));
  },

  aggregate() {
    const c = collection('aggregate', range(0, 300).map(i => ({ _id: i, group: i % 3, n: i })));
    const groups = c.aggregate([{ $group: { _id: '$group', sum: { $sum: '$n' } } }, { $sort: { _id: 1 } }]).toArray();
    same(groups, [0, 1, 2].map(g => ({ _id: g, sum: 14850 + 100 * g })));
  },

  read_options() {
    const c = collection('read_options', [{ _id: 1 }]);
    for (const mode of ['secondaryPreferred', 'nearest', 'primaryPreferred']) {
      same(c.find().readPref(mode).readConcern('majority').toArray(), [{ _id: 1 }]);
    }
  },

  transaction_commit() {
    const a = collection('commit_a');
    const b = collection('commit_b');
    const session = db.getMongo().startSession();
    const inside = session.getDatabase(db.getName());
    session.withTransaction(() => {
      inside.commit_a.insertOne({ _id: 1 });
      inside.commit_b.insertOne({ _id: 2 });
      assert.equal(inside.commit_a.countDocuments({}), 1, 'count inside');
      assert.equal(a.countDocuments({}), 0, 'count outside before the commit');
    });
    session.startTransaction();
    inside.commit_a.insertOne({ _id: 3 });
    session.commitTransaction();
    session.endSession();
    same([a.countDocuments(), b.countDocuments()], [2, 1]);
  },

  transaction_abort() {
    const c = collection('abort');
    const session = db.getMongo().startSession();
    const inside = session.getDatabase(db.getName());
    session.startTransaction();
    inside.abort.insertOne({ _id: 1 });
    assert.equal(inside.abort.countDocuments({}), 1, 'count inside');
    session.abortTransaction();
    session.endSession();
    assert.equal(c.countDocuments(), 0);
  },

  change_stream() {
    const c = collection('change_stream');
    const stream = c.watch([], { maxAwaitTimeMS: 500 });
    assert.equal(stream.tryNext(), null);
    // The shell does one thing at a time, so its driver inserts while the stream waits.
    const insert = async () => {
      await new Promise(resolve => setTimeout(resolve, 100));
      const native = client.db('drivers_mongosh').collection('change_stream');
      for (const i of range(0, 20)) await native.insertOne({ _id: i });
    };
    const inserting = insert();
    const seen = [];
    for (const deadline = Date.now() + 20000; seen.length < 20 && Date.now() < deadline; ) {
      const change = stream.tryNext();
      if (change) seen.push(change.fullDocument._id);
    }
    settle(inserting);
    same(seen, range(0, 20));
    stream.close();
  },

  large_document() {
    const c = collection('large');
    const data = crypto.randomBytes(15 * 1024 * 1024);
    c.insertOne({ _id: 1, data: new Binary(data) });
    assert.ok(data.equals(c.findOne({ _id: 1 }).data.buffer), 'the document came back different');
  },

  unacknowledged_write() {
    collection('unacknowledged');
    // One socket only: the read comes right behind the write.
    const c = new Mongo(`${process.env.URI}?maxPoolSize=1`).getDB(db.getName()).unacknowledged;
    for (const i of range(0, 100)) {
      assert.equal(c.insertOne({ _id: i }, { writeConcern: { w: 0 } }).acknowledged, false);
      same(c.findOne({ _id: i }), { _id: i });
    }
  },

  gridfs_file: 'the shell has no GridFS',

  commands() {
    const stats = db.adminCommand({ connPoolStats: 1 });
    assert.ok(typeof stats.hosts === 'object' && typeof stats.totalCreated === 'number', 'shape of connPoolStats');
    assert.match(db.adminCommand({ whatsmyuri: 1 }).you, /^127\.0\.0\.1:\d+$/);
    same(db.adminCommand({ connectionStatus: 1 }).authInfo.authenticatedUsers, []);
    const hello = db.hello();
    assert.equal(hello.isWritablePrimary, true);
    if (view === 'replicaset') {
      assert.equal(hello.setName, 'rs0');
    } else {
      assert.equal(hello.msg, 'isdbgrid');
      same(['setName', 'hosts', 'me', 'primary'].filter(key => key in hello), []);
      assert.ok(Object.keys(stats.hosts).length > 0, 'connPoolStats names no server');
    }
    assert.equal(db.isMaster().ismaster, true);
  },

  error_codes() {
    const c = collection('error_codes', [{ _id: 1 }]);
    fails(11000, () => c.insertOne({ _id: 1 }));
    fails(11000, () => c.insertMany([{ _id: 2 }, { _id: 1 }], { ordered: false }));
    fails(59, () => db.runCommand({ noSuchCommand: 1 }));
    fails(2, () => c.find({ $noSuchOperator: 1 }).toArray());
    fails(50, () => c.find({ $where: 'sleep(1000) || true' }).maxTimeMS(50).toArray());
    assert.equal(c.countDocuments(), 2);
  },

  concurrency() {
    // Every reply carries the token of its request: one that went to the wrong promise shows.
    const c = collection('concurrency', range(0, 50).map(i => ({ _id: i })));
    const worker = async i => {
      for (let n = 0; n < 20; n += 1) {
        const token = `${i}:${n}:${process.hrtime.bigint()}`;
        const found = await c.findOne({ _id: i }, { token: { $literal: token } });
        same(found, { _id: i, token });
      }
    };
    settle(Promise.all(range(0, 50).map(worker)));
  },

  view() {
    const { type, servers } = client.topology.description;
    assert.equal(type, 'Single');
    same([...servers.values()].map(s => s.type), [view === 'replicaset' ? 'RSPrimary' : 'Mongos']);
    assert.equal(poolsCleared, 0);
  },
};

let failed = false;
for (const [name, check] of Object.entries(checks)) {
  if (typeof check === 'string') {
    print(`n/a ${name}: ${check}`);
    continue;
  }
  try {
    check();
    print(`ok ${name}`);
  } catch (error) {
    failed = true;
    print(`FAIL ${name}: ${`${error.name}: ${error.message}`.replace(/\s+/g, ' ').slice(0, 400)}`);
    process.stderr.write(`${error.stack}\n`);
  }
}
db.dropDatabase();
print('finished');
quit(failed ? 1 : 0);
