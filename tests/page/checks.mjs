// What the page promises, checked in a browser against a running proxy. See `run` next to this.
import assert from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';
import { secretFile, startClients, startProxy, startServers, stopAll } from './stage.mjs';

const { values: options } = parseArgs({ options: Object.fromEntries(['proxy', 'mongod', 'chromium', 'work', 'only', 'screenshots', 'seconds'].map((name) => [name, { type: 'string' }])) });
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
// An application may call itself anything.
const HOSTILE = '<img src=x onerror="window.harmed=1">';
const TOKEN = 'a-token-of-enough-characters';

let passed = 0, failed = 0;
const checks = [];
const check = (name, run) => checks.push({ name, run });

const browser = await chromium.launch({ executablePath: options.chromium, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
process.on('SIGTERM', () => { stopAll(); browser.close(); });

// What a browser says of an answer that is no success, or of none.
const NO_ANSWER = /^Failed to load resource/;

// A page in a browser of its own. What it logs as an error, unless that is `expected`, throws or asks of others is a failure.
async function open(url, { expected = /^$/, ...context } = {}) {
  const own = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...context });
  const page = await own.newPage(), complaints = [], orders = [], reads = [];
  page.on('console', (message) => { if (message.type() === 'error' && !expected.test(message.text())) complaints.push(message.text()); });
  page.on('pageerror', (error) => complaints.push(error.message));
  own.on('request', (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith('data:')) complaints.push(`asked ${request.url()}`);
    if (request.method() === 'POST') orders.push(request);
    else reads.push(request);
  });
  await page.goto(url);
  return {
    page, orders, reads,
    async close() {
      // An answer that is being changed is changed before.
      await page.unrouteAll({ behavior: 'wait' });
      await own.close();
      assert.deepEqual(complaints, []);
    },
  };
}

const ready = (page) => page.locator('.pool').first().waitFor();
const text = (page, selector) => page.locator(selector).first().textContent();
const number = (value) => Math.round(value).toLocaleString('en');
const order = (url, action, body) => fetch(`${url}admin/${action}`, { method: 'POST', headers: { 'X-Mongomux': '1', 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
const stats = (url) => fetch(`${url}stats`).then((answer) => answer.json());

// The next answer to /stats stays the answer from then on: what is shown can be compared with it.
async function freeze(page) {
  let kept = null;
  await page.route('**/stats', async (route) => {
    kept ||= await (await route.fetch()).text();
    await route.fulfill({ body: kept, contentType: 'application/json' });
  });
  // One answer is on its way while the next one is asked for: with the third all of the first is shown.
  for (let answers = 0; answers < 3; answers += 1) await page.waitForResponse('**/stats');
  return JSON.parse(kept);
}

// What axe finds wrong.
async function faults(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ['violations'] }));
  return violations.map((it) => `${it.id}: ${it.nodes.slice(0, 3).map((node) => `${node.html} ${node.failureSummary}`).join(' | ')}`);
}

// --- The stage ------------------------------------------------------------------------------------------------------

const servers = await startServers(options.proxy, options.mongod);
const settings = { work: options.work, config: 'max_pool_size = 4\n' };
let proxy = await startProxy(options.proxy, servers.uri, settings);
const url = proxy.url;
const stopClients = await startClients(proxy.address, { shop: 3, search: 3, [HOSTILE]: 3 });

// --- Checks ---------------------------------------------------------------------------------------------------------

check('the document is locked down and small', async () => {
  const answer = await fetch(url), body = await answer.text();
  const policy = answer.headers.get('content-security-policy');
  assert.match(policy, /default-src 'none'; script-src 'sha256-[^']+'; style-src 'sha256-[^']+'; connect-src 'self'/);
  assert.match(policy, /frame-ancestors 'none'/);
  assert.ok(!/unsafe/.test(policy));
  assert.equal(answer.headers.get('x-content-type-options'), 'nosniff');
  assert.equal(answer.headers.get('cache-control'), 'no-store');
  assert.ok(body.length < 60000, `${body.length} bytes`);
  assert.ok(!body.includes(servers.uri.match(/:(\d+)/)[1]), 'no data in the document');
});

