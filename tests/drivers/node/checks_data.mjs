// Writing and reading documents, and what is said about them.

import assert from 'node:assert/strict';
import { Lacking, range, same } from './harness.mjs';

const DOCUMENTS = 10_500;

export const data = s => ({
  async connect() {
    await s.connect();
    assert.equal((await s.db.admin().command({ ping: 1 })).ok, 1);
    assert.ok((await s.db.admin().serverInfo()).version);
    await s.db.dropDatabase();
  },

  async compression() {
    // A later hello that does not ask repeats what the connection negotiated in its handshake.
    const { compression } = await s.db.admin().command({ hello: 1 });
    same(compression, s.compressor ? [s.compressor] : undefined);
  },

  async crud() {
    const c = await s.collection('crud');
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
    const c = await s.collection('catalog', range(0, 5).map(i => ({ _id: i, k: i })));
    assert.equal(await c.createIndex({ k: 1 }, { unique: true }), 'k_1');
    same((await c.listIndexes().toArray()).map(i => i.name), ['_id_', 'k_1']);
    assert.ok((await s.db.listCollections().toArray()).some(found => found.name === 'catalog'));
    assert.ok((await s.db.admin().listDatabases()).databases.some(found => found.name === s.db.databaseName));
    await c.rename('renamed', { dropTarget: true });
    assert.equal(await s.db.collection('renamed').countDocuments(), 5);
  },

  async bulk_write() {
    const c = await s.collection('bulk');
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

  async bulk_write_client() {
    const a = await s.collection('bulk_client_a');
    const b = await s.collection('bulk_client_b');
    const insert = (i, c) => ({ name: 'insertOne', namespace: c.namespace, document: { _id: i } });
    const models = range(0, 500).flatMap(i => [insert(i, a), insert(i, b)]);
    models.push({ name: 'updateMany', namespace: b.namespace, filter: {}, update: { $set: { n: 1 } } });
    if ((await s.db.admin().command({ hello: 1 })).maxWireVersion < 25) {
      const refusal = await s.client.bulkWrite(models).then(() => null, error => error);
      assert.ok(refusal, 'a server before 8.0 took it');
      throw new Lacking(`before 8.0: ${refusal.message}`);
    }
    const { insertedCount, modifiedCount } = await s.client.bulkWrite(models);
    same([insertedCount, modifiedCount], [1000, 500]);
    same([await a.countDocuments({ n: 1 }), await b.countDocuments({ n: 1 })], [0, 500]);
  },

  async batches() {
    const c = await s.collection('batches');
    const text = 'x'.repeat(200);
    const { insertedCount } = await c.insertMany(range(0, DOCUMENTS).map(i => ({ _id: i, text })));
    assert.equal(insertedCount, DOCUMENTS);
    const { result, commands } = await s.view.record('getMore', () =>
      c.find({ text }).sort({ _id: 1 }).batchSize(1000).toArray(),
    );
    same(result.map(d => d._id), range(0, DOCUMENTS));
    assert.equal(commands.length, 10, 'getMores');
  },
});
