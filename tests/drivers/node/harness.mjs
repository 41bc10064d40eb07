// What the node scenarios share: running checks, comparing, and watching what the driver says about itself.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { on } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';

// What the driver must make of the address: topology type and server type.
export const VIEWS = {
  sharded: ['Sharded', 'Mongos'],
  replicaset: ['ReplicaSetWithPrimary', 'RSPrimary'],
  loadbalanced: ['LoadBalanced', 'LoadBalancer'],
};

/** URI [--view sharded|replicaset|loadbalanced] [--compressor zlib|snappy] [--only NAME,...] */
export function readArguments() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      view: { type: 'string', default: 'sharded' },
      compressor: { type: 'string' },
      only: { type: 'string' }, // these checks, and connect and close: for work on a check
    },
  });
  assert.ok(positionals.length === 1 && values.view in VIEWS, 'usage: SCRIPT URI [--view VIEW] [--compressor NAME]');
  return { uri: positionals[0], ...values };
}

// Of one check, ms. `withTransaction` alone may start over for 120 s.
const LONGEST = 30_000;

function tooLong() {
  throw new Error(`not done after ${LONGEST} ms`);
}

/** The driver or the server has no such thing: the check is "n/a". */
export class Lacking extends Error {}

/** Runs `[name, async function]` pairs in order, one printed line each, and ends the process. No check runs unconnected. */
export async function run(checks, only) {
  let failed = false;
  for (const [name, check] of checks) {
    if (only && !['connect', ...only.split(','), 'close'].includes(name)) continue;
    try {
      await Promise.race([check(), setTimeout(LONGEST, undefined, { ref: false }).then(tooLong)]);
      console.log(`ok ${name}`);
    } catch (error) {
      if (error instanceof Lacking) {
        console.log(`n/a ${name}: ${error.message}`);
        continue;
      }
      failed = true;
      console.log(`FAIL ${name}: ${`${error?.name}: ${error?.message}`.replace(/\s+/g, ' ').slice(0, 400)}`);
      console.error(error);
      if (name === 'connect') break;
    }
  }
  console.log('finished');
  process.exitCode = failed ? 1 : 0;
  // A client that could not be closed must not keep the process.
  setTimeout(2_000, undefined, { ref: false }).then(() => process.exit());
}

export const same = assert.deepEqual;

/** The operation must fail with this server code; returns the error. */
export async function fails(code, operation) {
  let result;
  try {
    result = await operation();
  } catch (error) {
    assert.equal(error.code, code, `code of ${error}`);
    return error;
  }
  assert.fail(`no error, code ${code} was due, the result is ${JSON.stringify(result)?.slice(0, 100)}`);
}

/** The cursor must no longer exist on the server; one that does would answer 50738 to this session. */
export async function gone(db, collection, cursorId) {
  const getMore = { getMore: cursorId, collection };
  // A getMore that was running when the cursor was killed still holds it for a moment.
  for (const deadline = Date.now() + 5_000; ; await setTimeout(20)) {
    const code = await db.command(getMore).then(() => 'none', error => error.code);
    if (code === 43) return;
    assert.ok(code === 143 && Date.now() < deadline, `the cursor was not killed: code ${code}, not 43`);
  }
}

export const sha256 = data => createHash('sha256').update(data).digest('hex');

export const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

/** Watches one MongoClient; to be made before it connects. The client needs `monitorCommands: true`. */
export class View {
  poolsCleared = 0;
  serversLost = [];
  heartbeats = 0;
  heartbeatsFailed = [];
  cursorId = null;

  constructor(client) {
    this.client = client;
    // Behind a load balancer it is known at once, before anybody can listen.
    this.topology = client.topology?.description ?? null;
    client.on('topologyDescriptionChanged', event => (this.topology = event.newDescription));
    client.on('connectionPoolCleared', () => (this.poolsCleared += 1));
    client.on('serverDescriptionChanged', ({ previousDescription: before, newDescription: after }) => {
      if (before.type !== 'Unknown' && after.error) this.serversLost.push(String(after.error));
    });
    client.on('serverHeartbeatSucceeded', () => (this.heartbeats += 1));
    client.on('serverHeartbeatFailed', event => this.heartbeatsFailed.push(String(event.failure)));
    client.on('commandSucceeded', event => {
      if (event.commandName === 'aggregate') this.cursorId = event.reply.cursor?.id;
    });
  }

  /** Resolves when the next command of this name is sent. */
  async sent(name) {
    const signal = AbortSignal.timeout(10_000);
    for await (const [event] of on(this.client, 'commandStarted', { signal })) {
      if (event.commandName === name) return;
    }
  }

  /** The commands of this name that are sent while the operation runs, and its result. */
  async record(name, operation) {
    const commands = [];
    const listener = event => event.commandName === name && commands.push(event.command);
    this.client.on('commandStarted', listener);
    try {
      return { result: await operation(commands), commands };
    } finally {
      this.client.off('commandStarted', listener);
    }
  }

  verify(view) {
    const [topology, server] = VIEWS[view];
    assert.equal(this.topology.type, topology, 'topology type');
    assert.deepEqual([...this.topology.servers.values()].map(s => s.type), [server], 'server types');
  }

  verifyCalm() {
    assert.deepEqual(this.serversLost, [], 'servers lost');
    assert.equal(this.poolsCleared, 0, 'pools cleared');
    assert.deepEqual(this.heartbeatsFailed, [], 'heartbeats failed');
  }
}