check('numbers are those of /stats', async () => {
  const { page, close } = await open(url);
  await ready(page);
  const told = await freeze(page);
  const [cluster] = told.clusters;
  assert.ok(cluster.active + cluster.idle > 0 && cluster.clients > 0, 'there is something to show');
  assert.equal(await text(page, '#now-clients'), number(cluster.clients));
  assert.equal(await text(page, '#now-queue'), number(cluster.waitQueue.length));
  assert.equal(await text(page, '#now-connections'), `${number(cluster.active)} / ${number(cluster.max)}`);
  assert.equal(await text(page, '#now-servers'), `${cluster.servers.filter((it) => it.status === 'healthy').length} / 3`);
  for (const server of cluster.servers) {
    const pool = page.locator(`article[data-pool="pool default ${server.address}"]`);
    const key = await pool.locator('.key li').allTextContents();
    const regular = server.lanes.find((it) => it.lane === 'regular').active;
    assert.ok(key.includes(`${regular} in use, regular`), `${key}`);
    assert.ok(key.includes(`${server.idle} idle`), `${key}`);
    assert.equal(key.reduce((sum, it) => sum + parseInt(it, 10), 0), server.max, 'the parts are the whole');
    const grown = await pool.locator('.pool > .idle').evaluate((element) => element.style.flexGrow);
    assert.equal(Number(grown), server.idle, 'the bar says the same');
    const badges = (await pool.locator('.badge').allTextContents()).join(', ');
    assert.equal(badges, `${server.status}, ${server.role}, ${server.serverVersion}, breaker ${server.breaker}`);
  }
  const served = new Map();
  for (const tenant of cluster.servers.flatMap((it) => it.tenants)) served.set(tenant.name, (served.get(tenant.name) || 0) + tenant.served);
  for (const [name, count] of served) {
    const row = page.locator('#applications tr').filter({ has: page.locator('th', { hasText: name || '(without a name)' }) });
    assert.equal(await row.locator('td[data-label=served]').first().textContent(), number(count));
  }
  await close();
});

check('recommendations and trouble stand at the top, in words', async () => {
  const { page, close } = await open(url);
  await page.route('**/stats', async (route) => {
    const told = await (await route.fetch()).json();
    told.clusters[0].servers[0].recommendations = ['Raise max_pool_size to 7.'];
    Object.assign(told.clusters[0].servers[1], { status: 'down', breaker: 'open', breakerReason: 'five failures', error: 'no route' });
    await route.fulfill({ json: told });
  });
  await page.locator('#advice').getByText('Raise max_pool_size to 7.').waitFor();
  const article = page.locator('article').nth(1);
  await article.getByText('breaker open', { exact: true }).waitFor();
  assert.match(await article.locator('.problem').textContent(), /five failures.*no route/);
  await close();
});

check('charts draw what /history tells, and a cursor reads it out', async () => {
  const { page, close } = await open(url);
  const history = await (await page.waitForResponse('**/history')).json();
  assert.ok(history.secondsAgo.length >= 2, 'there are points');
  await ready(page);
  await page.waitForFunction(() => document.querySelector('#chart-commands-a-second path.c0').getAttribute('d').length > 10);
  const lines = await page.locator('.plot path.c0').evaluateAll((all) => all.map((it) => it.getAttribute('d').length));
  assert.equal(lines.length, 6);
  assert.ok(lines.every((length) => length > 4), `${lines}`);
  assert.match((await page.locator('#chart-latency .tick').allTextContents()).join(' '), /\d (µs|ms|s)/, 'with a unit');
  const plot = page.locator('#chart-connections');
  await plot.focus();
  await page.keyboard.press('Home');
  const first = [history.clusters[0].active[0], history.clusters[0].idle[0], history.clusters[0].pending[0]];
  assert.match(await plot.getAttribute('aria-valuetext'), new RegExp(`in use ${first[0]}, idle ${first[1]}, on their way ${first[2]}$`));
  assert.equal(await plot.getAttribute('aria-valuenow'), '0');
  await page.keyboard.press('ArrowRight');
  assert.equal(await plot.getAttribute('aria-valuenow'), '1');
  assert.match(await page.locator('figure').first().locator('figcaption span').textContent(), / ago$/, 'all charts show the same time');
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('figure').first().locator('figcaption span').textContent(), 'now');
  const box = await plot.boundingBox();
  await page.mouse.move(box.x + box.width - 1, box.y + 10);
  await page.locator('#chart-connections .cursor[visibility=visible]').waitFor({ state: 'attached' });
  await close();
});

