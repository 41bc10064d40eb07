'use strict';
// The page of the admin port. It asks /stats and the rest every two seconds and shows what they say. Applications choose
// their names and error texts themselves, so text becomes text and never markup: everything goes through `h` and `say`.

const POLL_MS = 2000, HIDDEN_MS = 30000, SLOWEST_MS = 15000, HISTORY_MS = 5000, TIMEOUT_MS = 5000;
const SPAN_SECONDS = 900;
const PATHS = document.documentElement.dataset.paths.split(' ');
const LANES = ['transaction', 'regular', 'await', 'background'];

const $ = (id) => document.getElementById(id);
const knows = (path) => PATHS.some((known) => known === path || known.startsWith(path + '/'));

// --- Elements -------------------------------------------------------------------------------------------------------

// h('p.a.b', {title: 'c', onclick: f}, 'text', element)
function h(name, attributes, ...children) {
  const [tag, ...classes] = name.split('.');
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(' ');
  attach(element, attributes);
  element.append(...children.filter((child) => child != null));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  attach(element, attributes);
  element.append(...children);
  return element;
}

function attach(element, attributes) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === 'function') element.addEventListener(key.slice(2), value);
    else if (value != null && value !== false) element.setAttribute(key, value);
  }
}

// What has not changed is not touched, so that nothing flickers and nobody's selection is lost.
function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

function put(element, attribute, value) {
  if (element.getAttribute(attribute) !== String(value)) element.setAttribute(attribute, value);
}

function badge(element, kind, text) {
  put(element, 'class', `badge ${kind}`);
  say(element, text);
}

// Elements for items, made once for each key and updated from then on, so that focus stays where it is.
// `make(item)` gives {element, update}.
const made = new WeakMap();
function keyed(parent, items, key, make) {
  const before = made.get(parent) || new Map(), now = new Map();
  made.set(parent, now);
  items.forEach((item, index) => {
    let name = key(item);
    while (now.has(name)) name += '′';
    const row = before.get(name) || make(item);
    before.delete(name);
    now.set(name, row);
    if (row.update) row.update(item);
    if (parent.children[index] !== row.element) parent.insertBefore(row.element, parent.children[index] || null);
  });
  before.forEach((row) => row.element.remove());
}

// Short facts: a list of [value, words] or [value, words, 'problem'].
function facts(list, all) {
  keyed(list, all.filter(Boolean), (fact) => fact[1], () => {
    const value = h('b'), words = h('span');
    return {
      element: h('li', {}, value, ' ', words),
      update: ([number, text, kind]) => { say(value, number); say(words, text); put(value, 'class', kind || ''); },
    };
  });
}

// --- Numbers --------------------------------------------------------------------------------------------------------

const number = (value) => Math.round(value).toLocaleString('en');
const some = (count, one, more = one + 's') => `${number(count)} ${count === 1 ? one : more}`;
const sum = (items, of) => items.reduce((total, item) => total + of(item), 0);

function digits(value) {
  return value >= 100 || Number.isInteger(value) ? number(value) : String(Number(value.toPrecision(2)));
}

function time(ms) {
  if (ms >= 60000) return `${Math.floor(ms / 60000)} min ${Math.round(ms % 60000 / 1000)} s`;
  if (ms >= 1000) return `${digits(ms / 1000)} s`;
  return ms > 0 && ms < 1 ? `${digits(ms * 1000)} µs` : `${digits(ms)} ms`;
}

function span(seconds) {
  const [days, hours, minutes] = [seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60].map(Math.floor);
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

// Names of fields, as words.
const words = (name) => name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
const clock = (date) => date.toLocaleTimeString('en-GB');

// --- Asking ---------------------------------------------------------------------------------------------------------

// In memory only: it ends with this page.
let token = null;

class Refused extends Error {
  constructor(status, answer) {
    super(answer && answer.error ? answer.error : `the answer was ${status}`);
    this.status = status;
    this.answer = answer;
  }
}

async function ask(path, order) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (order) Object.assign(headers, { 'X-Mongomux': '1', 'Content-Type': 'application/json' });
  const response = await fetch(path, {
    method: order ? 'POST' : 'GET', headers, body: order && JSON.stringify(order),
    cache: 'no-store', redirect: 'error', signal: AbortSignal.timeout(order ? 6 * TIMEOUT_MS : TIMEOUT_MS),
  });
  // An answer that breaks off is none; a refusal is one without its words as well.
  const answer = await response.json().catch((error) => { if (response.ok) throw error; });
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

const seen = { stats: null, at: 0, history: null, historyAt: 0, clients: null, events: null };
let failures = 0, refusal = null, timer = 0, asking = false, nextAt = 0;

async function poll() {
  clearTimeout(timer);
  if (asking) return;
  asking = true;
  let news = null;
  try {
    const optional = (path, query = '') => (knows(path) ? ask(path + query).catch(() => null) : null);
    const due = Date.now() - seen.historyAt >= HISTORY_MS - POLL_MS / 2;
    // The first question is alone: where it is refused, so would be the others.
    const stats = await ask('/stats');
    const [history, clients, events] = await Promise.all([due ? optional('/history') : null, optional('/clients', $('single').open ? '?list=1&limit=50' : ''), optional('/events')]);
    news = { before: seen.stats, wasAway: failures > 0 };
    Object.assign(seen, { stats, at: Date.now() }, clients && { clients }, events && { events });
    if (history) Object.assign(seen, { history, historyAt: Date.now() });
    failures = 0;
    refusal = null;
  } catch (error) {
    failures += 1;
    refusal = error instanceof Refused ? error : null;
    if (failures === 1 && !refusal) announce('The proxy cannot be reached.');
    if (refusal && refusal.status === 401) askForToken();
  }
  asking = false;
  const pause = document.hidden ? HIDDEN_MS : failures ? Math.min(POLL_MS * 2 ** (failures - 1), SLOWEST_MS) : POLL_MS;
  nextAt = Date.now() + pause;
  // Without a token, asking again would be guessing.
  if (!(refusal && refusal.status === 401)) timer = setTimeout(poll, pause);
  showLink();
  if (!news) return;
  if (news.before) announceChanges(news.before, seen.stats, news.wasAway);
  show();
}

document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });

