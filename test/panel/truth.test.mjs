// The panel shows the state of the database, whatever happens to the page, the network or the session.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { button, card, openPanel, progressbar, shows } from './browser.mjs';

let panel;
before(async () => {
  panel = await openPanel('truth', {
    clinics: { reloaded: { patients: 300 }, tabs: { patients: 300 }, cut: { patients: 300 }, expired: { patients: 300 },
      hidden: { patients: 300 }, asleep: { patients: 300 }, large: { patients: 5_200 } },
  });
});
after(() => panel.close());

/** A page with a run that is held with 100 of 300 stored. */
async function heldRun(org, options) {
  const { db } = panel;
  await db.hold(org, [2]);
  const page = await panel.signIn('manager', org, options);
  await button(page, 'Sync all patients').click();
  await db.awaitHeld(org, 2);
  await shows(card(page, 'Sync'), '100 / 300');
  return page;
}

async function isCompleted(page) {
  await shows(card(page, 'Sync'), 'Completed: 300 patients in');
}

/**
 * How long each task took in which a page does everything, while something was done, in milliseconds of
 * the processor: how long it had to wait for the processor is not the page's doing.
 */
async function tasksDuring(page, work) {
  const browser = page.context().browser();
  await browser.startTracing(page, { categories: ['toplevel'] });
  await work();
  const { traceEvents } = JSON.parse(await browser.stopTracing());
  const thread = ({ pid, tid }) => `${pid} ${tid}`;
  const pages = new Set(traceEvents.filter(({ name, args }) => name === 'thread_name' && args.name === 'CrRendererMain').map(thread));
  return traceEvents.filter((event) => event.tdur !== undefined && pages.has(thread(event))).map(({ tdur }) => tdur / 1000);
}

test('a page that is reloaded in mid-run shows the run', async () => {
  const page = await heldRun('reloaded');
  await page.reload();
  await shows(card(page, 'Sync'), '100 / 300');
  assert.equal(await progressbar(page).getAttribute('aria-valuenow'), '33.3');
  await panel.db.letGo('reloaded', 2);
  await isCompleted(page);
});

test('a second tab sees what the first one starts and cancels', async () => {
  const context = await panel.context();
  const second = await panel.signIn('manager', 'tabs', { context });
  await shows(card(second, 'Sync'), 'No sync has run yet.');
  const first = await heldRun('tabs', { context });
  await shows(card(second, 'Sync'), '100 / 300');
  await button(second, 'Cancel').click();
  await shows(card(first, 'Sync'), 'Cancelled; 100 patients had been stored');
  await panel.db.letGo('tabs', 2);
});

test('a lost connection is said to be one, and no run fails by it', async () => {
  const { db } = panel;
  const context = await panel.context();
  const page = await heldRun('cut', { context });
  await context.setOffline(true);
  await shows(page.getByRole('alert'), 'No connection to the server.');
  await shows(page.getByRole('alert'), 'What you see is how it stood at');
  assert.equal(await page.getByText('The last sync failed').count(), 0);
  await shows(card(page, 'History').getByRole('row'), 'Running');
  await db.letGo('cut', 2);
  await db.untilDone('cut');
  await shows(card(page, 'Sync'), '100 / 300');
  await context.setOffline(false);
  await isCompleted(page);
  assert.equal(await page.getByText('No connection to the server.').count(), 0);
});

test('a session that ends in mid-run is said to have ended, and a new one shows the run', async () => {
  const { db } = panel;
  await (await heldRun('expired')).context().close();
  // PostgREST accepts a token for 30 s after its end: long enough to see the run with it, unless the machine is slow
  const token = await db.token('manager', 'expired', { expires: new Date(Date.now() - 20_000) });
  const page = await panel.signIn('manager', 'expired', { token });
  const ended = page.getByRole('heading', { name: 'Your session has ended' });
  await card(page, 'Sync').filter({ hasText: '100 / 300' }).or(ended).first().waitFor();
  await ended.waitFor();
  await db.letGo('expired', 2);
  await db.untilDone('expired');
  await page.getByLabel('Access token').fill('nonsense');
  await page.getByRole('button', { name: 'Sign in' }).click();
  await shows(page.locator('form'), 'This is no token');
  await page.getByLabel('Access token').fill(await db.token('manager', 'expired'));
  await page.getByRole('button', { name: 'Sign in' }).click();
  await isCompleted(page);
});

