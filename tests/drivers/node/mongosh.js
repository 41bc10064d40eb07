// The driver scenario for mongosh: URI=... VIEW=... COMPRESSOR=... mongosh "$URI" --file mongosh.js
// Written the way people write in the shell: no await, its own helpers. mongosh adds directConnection=true to the URI, which
// has options already, `monitorCommands=true` among them.

const assert = require('assert').strict;
const crypto = require('crypto');

const view = process.env.VIEW;
const compressor = process.env.COMPRESSOR;
const client = db.getMongo()._serviceProvider.mongoClient;
let poolsCleared = 0;
const serversLost = [];
const heartbeatsFailed = [];
let cursorId;
client.on('connectionPoolCleared', () => (poolsCleared += 1));
client.on('serverHeartbeatFailed', event => heartbeatsFailed.push(String(event.failure)));
client.on('serverDescriptionChanged', event => {
  if (event.newDescription.error) serversLost.push(String(event.newDescription.error));
});
client.on('commandSucceeded', event => {
  const id = event.reply?.cursor?.id;
  if (id && String(id) !== '0') cursorId = Long.fromString(String(id));
});
db = db.getSiblingDB('drivers_mongosh');

// The shell's values come from another realm, which `deepEqual` minds.
const same = (found, wanted) => assert.equal(EJSON.stringify(found), EJSON.stringify(wanted));

const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

/** Another connection, with these options in its URI, or as the shell takes them. */
const open = (more = '', options = undefined) => new Mongo(`${process.env.URI}${more}`, undefined, options);