check('every button gives its order, and what does harm asks before', async () => {
  const { page, orders, close } = await open(url);
  await ready(page);
  const buttons = page.locator('main .orders button, main .orders > button');
  const names = await buttons.evaluateAll((all) => all.map((it, index) => [index, it.textContent]));
  assert.ok(names.length >= 3, `${names}`);
  const harmful = /^(Pause|Mode|Reconnect|Clean up|Trip breaker|Make read-only|Drain|Kill)/;
  for (const [index, name] of names) {
    if (/^Drain/.test(name)) continue; // below, with a proxy of its own
    const before = orders.length, button = buttons.nth(index);
    if (harmful.test(name)) {
      await button.click();
      await page.locator('#order[open]').waitFor();
      await page.keyboard.press('Escape');
      await page.locator('#order').waitFor({ state: 'hidden' });
      assert.equal(orders.length, before, `${name} asks before`);
    }
    const answered = page.waitForResponse((response) => response.request().method() === 'POST');
    await button.click();
    if (await page.locator('#order[open]').count()) await page.locator('#order-send').click();
    const response = await answered, request = response.request();
    assert.equal(orders.length, before + 1, name);
    assert.equal(request.headers()['x-mongomux'], '1');
    assert.match(request.headers()['content-type'], /^application\/json/);
    assert.ok(response.ok(), `${name}: ${response.status()} ${await response.text()}`);
    await page.locator('#answer-title').filter({ hasText: `${name.replace('…', '')}: done` }).waitFor();
    await page.locator('#answer-close').click();
  }
  await close();
  await order(url, 'rules', { readOnly: false });
});

check('orders are obeyed and shown: mode and rules', async () => {
  const { page, close } = await open(url);
  await ready(page);
  const cluster = page.getByRole('group', { name: 'Orders for cluster default' });
  for (const mode of ['read-only', 'normal']) {
    await cluster.getByRole('button', { name: 'Mode…' }).click();
    await page.locator('#order select').selectOption(mode);
    await page.locator('#order-send').click();
    await page.locator('.badge', { hasText: `mode ${mode}` }).waitFor();
    assert.equal((await stats(url)).clusters[0].mode, mode);
    assert.match(await text(page, '#live'), new RegExp(`mode ${mode}|Mode: done`), 'and said');
  }
  await page.getByRole('button', { name: 'Make read-only…' }).click();
  await page.locator('#order-send').click();
  await page.locator('#listeners .badge', { hasText: 'read-only by rule' }).waitFor();
  assert.equal((await stats(url)).listeners[0].rules.readOnly, true);
  await page.getByRole('button', { name: 'Allow writes' }).click();
  await page.locator('#listeners .badge', { hasText: 'reads and writes' }).waitFor();
  await close();
});

check('a pause is shown, is as long as the proxy takes it at most, and ends', async () => {
  const { page, orders, close } = await open(url);
  await ready(page);
  const cluster = page.getByRole('group', { name: 'Orders for cluster default' });
  await cluster.getByRole('button', { name: 'Pause…' }).click();
  const seconds = page.getByLabel(/^Resume by itself/);
  await seconds.fill('3601');
  await page.locator('#order-send').click();
  assert.equal(await seconds.evaluate((input) => input.validity.rangeOverflow), true);
  assert.equal(orders.length, 0, 'what is too long is not even sent');
  await seconds.fill('3600');
  await page.getByLabel(/^Only this database/).fill('nobody');
  await page.locator('#order-send').click();
  await page.locator('#answer-title', { hasText: 'Pause: done' }).waitFor();
  await page.locator('#answer-close').click();
  await page.locator('#advice').getByText(/on the database nobody are held by order, for another 3[56]/).waitFor();
  await page.locator('.cluster .facts').getByText('nobody paused').waitFor();
  await cluster.getByRole('button', { name: 'Resume' }).click();
  await page.locator('#answer-close').click();
  await page.locator('#advice').getByText(/held by order/).waitFor({ state: 'detached' });
  assert.deepEqual((await stats(url)).clusters[0].paused, []);
  await close();
});