test('a hidden tab asks for nothing, and knows how it stands when it is shown again', async () => {
  const { db } = panel;
  const page = await heldRun('hidden');
  const setVisibility = (state) =>
    page.evaluate((value) => {
      Object.defineProperty(document, 'visibilityState', { value, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }, state);
  await page.clock.install();
  await setVisibility('hidden');
  let asked = 0;
  page.on('request', () => asked++);
  await db.letGo('hidden', 2);
  await db.untilDone('hidden');
  await page.clock.runFor(600_000);
  assert.equal(asked, 0, 'nothing in ten minutes');
  await setVisibility('visible');
  await isCompleted(page);
});

test('a laptop that was asleep shows how it stands when it wakes up', async () => {
  const { db } = panel;
  const context = await panel.context();
  const page = await context.newPage();
  await page.clock.install();
  await db.hold('asleep', [2]);
  await db.sql("SELECT cliniko_sync_all('asleep')");
  await page.goto(`${panel.url}#token=${await db.token('manager', 'asleep')}`);
  await shows(card(page, 'Sync'), '100 / 300');
  await db.letGo('asleep', 2);
  await db.untilDone('asleep');
  await page.clock.fastForward('08:00:00');
  await isCompleted(page);
});

test('a server that is gone is asked less and less often', async () => {
  const context = await panel.context();
  const page = await context.newPage();
  await page.clock.install();
  await page.goto(`${panel.url}#token=${await panel.db.token('viewer', 'hidden')}`);
  await isCompleted(page);
  const asked = [];
  await page.route('**/api/**', (route) => {
    asked.push(route.request().url());
    return route.abort();
  });
  await page.clock.runFor(30_000);
  await shows(page.getByRole('alert'), 'No connection to the server.');
  // after 2, 4, 8, 16 s, and then every 30 s
  for (const [pause, times] of [[2_000, 2], [4_000, 3], [8_000, 4], [16_000, 5], [30_000, 6], [30_000, 7]]) {
    await page.clock.runFor(pause - 1_000);
    assert.equal(asked.length, times - 1);
    const request = page.waitForEvent('requestfailed');
    await page.clock.runFor(1_000);
    await request;
    await shows(page.getByRole('alert'), 'Next try in');
  }
  await page.unroute('**/api/**');
  await button(page, 'Try now').click();
  await page.getByRole('alert').waitFor({ state: 'detached' });
});

test('a run is looked at every two seconds, and an idle clinic every thirty', async () => {
  const context = await panel.context();
  const page = await context.newPage();
  await page.clock.install();
  let looks = 0;
  page.on('request', (request) => (looks += request.url().includes('limit=1') && !request.url().includes('limit=1&')));
  await page.goto(`${panel.url}#token=${await panel.db.token('viewer', 'hidden')}`);
  await isCompleted(page);
  for (let n = 0; n < 4; n++) {
    const look = page.waitForResponse(/sync-logs/);
    await page.clock.runFor(30_000);
    await look;
  }
  assert.equal(looks, 4);
});

test('a run of 5,200 leaves the page responsive, and its percentage never falls', async () => {
  const { db } = panel;
  const page = await panel.signIn('manager', 'large');
  await shows(card(page, 'Sync'), 'No sync has run yet.');
  await page.evaluate(() => {
    window.percents = [];
    new MutationObserver(() => {
      const value = document.querySelector('[role=progressbar]')?.getAttribute('aria-valuenow');
      if (value) window.percents.push(Number(value));
    }).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ['aria-valuenow'] });
  });
  const tasks = await tasksDuring(page, async () => {
    // so that the page has time to see it under way
    await db.hold('large', [10, 25, 40]);
    await button(page, 'Sync all patients').click();
    for (const [request, stored] of [[10, '900'], [25, '2,400'], [40, '3,900']]) {
      await db.awaitHeld('large', request);
      await shows(card(page, 'Sync'), `${stored} / 5,200`);
      await db.letGo('large', request);
    }
    await shows(card(page, 'Sync'), 'Completed: 5,200 patients in');
  });
  const percents = await page.evaluate(() => window.percents);
  assert.ok(percents.length >= 3, `${percents}`);
  assert.deepEqual(percents, [...percents].sort((a, b) => a - b));
  assert.ok(tasks.length > 0, 'tasks are traced');
  assert.deepEqual(tasks.filter((ms) => ms >= 100), [], 'no task of 100 ms or more');
});
