// The driver scenario for the `mongodb` package: scenario.mjs URI [--view VIEW] [--compressor NAME] [--only NAME,...]

import * as driver from 'mongodb';
import { checks } from './checks.mjs';
import { readArguments, run, View } from './harness.mjs';

const { uri, view: wanted, compressor, only } = readArguments();
const options = { monitorCommands: true, serverSelectionTimeoutMS: 10_000 };
if (compressor) options.compressors = [compressor];

const client = new driver.MongoClient(uri, options);
const db = client.db(`drivers_node_${compressor ?? wanted}`);

const stage = {
  driver,
  client,
  db,
  view: new View(client),
  wanted,
  compressor,
  connect: () => client.connect(),
  close: () => client.close(),

  /** Another client, to be closed. */
  open: extra => new driver.MongoClient(uri, { ...options, ...extra }).connect(),

  /** An empty collection that exists, or one with these documents. */
  async collection(name, documents = [], settings = {}) {
    await db.dropCollection(name);
    const created = await db.createCollection(name, settings);
    if (documents.length) await created.insertMany(documents);
    return db.collection(name);
  },
};

await run(Object.entries(checks(stage)), only);