// How old the numbers are, and what is wrong with getting new ones.
function showLink() {
  const age = Math.round((Date.now() - seen.at) / 1000);
  const from = seen.at ? ` The numbers below are of ${clock(new Date(seen.at))}, ${span(age)} ago.` : '';
  let words = '', button = 'Try now';
  if (refusal && refusal.status === 401) {
    words = `A token is needed.${from}`;
    button = 'Enter a token';
  } else if (refusal) {
    words = `The proxy does not tell: ${refusal.message}.${from}`;
  } else if (failures) {
    const wait = Math.max(0, Math.round((nextAt - Date.now()) / 1000));
    words = `The proxy cannot be reached.${from} ${asking || !wait ? 'Trying again.' : `Trying again in ${wait} s.`}`;
  }
  $('trouble').hidden = !words;
  say($('trouble-words'), words);
  say($('again'), button);
  document.documentElement.classList.toggle('stale', Boolean(words && seen.at));
  if (refusal) badge($('link'), 'bad', refusal.status === 401 ? 'token needed' : 'refused');
  else if (failures) badge($('link'), 'bad', 'not reached');
  else if (seen.at) badge($('link'), age > 5 ? 'warn' : 'good', age > 1 ? `live, ${age} s old` : 'live');
}
setInterval(showLink, 1000);
$('again').addEventListener('click', () => (refusal && refusal.status === 401 ? askForToken() : poll()));

// --- Saying what has changed ----------------------------------------------------------------------------------------

function announce(words) { $('live').textContent = words; }

function announceChanges(before, now, wasAway) {
  const news = wasAway ? ['The proxy is reached again.'] : [];
  if (now.uptimeSeconds < before.uptimeSeconds) news.push('The proxy was started anew.');
  if (now.draining && !before.draining) news.push('The proxy drains.');
  for (const cluster of now.clusters) {
    const old = before.clusters.find((it) => it.name === cluster.name) || cluster;
    if (old.status !== cluster.status) news.push(`Cluster ${cluster.name} is ${cluster.status}.`);
    if (old.mode !== cluster.mode) news.push(`Cluster ${cluster.name} is in mode ${cluster.mode}.`);
    for (const server of cluster.servers) {
      const was = old.servers.find((it) => it.address === server.address);
      if (!was) { news.push(`Server ${server.address} has joined.`); continue; }
      if (was.status !== server.status) news.push(`Server ${server.address} is ${server.status}.`);
      if (was.role !== server.role) news.push(`Server ${server.address} is ${server.role} now.`);
      if (was.breaker !== server.breaker) news.push(`The breaker of ${server.address} is ${breaker(server)}.`);
    }
    for (const was of old.servers) {
      if (!cluster.servers.some((it) => it.address === was.address)) news.push(`Server ${was.address} has left.`);
    }
  }
  if (news.length) announce(news.slice(0, 5).join(' '));
}

// --- Showing --------------------------------------------------------------------------------------------------------

const KIND = { healthy: 'good', degraded: 'warn', down: 'bad' };
const breaker = (server) => server.breaker.replace('_', '-');

function show() {
  const { stats } = seen;
  $('main').hidden = false;
  say($('about'), `version ${stats.version}, up ${span(stats.uptimeSeconds)}`);
  const worst = ['down', 'degraded', 'healthy'].find((status) => stats.clusters.some((it) => it.status === status));
  document.title = `${worst && worst !== 'healthy' ? `${worst}: ` : ''}mongomux`;
  showAdvice(stats);
  showFunnel(stats);
  showScopes(stats);
  showCharts();
  keyed($('clusters'), stats.clusters, (cluster) => cluster.name, makeCluster);
  showApplications(stats);
  showEvents();
  showClients();
  keyed($('listeners'), stats.listeners || [], (listener) => listener.address, makeListener);
}