check('clients are ended, one or all of an application, after it was asked', async () => {
  const stop = await startClients(proxy.address, { doomed: 2 });
  const { page, orders, close } = await open(url);
  await ready(page);
  const connected = async () => (await (await fetch(`${url}clients?list=1&application=doomed`)).json()).clients.map((it) => it.id);
  const kill = async (row, path, body) => {
    const before = orders.length;
    await row.getByRole('button', { name: 'Kill…' }).click();
    await page.locator('#order[open]').waitFor();
    assert.equal(orders.length, before, 'it asks before');
    const answered = page.waitForResponse((response) => response.request().method() === 'POST');
    await page.locator('#order-send').click();
    const response = await answered;
    assert.ok(response.ok(), await response.text());
    assert.equal(new URL(response.url()).pathname, path);
    assert.deepEqual(response.request().postDataJSON(), body);
    await page.locator('#answer-title', { hasText: 'Kill: done' }).waitFor();
    await page.locator('#answer-close').click();
    return response.json();
  };
  const row = (table, title) => page.locator(`${table} tr`).filter({ has: page.locator('th', { hasText: title }) });
  const [first, ...others] = await connected();
  assert.ok(others.length >= 1);
  await page.locator('#single summary').click();
  assert.equal((await kill(row('#singles', new RegExp(`^${first} at `)), `/admin/clients/${first}/kill`, {})).id, first);
  assert.ok(!(await connected()).includes(first));
  const { killed } = await kill(row('#clients', /^doomed$/), '/admin/clients/kill', { application: 'doomed' });
  assert.ok(killed >= 1, `${killed}`);
  const left = await connected();
  assert.ok(others.every((id) => !left.includes(id)), 'who was there has gone; drivers come again');
  await page.locator('#events li', { hasText: 'client killed' }).first().waitFor();
  await stop();
  await close();
});

check('an order that is refused says why', async () => {
  const { page, close } = await open(url, { expected: NO_ANSWER });
  await ready(page);
  // The proxy itself refuses: without this header it could come from a page of another site.
  await page.route('**/admin/rules', (route) => route.continue({ headers: { ...route.request().headers(), 'x-mongomux': undefined } }));
  await page.getByRole('button', { name: 'Make read-only…' }).click();
  await page.locator('#order-send').click();
  await page.locator('#answer-title', { hasText: 'not done' }).waitFor();
  assert.match(await text(page, '#answer-body'), /orders need a header.*\(403\)/);
  await close();
});

check('a configuration with mistakes is not taken, and each of them is told', async () => {
  const own = await startProxy(options.proxy, servers.uri, settings);
  const { page, close } = await open(own.url, { expected: NO_ANSWER });
  await ready(page);
  writeFileSync(own.file, 'max_pool_sise = 4\nretry = 7\n');
  await page.getByRole('button', { name: 'Reload configuration' }).click();
  await page.locator('#answer-title', { hasText: 'not done' }).waitFor();
  assert.match(await text(page, '#answer-body'), /nothing was changed \(422\)\n.*:1: max_pool_sise: unknown key.*\n.*:2: retry: found 7/);
  await close();
  await own.stop();
});

check('events are those of /events, newest first', async () => {
  await order(url, 'mode', { mode: 'read-only' });
  await order(url, 'mode', { mode: 'normal' });
  const events = await (await fetch(`${url}events`)).json();
  const { page, close } = await open(url);
  await page.locator('#events li').first().waitFor();
  const shown = await page.locator('#events li').allTextContents();
  assert.ok(events.length > 3, 'there is something to show');
  // What happens meanwhile stands before them.
  const begin = shown.findIndex((it) => it.includes(events[0].text));
  events.slice(0, 5).forEach((event, index) => assert.ok(shown[begin + index].includes(event.text) && shown[begin + index].includes(event.kind.replaceAll('_', ' ')), `${shown[begin + index]} is not ${event.text}`));
  await close();
});

