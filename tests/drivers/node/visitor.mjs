// The `mongodb` package as a visitor of `tests/drivers/logins`; `python/visitor.py` says what is asked and answered.

import { createInterface } from 'node:readline';
import { BSON, MongoClient } from 'mongodb';

const { EJSON } = BSON;
const clients = {};

async function obey(order) {
  if ('open' in order) {
    clients[order.open] = new MongoClient(order.uri);
  } else if ('close' in order) {
    await clients[order.close].close();
    delete clients[order.close];
  } else {
    return { reply: await clients[order.on].db(order.db).command(EJSON.deserialize(order.run)) };
  }
  return {};
}

for await (const line of createInterface({ input: process.stdin })) {
  const told = ({ name: kind, code, message }) => ({ error: { kind, code: Number.isInteger(code) ? code : null, message } });
  console.log(EJSON.stringify(await obey(JSON.parse(line)).catch(told)));
}