function showAdvice(stats) {
  const all = [];
  const advise = (kind, about, words) => all.push({ kind, about, words });
  if (stats.draining) advise('warn', 'Draining', 'no new clients are taken, and the proxy ends once those that are there have left or are quiet');
  if (stats.surplusClients) advise('warn', 'Clients', `${some(stats.surplusClients, 'socket')} beyond max_clients are answered that there is no room`);
  for (const cluster of stats.clusters) {
    if (cluster.problem) advise('bad', cluster.name, cluster.problem);
    if (cluster.mode !== 'normal') advise('warn', cluster.name, `mode ${cluster.mode}, by order of the operator`);
    const fleet = cluster.fleet && cluster.fleet.warning;
    if (fleet && !cluster.recommendations.includes(fleet)) advise('warn', cluster.name, fleet);
    cluster.recommendations.forEach((words) => advise(KIND[cluster.status] === 'bad' ? 'bad' : 'warn', cluster.name, words));
    for (const server of cluster.servers) {
      server.recommendations.forEach((words) => advise(server.status === 'down' ? 'bad' : 'warn', server.address, words));
    }
  }
  all.sort((a, b) => (a.kind === 'bad' ? 0 : 1) - (b.kind === 'bad' ? 0 : 1));
  if (!all.length) advise('good', 'All is well', 'nothing needs to be done');
  keyed($('advice'), all, (it) => `${it.about} ${it.kind}`, () => {
    const about = h('b'), words = h('span'), element = h('li', {}, about, words);
    return { element, update: (it) => { put(element, 'class', it.kind); say(about, it.about); say(words, it.words); } };
  });
}

// --- The funnel -----------------------------------------------------------------------------------------------------

