// The node driver in trouble: the same lines in and out as `python/actor.py`, which explains them.

import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { MongoClient, MongoError } from 'mongodb';

const LARGE = 'x'.repeat(12 * 1024 * 1024);
const WORKERS = 30;
// How long a change stream waits at a time, ms.
const AWAIT = 100;

const tell = (event, fields = {}) => process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const heard = async () => {
  const { value, done } = await lines.next();
  return done ? process.exit(0) : JSON.parse(value);
};

const labelsOf = error => (error instanceof MongoError ? [...error.errorLabels].sort() : []);

/** What one client notices. */
class Ears {
  closing = false;
  retried = 0;
  // Under load only trouble is told.
  loaded = false;

  constructor(name, client) {
    client.on('commandSucceeded', ({ commandName, reply }) => {
      const concern = reply?.writeConcernError;
      this.told(commandName, concern ? 'concern' : 'ok', concern?.code, reply?.errorLabels ?? []);
    });
    client.on('commandFailed', ({ commandName, failure }) => {
      this.told(commandName, 'error', failure.code, labelsOf(failure));
    });
    client.on('connectionPoolCleared', () => tell('pool_cleared', { client: name }));
    client.on('connectionClosed', ({ reason }) => {
      if (!this.closing) tell('socket_closed', { client: name, why: reason });
    });
    client.on('serverDescriptionChanged', ({ previousDescription: before, newDescription: after }) => {
      if (!this.closing && before.type !== 'Unknown' && after.type === 'Unknown') {
        tell('server_lost', { client: name, why: String(after.error) });
      }
    });
  }

  told(command, kind, code, labels) {
    if (this.loaded) this.retried += kind === 'error';
    else tell('told', { command, kind, code: typeof code === 'number' ? code : null, labels });
  }
}

/** What one operation needs. `go` marks where the trouble begins; callbacks that start over do not wait again. */
class Operation {
  gone = false;
  cleanup = null;
  facts = {};

  constructor({ client, ears }, id) {
    Object.assign(this, { client, ears, id });
    this.db = client.db('trouble');
    this.things = this.db.collection('things');
    this.inserts = this.db.collection('inserts');
    this.increment = { $inc: { n: 1 } };
  }

  async go() {
    if (this.gone) return;
    this.gone = true;
    tell('ready');
    await heard();
  }

  async silently(document) {
    await this.go();
    await this.inserts.insertOne(document, { writeConcern: { w: 0 } });
    // On the same socket: answered once the write is over.
    await this.client.db('admin').command({ ping: 1 });
  }

  async inTransaction(callback) {
    this.facts.runs = 0;
    await this.client.withSession(session =>
      session.withTransaction(async () => {
        this.facts.runs += 1;
        await callback(session);
      }),
    );
  }
}

