// What stands around the page: the programs, clients at work, and a way to end all of it.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { chmodSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { MongoClient } from 'mongodb';

const children = new Set();
// However this ends, they end with it.
process.on('exit', () => children.forEach((child) => child.kill('SIGTERM')));

// Starts a program; `line(pattern)` waits for a line of its output that matches, those before included.
export function start(command, args) {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const lines = [], waiting = new Set();
  children.add(child);
  const ended = once(child, 'exit').then(([code, signal]) => {
    children.delete(child);
    waiting.forEach(({ reject, pattern }) => reject(new Error(`${args[0]} ended with ${code ?? signal} before ${pattern}:\n${lines.slice(-20).join('\n')}`)));
    return code;
  });
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (text) => {
      lines.push(text);
      for (const waiter of waiting) {
        const found = text.match(waiter.pattern);
        if (found) { waiting.delete(waiter); waiter.resolve(found); }
      }
    });
  }
  return {
    line(pattern) {
      const found = lines.map((text) => text.match(pattern)).find(Boolean);
      if (found) return Promise.resolve(found);
      return new Promise((resolve, reject) => waiting.add({ pattern, resolve, reject }));
    },
    async stop(signal = 'SIGTERM') {
      if (children.has(child)) child.kill(signal);
      return ended;
    },
    ended,
  };
}

export async function stopAll() {
  await Promise.all([...children].map((child) => {
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    // A second one ends what drains.
    child.kill('SIGTERM');
    return ended;
  }));
}

// Real servers, with a little load of their own that stays beside what is tested.
export async function startServers(proxy, mongod, clients = 1) {
  const sandbox = start(proxy, ['sandbox', '--clients', String(clients), '--members', '3', '--mongod', mongod, '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0']);
  const [, uri] = await sandbox.line(/^ +MongoDB +(\S+)/);
  const [, admin] = await sandbox.line(/^ +admin +http:\/\/(\S+)\//);
  return { uri, admin: `http://${admin}/`, stop: sandbox.stop };
}

export async function startProxy(proxy, uri, { listen = '127.0.0.1:0', admin = '127.0.0.1:0', more = [], config = '', work }) {
  const file = `${work}/page-${Math.random().toString(36).slice(2)}.toml`;
  writeFileSync(file, config);
  const program = start(proxy, ['run', '--config', file, '--listen', listen, '--admin', admin, ...more, uri]);
  const [, address] = await program.line(/listening .*address=(\S+)/);
  const [, port] = await program.line(/admin port address=\S*:(\d+)/);
  return { ...program, file, address, port: Number(port), url: `http://127.0.0.1:${port}/` };
}

export function secretFile(path, text) {
  writeFileSync(path, text);
  chmodSync(path, 0o600);
  return path;
}

// Sockets of applications, each of which asks one thing after the other until they are stopped, with pauses of `pause`
// milliseconds on average, and of a tenth of that for 15 seconds every `burst` seconds. What fails while the proxy is away does not matter here.
export async function startClients(address, applications, { pause = 0, burst = Infinity } = {}) {
  const connect = ([appName, sockets]) => new MongoClient(`mongodb://${address}/`, { appName, maxPoolSize: sockets, minPoolSize: sockets, maxConnecting: 10 }).connect();
  const clients = await Promise.all(Object.entries(applications).map(connect));
  let over = false;
  const began = Date.now();
  const rest = () => new Promise((resolve) => {
    const fast = (Date.now() - began) / 1000 % burst > burst - 15;
    setTimeout(resolve, 2 * Math.random() * pause / (fast ? 10 : 1));
  });
  const work = clients.flatMap((client) => Array.from({ length: client.options.maxPoolSize }, async (_, number) => {
    const collection = client.db('shop').collection('orders');
    while (!over) {
      await collection.insertOne({ number }).catch(() => {});
      await collection.find({ number }).limit(5).toArray().catch(() => {});
      if (pause) await rest();
    }
  }));
  return async () => {
    over = true;
    await Promise.all(work);
    await Promise.all(clients.map((client) => client.close()));
  };
}