const STAGES = ['Clients', 'Queue', 'Connections', 'Servers'].map((name) => {
  const stage = { number: h('dd.number', { id: `now-${name.toLowerCase()}` }), more: h('dd.more'), meter: h('dd.meter', { 'aria-hidden': 'true' }) };
  stage.element = h('dl.stage', {}, h('dt', {}, name), stage.number, stage.more, stage.meter);
  return stage;
});
const RIBBON = svg('path', {});
$('funnel').append(...STAGES.map((stage) => stage.element), svg('svg', { viewBox: '0 0 400 60', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, RIBBON));

function showFunnel(stats) {
  const { clusters } = stats, servers = clusters.flatMap((cluster) => cluster.servers);
  const of = (key) => sum(clusters, (cluster) => cluster[key]);
  const waiting = sum(clusters, (cluster) => cluster.waitQueue.length), room = of('waitQueueSize');
  const oldest = Math.max(0, ...clusters.map((cluster) => cluster.waitQueue.oldestMs));
  const healthy = servers.filter((server) => server.status === 'healthy').length;
  const bound = sum(clusters, (cluster) => cluster.pins.cursors + cluster.pins.transactions);
  const rate = seen.history && seen.history.commandsPerSecond.at(-1);
  const open = of('active') + of('idle');
  const told = [
    [number(of('clients')), rate == null ? 'sockets' : `sockets, ${digits(rate)} commands a second`],
    [number(waiting), waiting ? `waiting, the longest for ${time(oldest)}; room for ${number(room)}` : `nobody waits; room for ${number(room)}`],
    [`${number(of('active'))} / ${number(of('max'))}`, `in use; ${number(of('idle'))} idle, ${number(of('pending'))} on their way`],
    [`${number(healthy)} / ${number(servers.length)}`, `healthy; ${some(bound, 'cursor or transaction', 'cursors and transactions')} bound to them`],
  ];
  const sizes = [of('clients'), waiting, open, servers.length].map((size) => Math.log1p(size));
  const largest = Math.max(...sizes, 1);
  STAGES.forEach((stage, index) => {
    say(stage.number, told[index][0]);
    say(stage.more, told[index][1]);
    stage.meter.style.width = `${Math.round(sizes[index] / largest * 100)}%`;
  });
  // Widths are logarithms: thousands stand beside ten.
  const halves = sizes.map((size) => 1.5 + 27 * size / largest);
  const edge = (side, order) => order.map((index, step) => {
    const [x, y] = [50 + index * 100, 30 + side * halves[index]];
    if (!step) return `${side < 0 ? `M0 ${y}` : `L400 ${y}`}L${x} ${y}`;
    const before = order[step - 1], half = 50 + (index + before) * 50;
    return `C${half} ${30 + side * halves[before]} ${half} ${y} ${x} ${y}`;
  }).join('');
  put(RIBBON, 'd', `${edge(-1, [0, 1, 2, 3])}L400 ${30 - halves[3]}${edge(1, [3, 2, 1, 0])}L0 ${30 + halves[0]}Z`);
}

// --- Charts ---------------------------------------------------------------------------------------------------------

const scope = { cluster: null, server: null };
let cursor = null;

function showScopes(stats) {
  const wanted = [['', 'everything']];
  for (const cluster of stats.clusters) {
    if (stats.clusters.length > 1) wanted.push([JSON.stringify([cluster.name]), `cluster ${cluster.name}`]);
    if (cluster.servers.length > 1 || stats.clusters.length > 1) {
      for (const server of cluster.servers) wanted.push([JSON.stringify([cluster.name, server.address]), server.address]);
    }
  }
  $('scope-label').hidden = wanted.length < 2;
  keyed($('scope'), wanted, ([value]) => value, ([value, text]) => ({ element: h('option', { value }, text) }));
}

$('scope').addEventListener('change', () => {
  [scope.cluster, scope.server] = $('scope').value ? JSON.parse($('scope').value) : [null, null];
  showCharts();
});
$('phase').addEventListener('change', () => showCharts());

// The column `key` of what is looked at: added up over all clusters, or that of one, or of one of its servers.
function column(history, key, { join = (a, b) => a + b, ofServer = true } = {}) {
  const clusters = history.clusters.filter((it) => !scope.cluster || it.name === scope.cluster);
  const parts = scope.server && ofServer ? clusters.flatMap((it) => it.servers).filter((it) => it.address === scope.server) : clusters;
  return history.secondsAgo.map((_, index) => parts.map((part) => (part[key] || [])[index])
    .reduce((all, value) => (value == null ? all : all == null ? value : join(all, value)), null));
}

const CHARTS = [
  { title: 'Latency', unit: time, lines: ['p50', 'p95', 'p99'], of: (history) => {
    const { p50Ms, p95Ms, p99Ms } = history.latency[$('phase').value];
    return [p50Ms, p95Ms, p99Ms];
  } },
  { title: 'Commands a second', unit: digits, lines: ['all', 'failed', 'refused'], of: (history) => (scope.cluster
    ? [column(history, 'commandsPerSecond')] : [history.commandsPerSecond, history.failedPerSecond, history.refusedPerSecond]) },
  { title: 'Connections', least: 2, unit: digits, lines: ['in use', 'idle', 'on their way'], of: (history) => ['active', 'idle', 'pending'].map((key) => column(history, key)) },
  { title: 'Commands that wait', least: 2, unit: digits, lines: ['waiting'], of: (history) => [column(history, 'queueLength')] },
  { title: 'Longest wait of those', unit: time, lines: ['oldest'], of: (history) => [column(history, 'oldestMs', { join: Math.max })] },
  { title: 'Client sockets', least: 2, unit: digits, lines: ['open'], of: (history) => [scope.cluster ? column(history, 'clients', { ofServer: false }) : history.clients] },
].map(makeChart);
$('charts').append(...CHARTS.map((chart) => chart.element));

// A round number that is not less.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function makeChart({ title, unit, lines, of, least = 0 }) {
  const id = `chart-${title.toLowerCase().replace(/[^a-z]+/g, '-')}`;
  const curves = lines.map((_, index) => svg('path', { class: `curve c${index}` }));
  const area = svg('path', { class: 'area' }), mark = svg('line', { class: 'cursor', y1: 0, y2: 100, visibility: 'hidden' });
  const grid = [0, 50, 100].map((y) => svg('line', { x1: 0, x2: SPAN_SECONDS, y1: y, y2: y }));
  const ticks = [0, 50, 100].map((top) => {
    const tick = h('span.tick', { 'aria-hidden': 'true' });
    tick.style.top = `${top}%`;
    return tick;
  });
  const none = h('p.none', {}, 'no numbers yet'), when = h('span');
  const values = lines.map(() => h('b'));
  const legend = lines.map((line, index) => h('li', {},
    svg('svg', { viewBox: '0 0 24 6', 'aria-hidden': 'true' }, svg('path', { class: `curve c${index}`, d: 'M1 3H23' })), `${line} `, values[index]));
  const plot = h('div.plot', {
    id, tabindex: 0, role: 'slider', 'aria-label': `${title}, the last 15 minutes; arrow keys go through the points in time`, 'aria-valuemin': 0,
    onpointermove: (event) => point(event), onpointerdown: (event) => point(event), onpointerleave: () => choose(null),
    onblur: () => choose(null), onkeydown: (event) => key(event),
  }, svg('svg', { viewBox: `0 0 ${SPAN_SECONDS} 100`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, ...grid, area, ...curves, mark), ...ticks, none);
  const element = h('figure', {}, h('figcaption', {}, h('b', {}, title), when), h('ul.legend', {}, ...legend), plot,
    h('div.times', { 'aria-hidden': 'true' }, ...['15 min ago', '10', '5', 'now'].map((text) => h('span', {}, text))));
  let columns = [];

  function point(event) {
    const box = plot.getBoundingClientRect();
    const ago = SPAN_SECONDS * (1 - (event.clientX - box.left) / box.width);
    const all = seen.history ? seen.history.secondsAgo : [];
    let nearest = null;
    all.forEach((seconds, index) => { if (nearest == null || Math.abs(seconds - ago) < Math.abs(all[nearest] - ago)) nearest = index; });
    choose(nearest);
  }

  function key(event) {
    const last = seen.history ? seen.history.secondsAgo.length - 1 : -1;
    const at = cursor == null ? last : cursor;
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageUp: at + 12, PageDown: at - 12, Home: 0, End: last }[event.key];
    if (event.key === 'Escape') choose(null);
    if (to == null) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(last, to)));
  }

  function update() {
    const { history } = seen;
    if (!history) return;
    const ago = history.secondsAgo, gap = history.stepSeconds * 3;
    columns = of(history);
    const top = ceiling(Math.max(least, ...columns.flat().filter((value) => value != null)));
    none.hidden = columns.some((values) => values.some((value) => value != null));
    [top, top / 2, 0].forEach((value, index) => say(ticks[index], none.hidden ? unit(value) : ''));
    curves.forEach((curve, index) => {
      let d = '', filled = '', began = null, before = null;
      (columns[index] || []).forEach((value, at) => {
        const x = SPAN_SECONDS - ago[at];
        if (value == null || x < 0) { before = null; return; }
        const y = (100 - value / top * 100).toFixed(2);
        // Where nothing was noted there is no line, and a point by itself is a dot.
        if (before == null || x - before > gap) {
          if (began != null) filled += `L${began.to} 100Z`;
          began = { to: x };
          d += `M${x} ${y}h.01`;
          filled += `M${x} 100`;
        } else d += `L${x} ${y}`;
        filled += `L${x} ${y}`;
        began.to = before = x;
      });
      put(curve, 'd', d || 'M0 0');
      if (!index) put(area, 'd', filled ? `${filled}L${began.to} 100Z` : 'M0 0');
    });
    legend.forEach((item, index) => { item.hidden = index >= columns.length; });
    read();
  }

  function read() {
    const { history } = seen;
    if (!history || !history.secondsAgo.length) return;
    const at = cursor == null ? history.secondsAgo.length - 1 : Math.min(cursor, history.secondsAgo.length - 1);
    const ago = history.secondsAgo[at];
    const told = columns.map((values) => (values[at] == null ? '–' : unit(values[at])));
    told.forEach((text, index) => say(values[index], text));
    const moment = clock(new Date(seen.historyAt - ago * 1000));
    say(when, cursor == null ? 'now' : `${moment}, ${span(ago)} ago`);
    mark.setAttribute('visibility', cursor == null ? 'hidden' : 'visible');
    for (const end of ['x1', 'x2']) mark.setAttribute(end, SPAN_SECONDS - ago);
    put(plot, 'aria-valuemax', history.secondsAgo.length - 1);
    put(plot, 'aria-valuenow', at);
    put(plot, 'aria-valuetext', `${moment}: ${told.map((text, index) => `${lines[index]} ${text === '–' ? 'unknown' : text}`).join(', ')}`);
  }
  return { element, update, read };
}