check('names of applications are text', async () => {
  const { page, close } = await open(url, { expected: /TrustedHTML/ });
  await page.locator('#applications th', { hasText: HOSTILE }).waitFor();
  assert.equal(await page.locator('img').count(), 0);
  assert.equal(await page.evaluate(() => window.harmed), undefined);
  const markup = await page.evaluate(() => { try { document.body.insertAdjacentHTML('beforeend', '<i>x</i>'); return 'made'; } catch { return 'refused'; } });
  assert.equal(markup, 'refused', 'the policy turns no text into elements');
  await close();
});

check('a token is asked for, kept in memory only and sent with all that needs it', async () => {
  const file = secretFile(`${options.work}/tokens`, `${TOKEN}\n`);
  const guarded = await startProxy(options.proxy, servers.uri, { ...settings, more: ['--admin-token-file', file] });
  const { page, orders, close } = await open(guarded.url, { expected: NO_ANSWER });
  await page.locator('#token[open]').waitFor();
  assert.equal(await page.locator('main').isVisible(), false);
  await page.keyboard.type('not-the-right-token');
  await page.keyboard.press('Enter');
  await page.locator('#token-wrong', { hasText: 'not known' }).waitFor();
  await page.keyboard.press('Escape');
  assert.match(await text(page, '#trouble-words'), /A token is needed/);
  await page.getByRole('button', { name: 'Enter a token' }).click();
  await page.keyboard.type(TOKEN);
  await page.keyboard.press('Enter');
  await ready(page);
  assert.equal(await page.locator('#trouble').isVisible(), false);
  await page.getByRole('button', { name: 'Make read-only…' }).click();
  await page.locator('#order-send').click();
  await page.locator('#answer-title', { hasText: 'done' }).waitFor();
  assert.equal(orders[0].headers().authorization, `Bearer ${TOKEN}`);
  const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href]));
  assert.ok(!kept.includes(TOKEN), kept);
  assert.equal(await page.locator('#token-value').inputValue(), '');
  await page.reload();
  await page.locator('#token[open]').waitFor();
  await close();
  await guarded.stop();
});

check('where only probes are served there is no page', async () => {
  const closed = await startProxy(options.proxy, servers.uri, { ...settings, more: ['--admin-probes-only'] });
  const answer = await fetch(closed.url);
  assert.equal(answer.status, 403);
  assert.match((await answer.json()).error, /only \/livez, \/readyz and \/metrics/);
  await closed.stop();
});

check('on a phone nothing is wider than the screen', async () => {
  const { page, close } = await open(url, { viewport: { width: 320, height: 640 }, hasTouch: true, isMobile: true });
  await ready(page);
  const wide = await page.evaluate(() => [...document.querySelectorAll('body *')]
    .filter((it) => it.checkVisibility() && !it.closest('.unseen, .skip, thead, svg') && it.getBoundingClientRect().right > innerWidth + 1).map((it) => it.outerHTML.slice(0, 80)));
  assert.deepEqual(wide, []);
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 320);
  const small = await page.locator('main button').evaluateAll((all) => all.filter((it) => it.getBoundingClientRect().height < 36).map((it) => it.textContent));
  assert.deepEqual(small, [], 'a finger meets every button');
  await page.getByRole('button', { name: 'Drain…' }).click();
  const dialog = await page.locator('#order').boundingBox();
  assert.ok(dialog.x >= 0 && dialog.x + dialog.width <= 320);
  await close();
});

check('dark and light follow the system, and a choice that stays', async () => {
  const ground = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const { page, close } = await open(url, { colorScheme: 'dark' });
  await ready(page);
  const dark = await ground(page);
  await page.emulateMedia({ colorScheme: 'light' });
  const light = await ground(page);
  assert.notEqual(dark, light);
  const button = page.getByRole('button', { name: /^Theme/ });
  await button.click();
  assert.deepEqual([await button.textContent(), await ground(page)], ['Theme: dark', dark]);
  await page.reload();
  await ready(page);
  assert.equal(await ground(page), dark);
  await button.click();
  assert.deepEqual([await button.textContent(), await ground(page)], ['Theme: light', light]);
  await close();
});

