// Reads with guarantees, sessions and transactions.

import assert from 'node:assert/strict';
import { fails, range, same } from './harness.mjs';

const hex = lsid => lsid.id.toString('hex');

export const sessions = s => ({
  async read_options() {
    const c = await s.collection('read_options', [{ _id: 1 }]);
    for (const level of ['local', 'available', 'majority', 'linearizable']) {
      same(await c.findOne({}, { readConcern: { level } }), { _id: 1 });
      same(await c.aggregate([{ $match: {} }], { readConcern: { level } }).toArray(), [{ _id: 1 }]);
    }
  },

  async read_preferences() {
    const c = await s.collection('read_preferences', range(0, 50).map(i => ({ _id: i })));
    for (const readPreference of ['primary', 'primaryPreferred', 'secondaryPreferred', 'nearest']) {
      assert.equal((await c.find({}, { readPreference, batchSize: 20 }).toArray()).length, 50, readPreference);
      assert.equal(await c.countDocuments({}, { readPreference }), 50, readPreference);
    }
    // The only member is the primary: a driver finds that out itself, and through the proxy it is told.
    const other = await s.open({ serverSelectionTimeoutMS: 500, retryReads: false });
    const read = () => other.db(s.db.databaseName).collection(c.collectionName).findOne({}, { readPreference: 'secondary' });
    try {
      if (s.wanted === 'replicaset') await assert.rejects(read, { name: 'MongoServerSelectionError' });
      else await fails(6, read);
    } finally {
      await other.close();
    }
  },

  async causal_reads() {
    const majority = { readConcern: { level: 'majority' }, writeConcern: { w: 'majority' } };
    const c = (await s.collection('causal')) && s.db.collection('causal', majority);
    let latest;
    let time;
    const { commands } = await s.view.record('find', () =>
      s.client.withSession({ causalConsistency: true }, async session => {
        for (const i of range(0, 10)) {
          await c.insertOne({ _id: i }, { session });
          same(await c.findOne({ _id: i }, { session, readPreference: 'nearest' }), { _id: i });
        }
        latest = session.operationTime;
        time = session.clusterTime;
      }),
    );
    assert.ok(commands.every(command => command.readConcern.afterClusterTime), 'afterClusterTime in each find');
    await s.client.withSession({ causalConsistency: true }, async session => {
      session.advanceClusterTime(time);
      session.advanceOperationTime(latest);
      assert.equal(await c.countDocuments({}, { session, readPreference: 'nearest' }), 10);
    });
  },

  async sessions() {
    const c = await s.collection('sessions', range(0, 30).map(i => ({ _id: i })));
    const used = new Set();
    const worker = i =>
      s.client.withSession(async session => {
        const id = hex(session.id);
        used.add(id);
        await c.updateOne({ _id: i }, { $set: { lsid: id } }, { session });
        const found = await c.find({ _id: { $gte: i } }, { session }).sort({ _id: 1 }).batchSize(2).toArray();
        same([found[0].lsid, found.length], [id, 30 - i]);
      });
    const { commands } = await s.view.record('find', () => Promise.all(range(0, 30).map(worker)));
    assert.equal(used.size, 30);
    same(new Set(commands.map(command => hex(command.lsid))), used);
    const known = await s.client.db('admin').aggregate([{ $listLocalSessions: {} }]).toArray();
    const ids = new Set(known.map(d => d._id.id.toString('hex')));
    same([...used].filter(id => !ids.has(id)), []);
    const other = await s.open();
    const foreign = other.startSession();
    await assert.rejects(() => c.findOne({}, { session: foreign }), { name: 'MongoInvalidArgumentError' });
    await foreign.endSession();
    await other.close();
  },

  async snapshot_reads() {
    const c = await s.collection('snapshot');
    await c.insertMany(range(0, 50).map(i => ({ _id: i, n: 1 })), { writeConcern: { w: 'majority' } });
    await s.client.withSession({ snapshot: true }, async session => {
      const found = () => c.find({}, { session, batchSize: 20 }).toArray();
      assert.equal((await found()).length, 50, 'found first');
      await c.insertOne({ _id: 50, n: 2 });
      await c.deleteOne({ _id: 0 });
      assert.equal((await found()).length, 50, 'found after a write');
      same(await c.aggregate([{ $count: 'n' }], { session }).toArray(), [{ n: 50 }]);
      same(await c.distinct('n', {}, { session }), [1]);
    });
    same((await c.distinct('n')).sort(), [1, 2]);
  },

  async transaction_commit() {
    const [a, b] = [await s.collection('commit_a'), await s.collection('commit_b')];
    await s.client.withSession(async session => {
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
    const c = await s.collection('abort');
    await s.client.withSession(async session => {
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
    const c = await s.collection('conflict', [{ _id: 1, n: 0 }]);
    const worker = () =>
      s.client.withSession(async session => {
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
    const c = await s.collection('transaction_cursor', range(0, 500).map(i => ({ _id: i })));
    await s.client.withSession(session =>
      session.withTransaction(async () => {
        const found = await c.find({}, { session }).sort({ _id: 1 }).batchSize(50).toArray();
        same(found.map(d => d._id), range(0, 500));
      }),
    );
  },

  async transaction_errors() {
    const c = await s.collection('transaction_errors', [{ _id: 1 }]);
    await s.client.withSession(async session => {
      session.startTransaction();
      await c.insertOne({ _id: 2 }, { session });
      const duplicate = await fails(11000, () => c.insertOne({ _id: 1 }, { session }));
      assert.equal(duplicate.hasErrorLabel('TransientTransactionError'), false, 'a duplicate key is transient');
      const next = await fails(251, () => c.insertOne({ _id: 3 }, { session }));
      assert.equal(next.hasErrorLabel('TransientTransactionError'), true, 'transient label of the next statement');
      await session.abortTransaction();
      await fails(11000, () =>
        session.withTransaction(async () => {
          await c.insertOne({ _id: 4 }, { session });
          await c.insertOne({ _id: 1 }, { session });
        }),
      );
      same(await c.find().toArray(), [{ _id: 1 }]);
      await session.withTransaction(() => c.insertOne({ _id: 5 }, { session }));
    });
    assert.equal(await c.countDocuments(), 2, 'count after a good transaction in the same session');
  },
});