// One cursor for all charts: what happened at the same time stands side by side.
function choose(index) {
  cursor = index;
  CHARTS.forEach((chart) => chart.read());
}

function showCharts() { CHARTS.forEach((chart) => chart.update()); }

// --- Clusters and servers -------------------------------------------------------------------------------------------

function makeCluster(first) {
  const status = h('span'), mode = h('span'), upstream = h('p.mono'), problem = h('p.problem'), list = h('ul.facts'), fleet = h('p'), servers = h('div.servers');
  const { name } = first;
  const orders = h('div.orders', { role: 'group', 'aria-label': `Orders for cluster ${name}` },
    ...clusterOrders(name).map((order) => orderButton(order)));
  return {
    element: h('div.cluster', {}, h('div.title', {}, h('h3', {}, name), status, mode), upstream, problem, list, fleet, servers, orders),
    update(cluster) {
      badge(status, KIND[cluster.status], cluster.status);
      badge(mode, cluster.mode === 'normal' ? 'plain' : 'warn', `mode ${cluster.mode}`);
      say(upstream, cluster.upstream);
      say(problem, cluster.problem || '');
      problem.hidden = !cluster.problem;
      facts(list, [
        [number(cluster.clients), 'client sockets'],
        [number(cluster.waitQueue.length), `waiting, of at most ${number(cluster.waitQueueSize)}`],
        [`${cluster.utilization} %`, 'of connections in use'],
        ...pauses(cluster),
      ]);
      say(fleet, fleetWords(cluster.fleet));
      keyed(servers, cluster.servers, (server) => server.address, (server) => makeServer(name, server));
    },
  };
}

// All sidecars together, against what the server takes that is full first.
function fleetWords(fleet) {
  if (!fleet) return '';
  const { size, cap, wanted, share, serverLimit, serverConnections } = fleet;
  const all = size == null ? `Of the fleet: its size is not known; each sidecar opens at most ${number(cap)} connections to a server`
    : `Of the fleet: ${some(size, 'sidecar')} with at most ${number(cap)} connections each, ${number(wanted)} in all`;
  const room = serverLimit == null ? '' : `; a server takes ${number(serverLimit)}${share == null ? '' : `, so that is ${number(share)} %`}`;
  return `${all}${room}${serverConnections == null ? '' : `; ${number(serverConnections)} are open now`}.`;
}

// What is paused, however it is told.
function pauses(cluster) {
  const { paused } = cluster;
  if (!paused || (Array.isArray(paused) && !paused.length)) return [];
  const words = Array.isArray(paused) ? paused.map((it) => (typeof it === 'string' ? it : it.database || 'all databases')).join(', ') : 'all databases';
  return [[words, 'paused', 'warn']];
}

// The parts of a pool, in the order of the bar.
function parts(server) {
  const lanes = (server.lanes || [{ lane: 'regular', active: server.active }]).filter((it) => LANES.includes(it.lane));
  const shown = [...lanes.map((it) => [it.lane, it.active, `in use, ${it.lane}`]), ['idle', server.idle, 'idle'],
    ['pending', server.pending, 'on their way'], ['closing', server.closing, 'closing']];
  const taken = sum(shown, (part) => part[1]);
  return [...shown, ['free', Math.max(0, server.max - taken), 'not opened']];
}

