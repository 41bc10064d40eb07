// Change streams.

import assert from 'node:assert/strict';
import { gone, range, same } from './harness.mjs';

/** So many ids, or what has come after 20 s. */
async function nextChanges(stream, count) {
  const seen = [];
  for (const deadline = Date.now() + 20_000; seen.length < count && Date.now() < deadline; ) {
    const change = await stream.tryNext();
    if (change) seen.push(change.documentKey._id);
  }
  return seen;
}

export const streams = s => ({
  async change_stream() {
    const c = await s.collection('change_stream');
    const stream = c.watch([], { maxAwaitTimeMS: 500 });
    const waiting = s.view.sent('getMore');
    const seen = [];
    const reading = (async () => {
      const deadline = Date.now() + 20_000;
      while (seen.length < 20 && Date.now() < deadline) {
        const change = await stream.tryNext();
        if (change) seen.push(change);
      }
    })();
    await waiting;
    const id = s.view.cursorId;
    for (const i of range(0, 20)) await c.insertOne({ _id: i });
    await reading;
    same(seen.map(change => change.fullDocument._id), range(0, 20));
    await stream.close();
    await gone(s.db, c.collectionName, s.driver.Long.fromValue(id));
    const resumed = c.watch([], { resumeAfter: seen[9]._id });
    for (const i of range(10, 20)) assert.equal((await resumed.next()).documentKey._id, i);
    await resumed.close();
  },

  async change_stream_resume() {
    const c = await s.collection('change_stream_resume');
    const insert = (from, to) => c.insertMany(range(from, to).map(i => ({ _id: i })));
    const { commands } = await s.view.record('aggregate', async () => {
      const stream = c.watch([], { maxAwaitTimeMS: 500, batchSize: 5 });
      assert.equal(await stream.tryNext(), null, 'before all changes');
      for (const first of [0, 10, 20]) {
        await insert(first, first + 8);
        same(await nextChanges(stream, 4), range(first, first + 4));
        const id = s.driver.Long.fromValue(s.view.cursorId);
        await s.db.command({ killCursors: c.collectionName, cursors: [id] });
        await insert(first + 8, first + 10);
        same(await nextChanges(stream, 6), range(first + 4, first + 10));
      }
      assert.equal(await stream.tryNext(), null, 'after all changes');
      await stream.close();
    });
    same(commands.map(command => 'resumeAfter' in command.pipeline[0].$changeStream), [false, true, true, true]);
  },

  async change_stream_many() {
    const collections = [];
    for (const i of range(0, 8)) collections.push(await s.collection(`change_stream_${i}`));
    const streams = collections.map(c => c.watch([], { maxAwaitTimeMS: 500 }));
    same(await Promise.all(streams.map(stream => stream.tryNext())), Array(8).fill(null));
    const reading = Promise.all(streams.map(stream => nextChanges(stream, 20)));
    for (const n of range(0, 20)) await Promise.all(collections.map((c, i) => c.insertOne({ _id: `${i}:${n}` })));
    same(await reading, range(0, 8).map(i => range(0, 20).map(n => `${i}:${n}`)));
    await Promise.all(streams.map(stream => stream.close()));
  },
});
