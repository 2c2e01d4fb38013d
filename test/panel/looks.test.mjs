// For everyone: no view breaks a rule of axe-core, in light and dark, wide and narrow. Each is kept as a
// screenshot in tmp_check/panel for a person to look at. And the panel is small, and asks nobody else.

import assert from 'node:assert/strict';
import { mkdir, readFile, readdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { button, card, follow, openPanel, shows } from './browser.mjs';

const require = createRequire(new URL('../../panel/package.json', import.meta.url));
const AXE = await readFile(require.resolve('axe-core/axe.min.js'), 'utf8');
const SHOTS = fileURLToPath(new URL('../../tmp_check/panel/', import.meta.url));
const ASSETS = fileURLToPath(new URL('../../panel/dist/assets/', import.meta.url));
const MOST_BYTES = 250_000;
const SIZES = { wide: { width: 1280, height: 900 }, narrow: { width: 360, height: 740 } };
const SCHEMES = ['light', 'dark'];

let panel;
before(async () => {
  await mkdir(SHOTS, { recursive: true });
  const clinics = { fresh: { patients: 20 }, done: { patients: 600, archived: 48 }, bad: { patients: 40 }, running: { patients: 648 },
    waiting: { patients: 648 } };
  panel = await openPanel('looks', { clinics });
  const { db } = panel;
  const [id] = await db.control('GET', `accounts/${db.key('bad')}/ids`);
  await db.control('POST', `accounts/${db.key('bad')}/mutations`, { set: { id, fields: { date_of_birth: '2023-02-31' } } });
  await db.sql("SELECT cliniko_connect('locked-out', 'KEY-nobody-au1', 'Locked Out')");
  await db.hold('running', [4]);
  await db.control('PUT', `accounts/${db.key('waiting')}/faults`, [{ kind: 'rate_limited', seconds: 59, request: 'every' }]);
  for (const org of ['done', 'done', 'bad', 'locked-out']) await db.sync(org);
  for (const org of ['running', 'waiting']) await db.sql(`SELECT cliniko_sync_all('${org}')`);
  await db.awaitHeld('running', 4);
});
after(async () => {
  await panel.db.letGo('running', 4);
  await panel.close();
});

// What there is to see, and when it is there.
const VIEWS = {
  'first-visit': { org: 'fresh', there: (page) => shows(card(page, 'Sync'), 'No sync has run yet.') },
  completed: { org: 'done', there: (page) => shows(card(page, 'Active patients'), '1 to 25 of 600') },
  running: { org: 'running', there: (page) => shows(card(page, 'Sync'), '300 / 648') },
  waiting: { org: 'waiting', there: (page) => shows(page.locator('.wait'), 'Goes on in') },
  'failed-patients': { org: 'bad', there: (page) => shows(card(page, '1 patient could not be stored'), 'date_of_birth') },
  failed: {
    org: 'locked-out',
    there: async (page) => {
      await button(page, 'Test the connection').click();
      await shows(card(page, 'Connection to Cliniko'), 'Cliniko does not let us in');
      await shows(card(page, 'Sync'), 'The last sync failed');
    },
  },
  offline: {
    org: 'done',
    there: async (page) => {
      await shows(card(page, 'Active patients'), '1 to 25 of 600');
      await page.context().setOffline(true);
      await page.evaluate(() => window.dispatchEvent(new Event('online')));
      await shows(page.getByRole('alert'), 'No connection to the server.');
    },
  },
  'choose-clinic': {
    there: async (page) => {
      await page.getByLabel('Clinic').selectOption('done');
      await shows(card(page, 'Active patients'), '1 to 25 of 600');
    },
  },
  'replace-session': {
    org: 'done',
    there: async (page) => {
      await shows(card(page, 'Active patients'), '1 to 25 of 600');
      await follow(page, await panel.db.token('manager', 'fresh', { sub: 'somebody.with.a.long.name@clinic.example' }));
      await shows(page.getByRole('dialog'), 'Sign in as somebody.with.a.long.name@clinic.example instead?');
    },
  },
  'sign-in': { token: 'none', there: (page) => shows(page.getByRole('heading'), 'Your session has ended') },
};

async function violations(page) {
  await page.evaluate(AXE);
  const { violations: found } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  return found.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id} ${target}: ${failureSummary}`));
}

for (const [name, { org, token, there }] of Object.entries(VIEWS))
  for (const [size, viewport] of Object.entries(SIZES))
    for (const colorScheme of SCHEMES)
      test(`${name}, ${size}, ${colorScheme}: axe-core finds nothing, and nothing sticks out`, async () => {
        const page = await panel.signIn(org === undefined ? 'admin' : 'manager', org, { viewport, colorScheme, token, reducedMotion: 'reduce' });
        await there(page);
        await page.screenshot({ path: `${SHOTS}${name}-${size}-${colorScheme}.png`, fullPage: true });
        assert.deepEqual(await violations(page), []);
        const sticksOut = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.equal(sticksOut, 0, 'no scrolling sideways');
        await page.context().close();
      });

test('everything can be reached by keyboard, in a sensible order', async () => {
  const page = await panel.signIn('manager', 'done');
  // each card comes with an answer of its own
  await shows(card(page, 'Active patients'), '1 to 25 of 600');
  await shows(card(page, 'Live activity'), 'Completed: 648 patients');
  await shows(card(page, 'History').getByRole('row'), 'Completed');
  await button(page, 'Sync all patients again').waitFor();
  const reached = [];
  for (let n = 0; n < 12; n++) {
    await page.keyboard.press('Tab');
    reached.push(await page.evaluate(() => {
      const { activeElement: at } = document;
      return at.getAttribute('aria-label') ?? at.labels?.[0]?.textContent ?? at.textContent;
    }));
  }
  assert.deepEqual(reached.slice(0, 9), ['Sign out', 'Sync all patients again', 'Sync changes only', 'Activity', 'Test the connection',
    'List of runs', 'Search by name or e-mail address', 'List of active patients', 'Next']);
});

test('progress is announced politely, and moves only where motion is welcome', async () => {
  const still = await panel.signIn('viewer', 'running', { reducedMotion: 'reduce' });
  await shows(still.getByRole('status'), 'Storing 648 patients, 40 %');
  const transition = (page) => page.locator('.bar-fill').evaluate((bar) => getComputedStyle(bar).transitionDuration);
  assert.equal(await transition(still), '0s');
  const moving = await panel.signIn('viewer', 'running', { reducedMotion: 'no-preference' });
  await shows(card(moving, 'Sync'), '300 / 648');
  assert.equal(await transition(moving), '0.4s');
});

test('times are in the viewer\'s zone, numbers in the viewer\'s locale', async () => {
  await panel.db.sql("UPDATE sync_logs SET started_at = '2026-01-15T23:30:00Z' WHERE organization_id = 'done' AND id = (SELECT min(id) FROM sync_logs WHERE organization_id = 'done')");
  const sydney = await panel.signIn('viewer', 'done');
  await shows(card(sydney, 'History').getByRole('row'), '16 Jan 2026, 10:30');
  const berlin = await panel.signIn('viewer', 'done', { locale: 'de-DE', timezoneId: 'Europe/Berlin' });
  await shows(card(berlin, 'History').getByRole('row'), '16.01.2026, 00:30');
});

test('the bundle is small, and the page soon there', async (t) => {
  const sizes = await Promise.all((await readdir(ASSETS)).map(async (file) => (await readFile(`${ASSETS}${file}`)).length));
  const bytes = sizes.reduce((sum, size) => sum + size, 0);
  assert.ok(bytes < MOST_BYTES, `${bytes} bytes`);
  const page = await panel.signIn('viewer', 'done');
  await shows(card(page, 'Sync'), 'Completed');
  const ms = await page.evaluate(() => performance.now());
  t.diagnostic(`${bytes} bytes before compression; usable after ${Math.round(ms)} ms`);
});