function makeServer(cluster, first) {
  const { address } = first;
  const status = h('span'), role = h('span'), state = h('span'), error = h('p.problem'), pool = h('div.pool', { role: 'img' }), key = h('ul.key'), list = h('ul.facts');
  const id = `pool ${cluster} ${address}`;
  const orders = h('div.orders', { role: 'group', 'aria-label': `Orders for server ${address}` },
    ...serverOrders(cluster, address).map((order) => orderButton(order)));
  return {
    element: h('article', { 'data-pool': id }, h('div.title', {}, h('h4', {}, address), status, role, state), pool, key, list, error, orders.children.length ? orders : null),
    update(server) {
      badge(status, KIND[server.status], server.status);
      badge(role, 'plain', server.serverVersion ? `${server.role}, ${server.serverVersion}` : server.role);
      badge(state, server.breaker === 'closed' ? 'good' : server.breaker === 'open' ? 'bad' : 'warn', `breaker ${breaker(server)}`);
      const all = parts(server), shown = all.filter(([name, count]) => count || name === 'regular' || name === 'idle');
      keyed(pool, all, ([name]) => name, ([name]) => {
        const element = h(`span.${name}`);
        return { element, update: (part) => { element.style.flexGrow = part[1]; } };
      });
      keyed(key, shown, ([name]) => name, ([name]) => {
        const count = h('b'), words = h('span');
        return { element: h('li', {}, h(`i.${name}`, { 'aria-hidden': 'true' }), count, ' ', words), update: (part) => { say(count, number(part[1])); say(words, part[2]); } };
      });
      put(pool, 'aria-label', `Connections, at most ${server.max}: ${shown.map((part) => `${part[1]} ${part[2]}`).join(', ')}`);
      const { waitQueue, events, pins, longHeld } = server;
      facts(list, [
        [number(waitQueue.length), 'waiting', waitQueue.length ? 'warn' : ''],
        waitQueue.length ? [time(waitQueue.oldestMs), 'the longest'] : null,
        [number(server.max), `connections at most, ${number(server.min)} kept`],
        server.limit < server.max ? [number(server.limit), 'commands at once'] : null,
        pins.cursors ? [number(pins.cursors), 'cursors'] : null,
        pins.transactions ? [number(pins.transactions), 'transactions'] : null,
        longHeld.count ? [number(longHeld.count), 'held for long', 'warn'] : null,
        [number(events.reconnected), 'times reconnected'],
        events.error ? [number(events.error), 'connection errors'] : null,
      ]);
      const why = [server.breakerReason && `Breaker: ${server.breakerReason}.`, server.error].filter(Boolean).join(' ');
      say(error, why);
      error.hidden = !why;
    },
  };
}

function makeListener(first) {
  const { address } = first, name = h('b.mono', {}, address), cluster = h('span.badge.plain'), state = h('span'), lists = h('span'), slot = h('span.orders');
  let shown = null;
  return {
    element: h('div.title', {}, name, cluster, state, lists, slot),
    update({ cluster: of, rules }) {
      say(cluster, `listens for ${of}`);
      badge(state, rules.readOnly ? 'warn' : 'good', rules.readOnly ? 'read-only by rule' : 'reads and writes');
      say(lists, Object.entries(rules).filter(([, list]) => list.length).map(([rule, list]) => `${words(rule)}: ${list.join(', ')}`).join('; '));
      if (shown === rules.readOnly || !knows('/admin/rules')) return;
      shown = rules.readOnly;
      slot.replaceChildren(orderButton(rules.readOnly
        ? { name: 'Allow writes', path: '/admin/rules', body: { listener: address, readOnly: false } }
        : { name: 'Make read-only', path: '/admin/rules', body: { listener: address, readOnly: true }, danger: true, words: `Writes of clients that came in at ${address} are refused with an error from the next command on.` }));
    },
  };
}

// --- Applications, events, clients -----------------------------------------------------------------------------------

// A table whose first column heads its row; the others are {title, of, text}.
function table(prefix, columns, rows, key, first) {
  const head = $(`${prefix}-head`);
  if (!head.children.length) head.append(...['Name', ...columns.map((it) => it.title)].map((title, index) => h(index && !columns[index - 1].text ? 'th.n' : 'th', { scope: 'col' }, title)));
  keyed($(prefix), rows, key, () => {
    const name = h('th', { scope: 'row' }), cells = columns.map((it) => h(it.text ? 'td' : 'td.n', { 'data-label': it.title }));
    return {
      element: h('tr', {}, name, ...cells),
      update(row) {
        say(name, first(row));
        columns.forEach((it, index) => {
          const value = it.of(row);
          if (value instanceof Node) { if (!cells[index].firstChild) cells[index].append(value); } else say(cells[index], value);
        });
      },
    };
  });
}