const operations = {
  async find(o) {
    await o.go();
    assert.equal((await o.things.findOne({ _id: o.id })).n, 0);
  },

  async find_in_time(o) {
    await o.go();
    await o.things.find({ _id: o.id }, { maxTimeMS: 100 }).toArray();
  },

  async insert(o) {
    await o.go();
    await o.inserts.insertOne({ _id: o.id });
  },

  async update_one(o) {
    await o.go();
    await o.things.updateOne({ _id: o.id }, o.increment);
  },

  async update_many(o) {
    await o.go();
    await o.things.updateMany({ _id: o.id }, o.increment);
  },

  async command(o) {
    await o.go();
    await o.db.command({ update: 'things', updates: [{ q: { _id: o.id }, u: o.increment }] });
  },

  async get_more(o) {
    const cursor = o.db.collection('many').find({}, { batchSize: 2 }).sort({ _id: 1 });
    o.cleanup = () => cursor.close();
    const found = [(await cursor.next())._id, (await cursor.next())._id];
    await o.go();
    for await (const document of cursor) found.push(document._id);
    assert.deepEqual(found, [0, 1, 2, 3, 4, 5]);
  },

  async change_stream(o) {
    const stream = o.inserts.watch([{ $match: { 'documentKey._id': o.id } }], { maxAwaitTimeMS: AWAIT });
    o.cleanup = () => stream.close();
    // It waits at the server, so there is something to resume from.
    assert.equal(await stream.tryNext(), null);
    await o.inserts.insertOne({ _id: o.id });
    await o.go();
    assert.equal((await stream.next()).documentKey._id, o.id);
    // Once, and no second time.
    assert.equal(await stream.tryNext(), null);
  },

  first_statement: o =>
    o.inTransaction(async session => {
      await o.go();
      await o.inserts.insertOne({ _id: o.id }, { session });
    }),

  statement: o =>
    o.inTransaction(async session => {
      await o.things.updateOne({ _id: o.id }, o.increment, { session });
      await o.go();
      await o.inserts.insertOne({ _id: o.id }, { session });
    }),

  commit: o =>
    o.inTransaction(async session => {
      await o.things.updateOne({ _id: o.id }, o.increment, { session });
      await o.inserts.insertOne({ _id: o.id }, { session });
      await o.go();
    }),

  abort: o =>
    o.client.withSession(async session => {
      session.startTransaction();
      await o.inserts.insertOne({ _id: o.id }, { session });
      await o.go();
      await session.abortTransaction();
    }),

  unacknowledged: o => o.silently({ _id: o.id }),

  async ping(o) {
    await o.go();
    await o.client.db('admin').command({ ping: 1 });
  },

  async hello(o) {
    await o.go();
    assert.equal((await o.client.db('admin').command({ hello: 1 })).msg, 'isdbgrid');
  },

  async large_insert(o) {
    await o.go();
    await o.inserts.insertOne({ _id: o.id, text: LARGE });
  },

  async large_command(o) {
    await o.go();
    await o.db.command({ insert: 'inserts', documents: [{ _id: o.id, text: LARGE }] });
  },

  large_statement: o =>
    o.inTransaction(async session => {
      await o.things.updateOne({ _id: o.id }, o.increment, { session });
      await o.go();
      await o.inserts.insertOne({ _id: o.id, text: LARGE }, { session });
    }),

  large_unacknowledged: o => o.silently({ _id: o.id, text: LARGE }),

  /** Inserts and reads from many workers until the next line comes. */
  async load(o) {
    const ledger = o.db.collection('ledger');
    let over = false;
    o.ears.loaded = true;
    const worker = async number => {
      let done = 0;
      const errors = [];
      while (!over) {
        const document = { _id: `${number}:${done}`, worker: number, n: done };
        try {
          await ledger.insertOne(document);
          done += 1;
          assert.deepEqual(await ledger.findOne({ _id: document._id }), document, 'what was acknowledged');
        } catch (error) {
          errors.push(short(error));
          break;
        }
      }
      return { done, errors };
    };
    const workers = Array.from({ length: WORKERS }, (_, number) => worker(number));
    await o.go();
    over = true;
    const results = await Promise.all(workers);
    o.ears.loaded = false;
    o.facts.acknowledged = results.map(({ done }) => done);
    o.facts.errors = results.flatMap(({ errors }) => errors);
    o.facts.retried = o.ears.retried;
  },
};

const short = error => `${error.name} ${error.code} ${labelsOf(error)}: ${error.message}`;

async function carryOut(operation, name) {
  let error = null;
  try {
    await operations[name](operation);
  } catch (raised) {
    const code = raised instanceof MongoError && typeof raised.code === 'number' ? raised.code : null;
    error = { code, text: short(raised) };
  }
  tell('done', { error, gone: operation.gone, ...operation.facts });
  await operation.cleanup?.().catch(() => {});
}

const clients = {};
for (;;) {
  const order = await heard();
  if (order.uri) {
    const client = new MongoClient(order.uri, { monitorCommands: true, serverSelectionTimeoutMS: 10_000 });
    clients[order.client] = { client, ears: new Ears(order.client, client) };
  } else if (order.operation) {
    await carryOut(new Operation(clients[order.on], order.id), order.operation);
  } else {
    for (const { client, ears } of Object.values(clients)) {
      ears.closing = true;
      await client.close();
    }
    tell('done', { error: null });
    process.exit(0);
  }
}