check('everything can be done with the keyboard', async () => {
  const { page, orders, close } = await open(url);
  await ready(page);
  // Marked one by one, as rows may come meanwhile.
  const left = () => page.locator('a, button, select, input, [tabindex="0"]').evaluateAll((all) => all.filter((it) => it.checkVisibility() && !it.closest('dialog') && !it.reached).map((it) => it.id || it.textContent));
  const focused = () => page.evaluate(() => {
    const it = document.activeElement, style = getComputedStyle(it), box = it.getBoundingClientRect(), again = it === document.body || it.reached === true;
    it.reached = true;
    return { again, name: it.id || it.textContent, outline: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2, y: box.top + scrollY };
  });
  for (let step = (await left()).length + 20; step > 0; step -= 1) {
    await page.keyboard.press('Tab');
    const at = await focused();
    if (at.again) break;
    assert.ok(at.outline, `the focus shows on ${at.name}`);
  }
  assert.deepEqual(await left(), [], 'the tabulator reaches all there is, and gets out of it');
  // Into a dialog, through it and out of it.
  await page.getByRole('button', { name: 'Drain…' }).focus();
  await page.keyboard.press('Enter');
  await page.locator('#order[open]').waitFor();
  assert.equal((await focused()).name, 'order-cancel', 'what does harm is not one keystroke away');
  for (let step = 0; step < 6; step += 1) {
    await page.keyboard.press('Tab');
    const outside = await page.evaluate(() => document.activeElement !== document.body && !document.activeElement.closest('dialog'));
    assert.equal(outside, false, 'what lies behind a dialog is out of reach');
  }
  await page.keyboard.press('Escape');
  await page.locator('#order').waitFor({ state: 'hidden' });
  assert.equal((await focused()).name, 'Drain…', 'the focus is back where it was');
  assert.equal(orders.length, 0);
  await close();
});

check('axe finds nothing to complain of', async () => {
  for (const look of [{ colorScheme: 'dark' }, { colorScheme: 'light' }, { colorScheme: 'light', viewport: { width: 320, height: 640 } }]) {
    const { page, close } = await open(url, { reducedMotion: 'reduce', ...look });
    await ready(page);
    assert.deepEqual(await faults(page), [], JSON.stringify(look));
    await page.getByRole('button', { name: 'Make read-only…' }).click();
    assert.deepEqual(await faults(page), [], 'a dialog');
    await page.locator('#order-cancel').click();
    await page.getByRole('button', { name: 'Mode…' }).click();
    await page.locator('#order-send').click();
    await page.locator('#answer-title', { hasText: 'done' }).waitFor();
    assert.deepEqual(await faults(page), [], 'an answer');
    await page.locator('#answer-close').click();
    // What is wrong has its own colours.
    await page.route('**/stats', async (route) => {
      const told = await (await route.fetch()).json();
      Object.assign(told.clusters[0], { status: 'down', problem: 'no server', mode: 'maintenance' });
      Object.assign(told.clusters[0].servers[0], { status: 'down', breaker: 'open', breakerReason: 'five failures' });
      Object.assign(told.clusters[0].servers[1], { status: 'degraded', breaker: 'half_open', recommendations: ['Raise it.'] });
      await route.fulfill({ json: told });
    });
    await page.getByText('breaker half-open').waitFor();
    assert.deepEqual(await faults(page), [], 'trouble');
    await close();
  }
});

check('what is new moves nothing', async () => {
  const { page, close } = await open(url);
  await ready(page);
  await page.waitForResponse('**/history');
  await page.evaluate(() => {
    window.moved = 0;
    new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.moved += entry.value; }).observe({ type: 'layout-shift' });
  });
  for (let answers = 0; answers < 5; answers += 1) await page.waitForResponse('**/stats');
  const moved = await page.evaluate(() => window.moved);
  assert.ok(moved < 0.1, `what browsers call good is below 0.1, this is ${moved}`);
  await close();
});