function showApplications(stats) {
  const all = new Map();
  for (const tenant of stats.clusters.flatMap((cluster) => cluster.servers).flatMap((server) => server.tenants)) {
    const to = all.get(tenant.name) || { name: tenant.name, active: 0, waiting: 0, served: 0, p99: 0, held: 0 };
    all.set(tenant.name, to);
    to.active += tenant.active;
    to.waiting += tenant.waiting;
    to.served += tenant.served;
    to.p99 = Math.max(to.p99, tenant.waitP99Ms);
    to.held = Math.max(to.held, tenant.heldMs);
  }
  const top = [...all.values()].sort((a, b) => b.served - a.served).slice(0, 10);
  say($('applications-caption'), top.length ? 'Those first that were served most since the start, as fair_by tells them apart; waits and holds are of the slowest server.' : 'No application has been served yet.');
  table('applications', [
    { title: 'in use', of: (it) => number(it.active) },
    { title: 'waiting', of: (it) => number(it.waiting) },
    { title: 'served', of: (it) => number(it.served) },
    { title: '99 % waited within', of: (it) => time(it.p99) },
    { title: 'held for', of: (it) => time(it.held) },
  ], top, (it) => it.name, (it) => it.name || '(without a name)');
}

const EVENT = { error: 'bad', disconnected: 'bad', connected: 'good', reconnected: 'good', breaker: 'warn', pool_cleared: 'warn', paused: 'warn', drain: 'warn', cap_warning: 'warn' };

function showEvents() {
  const events = seen.events;
  $('events-section').hidden = !events;
  if (!events) return;
  keyed($('events'), events.slice(0, 50), (it) => `${it.at} ${it.kind} ${it.server || ''} ${it.text}`, (it) => {
    const kind = h('span'), words = h('span'), when = h('time', { datetime: it.at }, clock(new Date(it.at)));
    badge(kind, EVENT[it.kind] || 'plain', it.kind.replaceAll('_', ' '));
    const text = [it.server || it.cluster, it.text].filter(Boolean).join(': ');
    return { element: h('li', {}, when, h('span', {}, kind, ' ', words)), update: (now) => say(words, now.count > 1 ? `${text} (${number(now.count)} times)` : text) };
  });
}

function showClients() {
  const { clients } = seen;
  $('clients-section').hidden = !clients;
  if (!clients) return;
  const groups = clients.groups.slice(0, 20), others = clients.total - sum(groups, (it) => it.clients);
  say($('clients-caption'), `${some(clients.total, 'client')}, by what they say of themselves${others > 0 ? `; ${number(others)} of them in smaller groups` : ''}.`);
  const driver = { title: 'driver', text: true, of: (it) => [it.driver, it.driverVersion || it.version].join(' ').trim() || 'unknown' };
  const user = { title: 'user', text: true, of: (it) => it.user || '–' };
  const kill = (path, body, about, words) => ({ title: 'order', text: true, of: (it) => (knows('/admin/clients')
    ? orderButton({ name: 'Kill', about: about(it), path: path(it), body: body(it), danger: true, words: words(it) }) : '–') });
  table('clients', [
    { title: 'clients', of: (it) => number(it.clients) }, { title: 'at work', of: (it) => number(it.active) }, driver, user,
    kill(() => '/admin/clients/kill', (it) => ({ application: it.application }), (it) => it.application || '(without a name)', () => 'The sockets of all clients of this application are closed. Drivers connect again by themselves.'),
  ], groups, (it) => JSON.stringify([it.application, it.driver, it.driverVersion, it.platform, it.user, it.listener]), (it) => it.application || '(without a name)');
  $('single').hidden = !knows('/admin/clients');
  if (clients.clients) {
    table('singles', [{ title: 'application', text: true, of: (it) => it.application || '–' }, { title: 'state', text: true, of: (it) => it.state }, driver, user,
      kill((it) => `/admin/clients/${it.id}/kill`, () => ({}), (it) => `client ${it.id}`, (it) => `The socket of this client at ${it.address} is closed. Its driver connects again by itself.`),
    ], clients.clients, (it) => it.id, (it) => `${it.id} at ${it.address}`);
  }
}
$('single').addEventListener('toggle', poll);

// --- Orders ---------------------------------------------------------------------------------------------------------

// An order: {name, path, body}; with `words` it asks first, with `fields` it asks for more, and `danger` says how it looks.
function poolOrders(body) {
  return [
    { name: 'Reconnect', path: '/admin/reconnect', body, danger: true, words: 'All its upstream connections are replaced, one by one.' },
    { name: 'Clean up', path: '/admin/cleanup', body, danger: true, words: 'Closes upstream connections: idle those that nobody uses, soft all as they become free, hard all at once, with the commands on them.', fields: [
      { name: 'mode', label: 'Which', options: ['idle', 'soft', 'hard'] }] },
  ];
}

function clusterOrders(cluster) {
  return [
    { name: 'Pause', path: '/admin/pause', body: { cluster }, danger: true, words: `Commands for ${cluster} are held until it is resumed, or until the time is over.`, fields: [
      { name: 'timeoutMs', label: 'Resume by itself after seconds (empty: not)', type: 'number', min: 1, max: 3600, scale: 1000 },
      { name: 'database', label: 'Only this database (empty: all)', type: 'text' }] },
    { name: 'Resume', path: '/admin/resume', body: { cluster } },
    { name: 'Mode', path: '/admin/mode', body: { cluster }, danger: true, words: `Read-only refuses writes for ${cluster}; maintenance holds or refuses all that is new.`, fields: [
      { name: 'mode', label: 'Mode', options: ['normal', 'read-only', 'maintenance'] }] },
    ...poolOrders({ cluster }),
  ].filter((order) => knows(order.path));
}

