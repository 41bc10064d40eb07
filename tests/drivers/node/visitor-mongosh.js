// mongosh as a visitor of `tests/drivers/logins`; `python/visitor.py` says what is asked and answered. To be run with --nodb.

const orders = [];
let ended = false;
require('readline').createInterface({ input: process.stdin })
  .on('line', line => orders.push(line))
  .on('close', () => (ended = true));

const clients = {};

function obey(order) {
  if ('open' in order) {
    clients[order.open] = new Mongo(order.uri);
  } else if ('close' in order) {
    clients[order.close].close();
    delete clients[order.close];
  } else {
    return { reply: clients[order.on].getDB(order.db).runCommand(EJSON.deserialize(order.run)) };
  }
  return {};
}

// The shell knows no reading that waits.
while (!ended || orders.length) {
  if (!orders.length) {
    sleep(2);
    continue;
  }
  const line = orders.shift();
  let answer;
  try {
    answer = obey(JSON.parse(line));
  } catch (error) {
    const code = Number.isInteger(error.code) ? error.code : null;
    answer = { error: { kind: error.name, code, message: error.message } };
  }
  print(EJSON.stringify(answer));
}