check('it asks less often while nobody looks', async () => {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.clock.install();
  await page.goto(url);
  await ready(page);
  let asked = 0;
  page.on('request', (request) => { if (request.url().endsWith('/stats')) asked += 1; });
  const hide = (hidden) => page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { value, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
  const settled = async () => { await page.waitForLoadState('networkidle'); };
  await hide(true);
  const next = page.waitForResponse('**/stats');
  await page.clock.runFor(2100);
  await next;
  await settled();
  const before = asked;
  await page.clock.runFor(25000);
  await settled();
  assert.equal(asked, before, 'hidden, it waits for half a minute');
  const back = page.waitForResponse('**/stats');
  await hide(false);
  await back;
  await context.close();
});

check('it says that the proxy is gone and how old the numbers are, and goes on when it is back', async () => {
  const { page, close } = await open(url, { expected: NO_ANSWER });
  await ready(page);
  await proxy.stop('SIGKILL');
  await page.getByText(/The proxy cannot be reached\. The numbers below are of \d\d:\d\d:\d\d, .* ago/).waitFor();
  assert.equal(await text(page, '#link'), 'not reached');
  assert.match(await text(page, '#live'), /cannot be reached/);
  assert.equal(await page.locator('main').isVisible(), true, 'the last numbers stay');
  assert.deepEqual(await faults(page), [], 'old numbers can be read as well');
  proxy = await startProxy(options.proxy, servers.uri, { ...settings, listen: proxy.address, admin: `127.0.0.1:${proxy.port}` });
  await page.locator('#trouble').waitFor({ state: 'hidden' });
  await page.locator('#link', { hasText: 'live' }).waitFor();
  await page.locator('#live', { hasText: 'reached again' }).waitFor({ state: 'attached' });
  await close();
});

check('drain asks, drains, and the page says so', async () => {
  const draining = await startProxy(options.proxy, servers.uri, settings);
  const stop = await startClients(draining.address, { stays: 3 });
  const { page, orders, close } = await open(draining.url, { expected: NO_ANSWER });
  await ready(page);
  await page.getByRole('button', { name: 'Drain…' }).click();
  assert.equal(orders.length, 0);
  await page.locator('#order-send').click();
  await page.locator('#advice', { hasText: 'Draining' }).waitFor();
  assert.equal((await fetch(`${draining.url}readyz`)).status, 503);
  await stop();
  assert.equal(await draining.ended, 0, 'drained cleanly');
  await page.locator('#link', { hasText: 'not reached' }).waitFor();
  await close();
});

// --- Pictures -------------------------------------------------------------------------------------------------------

async function takePictures(directory) {
  const lively = await startProxy(options.proxy, servers.uri, { work: options.work });
  const stop = await startClients(lively.address, { shop: 300, search: 120, reports: 15, 'nightly-import': 4 }, { pause: 15000, burst: 240 });
  await new Promise((resolve) => { setTimeout(resolve, Number(options.seconds || 10) * 1000); });
  const looks = {
    dark: { colorScheme: 'dark', viewport: { width: 1280, height: 1200 } },
    light: { colorScheme: 'light', viewport: { width: 1280, height: 800 }, from: '#clusters-title' },
    phone: { colorScheme: 'dark', viewport: { width: 360, height: 780 } },
  };
  for (const [name, { from, ...look }] of Object.entries(looks)) {
    const { page, close } = await open(lively.url, { reducedMotion: 'reduce', ...look });
    await ready(page);
    await page.waitForResponse('**/stats');
    const path = `${directory}/dashboard-${name}.png`;
    if (from) await page.locator(from).evaluate((element) => element.parentElement.scrollIntoView());
    await page.screenshot({ path });
    console.log(`${path}: ${statSync(path).size} bytes`);
    await close();
  }
  await stop();
  await lively.stop();
}

for (const { name, run } of checks.filter((it) => it.name.includes(options.only || ''))) {
  try {
    await run();
    passed += 1;
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${error.stack}`);
  }
}
try {
  if (options.screenshots) await takePictures(options.screenshots);
} finally {
  await stopClients();
  await browser.close();
  await stopAll();
}
console.log(`\n${passed} passed, ${failed} failed`);
process.exit(failed || !passed ? 1 : 0);