function serverOrders(cluster, server) {
  const path = `/admin/breakers/${encodeURIComponent(server)}`;
  return [
    ...poolOrders({ cluster, server }),
    { name: 'Trip breaker', known: '/admin/breakers', path: `${path}/trip`, body: { cluster }, danger: true, words: `Commands for ${server} are refused or go elsewhere until its breaker closes again.` },
    { name: 'Reset breaker', known: '/admin/breakers', path: `${path}/reset`, body: { cluster } },
  ].filter((order) => knows(order.known || order.path));
}

const PROXY_ORDERS = [
  { name: 'Reload configuration', path: '/admin/reload', body: {} },
  { name: 'Log level', path: '/admin/log', body: {}, words: 'What the proxy writes to its log from now on.', fields: [
    { name: 'level', label: 'Level', options: ['info', 'error', 'warn', 'debug', 'trace', 'off'] }] },
  { name: 'Drain', path: '/admin/drain', body: {}, danger: true, words: 'The proxy takes no new clients, serves those that are there until they are quiet, and ends. This cannot be taken back.' },
];
$('proxy-orders').append(...PROXY_ORDERS.filter((order) => knows(order.path)).map((order) => orderButton(order)));

function orderButton(order) {
  const asks = order.words || order.fields;
  return h('button', { type: 'button', 'aria-haspopup': asks ? 'dialog' : null, onclick: (event) => (asks ? confirmOrder(order) : send(order, order.body, event.currentTarget)) }, asks ? `${order.name}…` : order.name);
}

function confirmOrder(order) {
  const dialog = $('order'), inputs = (order.fields || []).map((field) => [field, field.options
    ? h('select', { name: field.name }, ...field.options.map((option) => h('option', { value: option }, option)))
    : h('input', { name: field.name, type: field.type, min: field.min, max: field.max, autocomplete: 'off' })]);
  say($('order-title'), [order.name, order.about || order.body.server || order.body.cluster].filter(Boolean).join(' ') + '?');
  say($('order-words'), order.words);
  $('order-fields').replaceChildren(...inputs.map(([field, input]) => h('label', {}, field.label, input)));
  say($('order-send'), order.name);
  put($('order-send'), 'class', order.danger ? 'danger' : 'main');
  dialog.onsubmit = () => {
    const body = { ...order.body };
    for (const [field, input] of inputs) {
      if (input.value !== '') body[field.name] = field.type === 'number' ? Number(input.value) * field.scale : input.value;
    }
    send(order, body, $('order-send'));
  };
  dialog.showModal();
  // What does harm is not one keystroke away.
  (inputs.length ? inputs[0][1] : $('order-cancel')).focus();
}
$('order-cancel').addEventListener('click', () => $('order').close());

async function send(order, body, button) {
  button.disabled = true;
  let kind = 'good', told;
  try {
    told = await ask(order.path, body);
  } catch (error) {
    kind = 'bad';
    told = error instanceof Refused ? { status: error.status, ...(error.answer || {}), error: error.message } : { error: 'The proxy cannot be reached.' };
    delete told.paths;
    if (error.status === 401) askForToken();
  }
  button.disabled = false;
  const what = `${order.name}: ${kind === 'good' ? 'done' : 'not done'}`;
  put($('answer-title'), 'class', kind);
  say($('answer-title'), what);
  // Of a configuration that is not taken each mistake stands in a line of its own.
  const why = [`${told.error}${told.status ? ` (${told.status})` : ''}`, ...(told.mistakes || [])].join('\n');
  say($('answer-body'), kind === 'bad' && told.error ? why : JSON.stringify(told, null, 2));
  $('answer').hidden = false;
  announce(`${what}. ${kind === 'bad' ? told.error : ''}`);
  poll();
}
$('answer-close').addEventListener('click', () => { $('answer').hidden = true; $('main').focus({ preventScroll: true }); });

// --- Token and theme ------------------------------------------------------------------------------------------------

function askForToken() {
  if ($('token').open) return;
  say($('token-wrong'), token ? 'The token that was entered is not known, or no longer.' : '');
  $('token-value').value = '';
  $('token').showModal();
}
$('token').addEventListener('submit', () => {
  token = $('token-value').value.trim();
  $('token-value').value = '';
  $('token-change').hidden = false;
  poll();
});
$('token-cancel').addEventListener('click', () => $('token').close());
$('token-change').addEventListener('click', askForToken);

// Another choice than the system's is remembered where the browser allows it.
const THEMES = ['system', 'dark', 'light'];
function setTheme(theme) {
  if (theme === 'system') delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
  say($('theme'), `Theme: ${theme}`);
}
let theme = 'system';
try { theme = THEMES.find((it) => it === localStorage.getItem('theme')) || theme; } catch { /* then it is the system's */ }
setTheme(theme);
$('theme').addEventListener('click', () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
  try { localStorage.setItem('theme', theme); } catch { /* it holds until the page is left */ }
});

poll();