/** An empty collection that exists, or one with these documents. */
function collection(name, documents = [], options = {}) {
  const c = db.getCollection(name);
  c.drop();
  db.createCollection(name, options);
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

// What is sent, of the commands with this name.
let recording;
let recorded = [];
client.on('commandStarted', event => {
  if (event.commandName === recording) recorded.push(event.command);
});

/** The commands of this name that the operation sends. */
function sends(name, operation) {
  recording = name;
  recorded = [];
  try {
    operation();
  } finally {
    recording = undefined;
  }
  return recorded;
}

/** Runs the operation while the server fails commands on the collection. A fail point has no other owner. */
function failing(c, mode, data, operation) {
  const failPoint = { configureFailPoint: 'failCommand', mode };
  db.adminCommand({ ...failPoint, data: { namespace: c.getFullName(), ...data } });
  try {
    operation();
  } finally {
    db.adminCommand({ ...failPoint, mode: 'off' });
  }
}

/** In a session of its own: `operation(session, database)`. */
function inSession(options, operation) {
  const session = db.getMongo().startSession(options);
  try {
    operation(session, session.getDatabase(db.getName()));
  } finally {
    session.endSession();
  }
}

/** So many ids, or what has come after 20 s. */
function nextChanges(stream, count) {
  const seen = [];
  for (const deadline = Date.now() + 20000; seen.length < count && Date.now() < deadline; ) {
    const change = stream.tryNext();
    if (change) seen.push(change.documentKey._id);
  }
  return seen;
}

// Retryable, but not a change of the server's state, which would make a driver without proxy drop its pool.
const HOST_UNREACHABLE = 6;

/** The shell does one thing at a time, so its driver inserts while the shell waits. */
async function later(name, from, to) {
  const native = client.db(db.getName()).collection(name);
  for (const i of range(from, to)) await native.insertOne({ _id: i });
}

const checks = {
  connect() {
    assert.equal(db.adminCommand({ ping: 1 }).ok, 1);
    assert.ok(db.version());
    db.dropDatabase();
  },

  compression() {
    // A later hello that does not ask repeats what the connection negotiated in its handshake.
    same(db.hello().compression, compressor ? [compressor] : undefined);
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
    const c = collection('catalog', range(0, 5).map(i => ({ _id: i, k: i })));
    assert.equal(c.createIndex({ k: 1 }, { unique: true }), 'k_1');
    same(c.getIndexes().map(i => i.name), ['_id_', 'k_1']);
    assert.ok(db.getCollectionNames().includes('catalog'));
    assert.ok(db.getMongo().getDBs().databases.some(found => found.name === db.getName()));
    c.renameCollection('renamed', true);
    assert.equal(db.renamed.countDocuments(), 5);
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

  bulk_write_client: 'the shell has no bulkWrite of its client',

  batches() {
    const c = collection('batches');
    const text = 'x'.repeat(200);
    c.insertMany(range(0, 10500).map(i => ({ _id: i, text })));
    let found;
    const sent = sends('getMore', () => {
      found = c.find({ text }).sort({ _id: 1 }).batchSize(1000).toArray();
    });
    same(found.map(d => d._id), range(0, 10500));
    assert.equal(sent.length, 10, 'getMores');
  },

  cursor() {
    const c = collection('cursor', range(0, 2000).map(i => ({ _id: i, n: -i, text: 'x'.repeat(50) })));
    const seen = [];
    const found = c.find({}, { text: 0 }).sort({ n: 1 }).skip(10).limit(1500).batchSize(100);
    found.forEach(document => { seen.push(document); });
    same(seen, range(490, 1990).reverse().map(i => ({ _id: i, n: -i })));
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

  cursor_timeout_free() {
    collection('timeout_free', range(0, 100).map(i => ({ _id: i })));
    // The server keeps such a cursor for as long as its session lives.
    const sent = sends('find', () => {
      inSession({}, (session, inside) => {
        const found = inside.timeout_free.find().noCursorTimeout().sort({ _id: 1 }).batchSize(10).toArray();
        same(found.map(d => d._id), range(0, 100));
      });
    });
    same(sent.map(command => command.noCursorTimeout), [true]);
  },

  aggregate() {
    const c = collection('aggregate', range(0, 3000).map(i => ({ _id: i, group: i % 300, n: i })));
    const pipeline = [{ $group: { _id: '$group', sum: { $sum: '$n' } } }, { $sort: { _id: 1 } }];
    const wanted = range(0, 300).map(g => ({ _id: g, sum: 13500 + 10 * g }));
    same(c.aggregate(pipeline, { batchSize: 50 }).toArray(), wanted);
    same(c.aggregate(pipeline, { allowDiskUse: true, cursor: { batchSize: 0 } }).toArray(), wanted);
  },

  aggregate_out() {
    const c = collection('aggregate_from', range(0, 300).map(i => ({ _id: i, group: i % 3 })));
    const out = collection('aggregate_out', [{ _id: -1 }]);
    const merged = collection('aggregate_merged', [{ _id: 1, old: 1 }]);
    c.aggregate([{ $match: { group: 1 } }, { $out: 'aggregate_out' }]);
    same([out.countDocuments(), out.findOne({ _id: -1 })], [100, null]);
    c.aggregate([{ $match: { group: 1 } }, { $merge: { into: 'aggregate_merged', whenMatched: 'merge' } }]);
    assert.equal(merged.countDocuments(), 100);
    same(merged.findOne({ _id: 1 }), { _id: 1, old: 1, group: 1 });
  },

  collation() {
    const c = collection('collation', ['b', 'A', 'a', 'B', 'ä'].map(_id => ({ _id })));
    const folding = { locale: 'de', strength: 2 };
    same(c.find({ _id: 'a' }).collation(folding).toArray().map(d => d._id).sort(), ['A', 'a']);
    const first = c.find().sort({ _id: 1 }).collation({ locale: 'de', strength: 1 }).next();
    assert.ok('Aaä'.includes(first._id), first._id);
    assert.equal(c.countDocuments({ _id: 'B' }, { collation: folding }), 2);
    assert.equal(c.deleteMany({ _id: 'b' }, { collation: folding }).deletedCount, 2);
    same(c.distinct('_id', { _id: 'A' }, { collation: folding }), ['A']);
    const folded = collection('collation_default', [{ _id: 'x' }], { collation: folding });
    same(folded.findOne({ _id: 'X' }), { _id: 'x' });
  },

  explain() {
    const c = collection('explain', range(0, 5).map(i => ({ _id: i, k: i })));
    const explained = c.find({ k: 3 }).explain('executionStats');
    same([explained.ok, explained.executionStats.nReturned], [1, 1]);
    const aggregated = c.explain('executionStats').aggregate([{ $match: { k: { $gte: 3 } } }]);
    assert.equal(aggregated.executionStats.totalDocsExamined, 5);
  },

  let_and_comment() {
    const c = collection('comment', range(0, 10).map(i => ({ _id: i, n: i })));
    const greater = { $expr: { $gt: ['$n', '$$limit'] } };
    db.setProfilingLevel(2);
    try {
      const found = c.find(greater, {}, { let: { limit: 6 }, comment: 'tag find' }).batchSize(2).toArray();
      same(found.map(d => d._id).sort(), [7, 8, 9]);
      const update = { $set: { seen: 1 } };
      assert.equal(c.updateMany(greater, update, { let: { limit: 5 }, comment: 'tag update' }).modifiedCount, 4);
      assert.equal(c.deleteMany(greater, { let: { limit: 7 }, comment: 'tag delete' }).deletedCount, 2);
      const options = { let: { limit: 4 }, comment: { tag: 'aggregate' } };
      same(c.aggregate([{ $match: greater }, { $count: 'n' }], options).toArray(), [{ n: 3 }]);
      c.insertOne({ _id: 11 }, { comment: 'tag insert' });
    } finally {
      db.setProfilingLevel(0);
    }
    const comments = db.system.profile.find({ ns: c.getFullName() }).toArray().map(entry => entry.command.comment);
    // A getMore carries the comment of its find.
    const wanted = ['tag find', 'tag find', 'tag update', 'tag delete', { tag: 'aggregate' }, 'tag insert'];
    const sorted = all => all.map(comment => JSON.stringify(comment)).sort();
    same(sorted(comments), sorted(wanted));
  },

  hint() {
    const c = collection('hint', range(0, 20).map(i => ({ _id: i, a: i, b: i })));
    c.createIndex({ a: 1 });
    c.createIndex({ b: 1 }, { name: 'by_b' });
    const query = { a: 3, b: 3 };
    for (const [wanted, hint] of [['by_b', 'by_b'], ['a_1', { a: 1 }], ['_id_', { _id: 1 }]]) {
      same(c.find(query).hint(hint).toArray(), [{ _id: 3, ...query }]);
      const plan = JSON.stringify(c.find(query).hint(hint).explain().queryPlanner.winningPlan);
      assert.ok(plan.includes(`"indexName":"${wanted}"`), wanted);
    }
    assert.equal(c.updateOne(query, { $set: { n: 1 } }, { hint: 'by_b' }).modifiedCount, 1);
    assert.equal(c.deleteOne(query, { hint: { a: 1 } }).deletedCount, 1);
    fails(2, () => c.find(query).hint('no_such_index').toArray());
  },

  list_cursors() {
    const names = range(10, 34).map(i => `list_${i}`);
    for (const name of names) db.getCollection(name).insertOne({});
    // The helpers of the shell have no batch size; their own cursors are one batch long.
    assert.ok(names.every(name => db.getCollectionNames().includes(name)));
    db.list_10.createIndexes(range(0, 12).map(i => ({ [`k${i}`]: 1 })));
    inSession({}, (session, inside) => {
      const listed = (command, collection) => {
        let { cursor } = inside.runCommand(command);
        const found = [...cursor.firstBatch];
        let batches = 1;
        for (; String(cursor.id) !== '0'; batches += 1) {
          ({ cursor } = inside.runCommand({ getMore: Long.fromString(String(cursor.id)), collection, batchSize: 4 }));
          found.push(...cursor.nextBatch);
        }
        assert.ok(batches > 3, `${batches} batches`);
        return found.map(d => d.name);
      };
      const collections = { listCollections: 1, filter: { name: /^list_/ }, cursor: { batchSize: 4 } };
      same(listed(collections, '$cmd.listCollections').sort(), names);
      const indexes = listed({ listIndexes: 'list_10', cursor: { batchSize: 4 } }, 'list_10');
      same(indexes, ['_id_', ...range(0, 12).map(i => `k${i}_1`)]);
    });
  },

  kill_cursors() {
    const c = collection('kill_cursors', range(0, 100).map(i => ({ _id: i })));
    const found = range(0, 3).map(() => c.find().batchSize(10));
    const ids = found.map(one => {
      one.next();
      return cursorId;
    });
    const unknown = Long.fromNumber(1234567);
    const reply = db.runCommand({ killCursors: 'kill_cursors', cursors: [ids[0], unknown, ids[1]] });
    const text = longs => longs.map(String).sort();
    same([text(reply.cursorsKilled), text(reply.cursorsNotFound)], [text(ids.slice(0, 2)), text([unknown])]);
    same([reply.cursorsAlive, reply.cursorsUnknown], [[], []]);
    for (const one of found.slice(0, 2)) fails(43, () => one.toArray());
    assert.equal(found[2].toArray().length, 99);
  },

  tailable() {
    const c = collection('tailable', range(0, 5).map(i => ({ _id: i })), { capped: true, size: 100000 });
    const found = c.find().tailable({ awaitData: true }).maxAwaitTimeMS(500);
    for (const i of range(0, 5)) assert.equal(found.tryNext()._id, i);
    assert.equal(found.tryNext(), null);
    settle(later('tailable', 5, 10));
    for (const i of range(5, 10)) assert.equal(found.tryNext()._id, i);
    found.close();
  },

  read_options() {
    const c = collection('read_options', [{ _id: 1 }]);
    for (const level of ['local', 'available', 'majority', 'linearizable']) {
      same(c.find().readConcern(level).toArray(), [{ _id: 1 }]);
      same(c.aggregate([{ $match: {} }], { readConcern: { level } }).toArray(), [{ _id: 1 }]);
    }
  },

  read_preferences() {
    const c = collection('read_preferences', range(0, 50).map(i => ({ _id: i })));
    for (const mode of ['primary', 'primaryPreferred', 'secondaryPreferred', 'nearest']) {
      assert.equal(c.find().readPref(mode).batchSize(20).toArray().length, 50);
    }
    const read = () => open('&retryReads=false').getDB(db.getName()).read_preferences.find().readPref('secondary').toArray();
    // The shell connects directly, and then any member will do. Through the proxy it is told that there is no secondary.
    if (view === 'replicaset') assert.equal(read().length, 50);
    else fails(6, read);
  },

  causal_reads() {
    collection('causal');
    const sent = sends('find', () => {
      inSession({ causalConsistency: true, readConcern: { level: 'majority' } }, (session, inside) => {
        const c = inside.causal;
        for (const i of range(0, 10)) {
          c.insertOne({ _id: i }, { writeConcern: { w: 'majority' } });
          same(c.find({ _id: i }).readPref('nearest').readConcern('majority').toArray(), [{ _id: i }]);
        }
      });
    });
    assert.equal(sent.length, 10);
    assert.ok(sent.every(command => command.readConcern.afterClusterTime), 'afterClusterTime in each find');
  },

  sessions() {
    collection('sessions', range(0, 30).map(i => ({ _id: i })));
    const used = [];
    const hex = lsid => lsid.id.toString('hex');
    const sent = sends('find', () => {
      for (const i of range(0, 10)) {
        inSession({}, (session, inside) => {
          const c = inside.sessions;
          used.push(hex(session._session.id));
          c.updateOne({ _id: i }, { $set: { n: i } });
          const found = c.find({ _id: { $gte: i } }).sort({ _id: 1 }).batchSize(2).toArray();
          same([found[0].n, found.length], [i, 30 - i]);
        });
      }
    });
    same(sent.map(command => hex(command.lsid)), used);
    const known = db.getSiblingDB('admin').aggregate([{ $listLocalSessions: {} }]).toArray();
    const ids = known.map(d => hex(d._id));
    same(used.filter(id => !ids.includes(id)), []);
  },

  snapshot_reads() {
    const c = collection('snapshot');
    c.insertMany(range(0, 50).map(i => ({ _id: i, n: 1 })), { writeConcern: { w: 'majority' } });
    inSession({ snapshot: true, causalConsistency: false }, (session, inside) => {
      const found = () => inside.snapshot.find().batchSize(20).toArray().length;
      assert.equal(found(), 50, 'found first');
      c.insertOne({ _id: 50, n: 2 });
      c.deleteOne({ _id: 0 });
      assert.equal(found(), 50, 'found after a write');
      same(inside.snapshot.aggregate([{ $count: 'n' }]).toArray(), [{ n: 50 }]);
      same(inside.snapshot.distinct('n'), [1]);
    });
    same(c.distinct('n').sort(), [1, 2]);
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

  transaction_conflict() {
    // The shell does one thing at a time, so it is its driver that starts over.
    const c = collection('conflict', [{ _id: 1, n: 0 }]);
    const native = client.db(db.getName()).collection('conflict');
    const worker = async () => {
      const session = client.startSession();
      for (let i = 0; i < 3; i += 1) {
        await session.withTransaction(async () => {
          const { n } = await native.findOne({ _id: 1 }, { session });
          await native.updateOne({ _id: 1 }, { $set: { n: n + 1 } }, { session });
        });
      }
      await session.endSession();
    };
    settle(Promise.all(range(0, 4).map(worker)));
    assert.equal(c.findOne({ _id: 1 }).n, 12);
  },

  transaction_cursor() {
    collection('transaction_cursor', range(0, 500).map(i => ({ _id: i })));
    inSession({}, (session, inside) => {
      session.startTransaction();
      const found = inside.transaction_cursor.find().sort({ _id: 1 }).batchSize(50).toArray();
      session.commitTransaction();
      same(found.map(d => d._id), range(0, 500));
    });
  },

  transaction_errors() {
    const c = collection('transaction_errors', [{ _id: 1 }]);
    inSession({}, (session, inside) => {
      const insert = _id => inside.transaction_errors.insertOne({ _id });
      session.startTransaction();
      insert(2);
      const duplicate = fails(11000, () => insert(1));
      assert.equal(duplicate.hasErrorLabel('TransientTransactionError'), false, 'a duplicate key is transient');
      const next = fails(251, () => insert(3));
      assert.equal(next.hasErrorLabel('TransientTransactionError'), true, 'transient label of the next statement');
      session.abortTransaction();
      fails(11000, () =>
        session.withTransaction(() => {
          insert(4);
          insert(1);
        }),
      );
      same(c.find().toArray(), [{ _id: 1 }]);
      session.withTransaction(() => { insert(5); });
    });
    assert.equal(c.countDocuments(), 2, 'count after a good transaction in the same session');
  },

  change_stream() {
    const c = collection('change_stream');
    const stream = c.watch([], { maxAwaitTimeMS: 500 });
    assert.equal(stream.tryNext(), null);
    const id = cursorId;
    const inserting = later('change_stream', 0, 20);
    same(nextChanges(stream, 20), range(0, 20));
    settle(inserting);
    const token = stream.getResumeToken();
    stream.close();
    fails(43, () => db.runCommand({ getMore: id, collection: 'change_stream' }));
    c.insertOne({ _id: 20 });
    const resumed = c.watch([], { resumeAfter: token, maxAwaitTimeMS: 500 });
    same(nextChanges(resumed, 1), [20]);
    resumed.close();
  },

  change_stream_resume() {
    const c = collection('change_stream_resume');
    const insert = (from, to) => c.insertMany(range(from, to).map(i => ({ _id: i })));
    const sent = sends('aggregate', () => {
      const stream = c.watch([], { maxAwaitTimeMS: 500, batchSize: 5 });
      assert.equal(stream.tryNext(), null, 'before all changes');
      for (const first of [0, 10, 20]) {
        insert(first, first + 8);
        same(nextChanges(stream, 4), range(first, first + 4));
        db.runCommand({ killCursors: 'change_stream_resume', cursors: [cursorId] });
        insert(first + 8, first + 10);
        same(nextChanges(stream, 6), range(first + 4, first + 10));
      }
      assert.equal(stream.tryNext(), null, 'after all changes');
      stream.close();
    });
    same(sent.map(command => 'resumeAfter' in command.pipeline[0].$changeStream), [false, true, true, true]);
  },

  change_stream_many() {
    // All are open at once; the shell looks at one after the other.
    const collections = range(0, 8).map(i => collection(`change_stream_${i}`));
    const streams = collections.map(c => c.watch([], { maxAwaitTimeMS: 100 }));
    for (const stream of streams) assert.equal(stream.tryNext(), null);
    for (const n of range(0, 20)) {
      for (const i of range(0, 8)) collections[i].insertOne({ _id: `${i}:${n}` });
    }
    for (const i of range(0, 8)) same(nextChanges(streams[i], 20), range(0, 20).map(n => `${i}:${n}`));
    for (const stream of streams) stream.close();
  },

  large_document() {
    const c = collection('large');
    const data = crypto.randomBytes(15 * 1024 * 1024);
    c.insertOne({ _id: 1, data: new Binary(data) });
    assert.ok(data.equals(c.findOne({ _id: 1 }).data.buffer), 'the document came back different');
  },

  large_bulk() {
    const c = collection('large_bulk');
    // What repeats compresses fast, and a document that came back as another one would show.
    const text = () => crypto.randomBytes(500).toString('hex').repeat(1000);
    const documents = range(0, 47).map(i => ({ _id: i, text: text() }));
    // The shell's driver ends a message at the size of the largest document, 16 MB.
    assert.equal(sends('insert', () => c.insertMany(documents)).length, 3);
    const found = c.find().sort({ _id: 1 }).toArray();
    assert.ok(found.length === 47 && found.every((d, i) => d._id === i && d.text === documents[i].text));
    c.drop();
  },

  gridfs: 'the shell has no GridFS',

  unacknowledged_write() {
    collection('unacknowledged');
    // One socket only: the read comes right behind the write.
    const c = open('&maxPoolSize=1').getDB(db.getName()).unacknowledged;
    for (const i of range(0, 100)) {
      assert.equal(c.insertOne({ _id: i }, { writeConcern: { w: 0 } }).acknowledged, false);
      same(c.findOne({ _id: i }), { _id: i });
    }
  },

  stable_api() {
    collection('stable_api', range(0, 10).map(i => ({ _id: i })));
    const strict = open('', { api: { version: '1', strict: true, deprecationErrors: true } });
    const inside = strict.getDB(db.getName());
    const c = inside.stable_api;
    assert.equal(inside.runCommand({ ping: 1 }).ok, 1);
    assert.equal(c.find().batchSize(3).toArray().length, 10);
    c.insertOne({ _id: 10 });
    assert.equal(c.countDocuments(), 11);
    // What the server would refuse, and what a proxy answers itself.
    for (const name of ['dbStats', 'whatsmyuri', 'connPoolStats', 'isMaster']) {
      fails(323, () => inside.runCommand({ [name]: 1 }));
    }
    fails(323, () => c.distinct('_id'));
  },

  max_time() {
    const c = collection('max_time', range(0, 3).map(i => ({ _id: i })));
    const slow = { $where: 'sleep(1000) || true' };
    fails(50, () => c.find(slow).maxTimeMS(50).toArray());
    fails(50, () => db.runCommand({ count: 'max_time', query: slow, maxTimeMS: 50 }));
    assert.equal(c.find().maxTimeMS(10000).batchSize(2).toArray().length, 3);
  },

  write_concern() {
    const c = collection('write_concern');
    assert.ok(c.insertOne({ _id: 1 }, { writeConcern: { w: 'majority', wtimeout: 10000 } }).acknowledged);
    assert.ok(c.insertOne({ _id: 2 }, { writeConcern: { w: 1, j: true } }).acknowledged);
    // The set has one member.
    const error = fails(100, () => c.insertOne({ _id: 3 }, { writeConcern: { w: 2, wtimeout: 500 } }));
    assert.equal(error.name, 'MongoWriteConcernError');
    assert.equal(c.countDocuments(), 3, 'the write itself is done');
  },

  retryable_reads() {
    const c = collection('retryable_reads', range(0, 10).map(i => ({ _id: i })));
    const reads = {
      find: () => c.find().toArray(),
      aggregate: () => c.aggregate([{ $match: {} }]).toArray(),
      distinct: () => c.distinct('_id'),
    };
    for (const name of Object.keys(reads)) {
      for (const errorCode of [HOST_UNREACHABLE, 89, 9001]) {
        let found;
        const sent = sends(name, () => {
          failing(c, { times: 1 }, { failCommands: [name], errorCode }, () => (found = reads[name]()));
        });
        same([found.length, sent.length], [10, 2]);
      }
    }
    const always = { failCommands: ['find'], errorCode: HOST_UNREACHABLE };
    fails(HOST_UNREACHABLE, () => failing(c, 'alwaysOn', always, reads.find));
  },

  retryable_writes() {
    const c = collection('retryable_writes', range(0, 10).map(i => ({ _id: i, n: 0 })));
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
      for (const name of Object.keys(writes)) {
        const data = { failCommands: [name], ...failure };
        const sent = sends(name, () => failing(c, { times: 1 }, data, writes[name]));
        assert.equal(sent.length, 2, `attempts of ${name}`);
        assert.equal(new Set(sent.map(command => String(command.txnNumber))).size, 1, 'transaction numbers');
      }
    }
    same([c.findOne({ _id: 1 }).n, c.findOne({ _id: 2 }).n], [2, 2]);
    assert.equal(c.countDocuments({ of: 'insert' }), 2);
    assert.equal(c.countDocuments({ _id: { $type: 'number' } }), 8, 'what two deletes left');
    // What cannot be retried is told.
    const data = { failCommands: ['update'], errorCode: HOST_UNREACHABLE };
    fails(HOST_UNREACHABLE, () => failing(c, { times: 1 }, data, () => c.updateMany({}, increment)));
  },

  error_codes() {
    const c = collection('error_codes', [{ _id: 1 }]);
    fails(11000, () => c.insertOne({ _id: 1 }));
    fails(11000, () => c.insertMany([{ _id: 2 }, { _id: 1 }], { ordered: false }));
    fails(59, () => db.runCommand({ noSuchCommand: 1 }));
    fails(2, () => c.find({ $noSuchOperator: 1 }).toArray());
    assert.equal(c.countDocuments(), 2);
  },

  commands() {
    const stats = db.adminCommand({ connPoolStats: 1 });
    assert.ok(typeof stats.hosts === 'object' && typeof stats.totalCreated === 'number', 'shape of connPoolStats');
    assert.match(db.adminCommand({ whatsmyuri: 1 }).you, /^127\.0\.0\.1:\d+$/);
    const { username: user } = client.options.credentials ?? {};
    const users = db.adminCommand({ connectionStatus: 1 }).authInfo.authenticatedUsers;
    same(users, user ? [{ user, db: 'admin' }] : []);
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

  monitoring_quiet() {
    same([serversLost, heartbeatsFailed, poolsCleared], [[], [], 0]);
  },

  view() {
    const { type, servers } = client.topology.description;
    const [topology, server] = {
      sharded: ['Single', 'Mongos'],
      replicaset: ['Single', 'RSPrimary'],
      loadbalanced: ['LoadBalanced', 'LoadBalancer'],
    }[view];
    assert.equal(type, topology);
    same([...servers.values()].map(s => s.type), [server]);
  },

  close() {
    db.dropDatabase();
    assert.ok(!db.getMongo().getDBs().databases.some(found => found.name === db.getName()));
    // The shell may open again what was closed, so all that can be asked for is that it closes.
    const other = open();
    assert.equal(other.getDB('admin').runCommand({ ping: 1 }).ok, 1);
    other.close();
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
print('finished');
quit(failed ? 1 : 0);
