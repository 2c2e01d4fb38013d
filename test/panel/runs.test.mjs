// What an administrator can do and see: choose a clinic, test its connection, start, watch, cancel and
// retry a sync, and read what became of it.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { button, card, openPanel, progressbar, shows } from './browser.mjs';

let panel;
before(async () => {
  panel = await openPanel('runs', {
    clinics: { watched: { patients: 600, archived: 48 }, first: { patients: 20 }, failing: { patients: 150 }, limited: { patients: 250 },
      ending: { patients: 250 }, bad: { patients: 30 }, history: { patients: 60 }, late: { patients: 20 } },
  });
  const { db } = panel;
  await db.control('PUT', 'accounts/KEY-good-au1', { patients: 10 });
  await db.sql("SELECT cliniko_connect('locked-out', 'KEY-nobody-au1', 'Locked Out')");
});
after(() => panel.close());

test('an admin chooses among all clinics, a manager sees the one of the token', async () => {
  const page = await panel.signIn('admin');
  const chooser = page.getByLabel('Clinic');
  await chooser.waitFor();
  assert.equal(await chooser.locator('option').count(), 9);
  await chooser.selectOption('first');
  await page.waitForURL(/clinic=first/);
  await page.reload();
  assert.equal(await page.getByLabel('Clinic').inputValue(), 'first');
  assert.doesNotMatch(page.url(), /token/);

  const manager = await panel.signIn('manager', 'first');
  await shows(manager.locator('header'), 'first');
  assert.equal(await manager.getByLabel('Clinic').count(), 0);
});

test('the connection is tested, and what to do is said where it fails', async () => {
  const page = await panel.signIn('manager', 'first');
  const connection = card(page, 'Connection to Cliniko');
  await connection.getByRole('button', { name: 'Test the connection' }).click();
  await shows(connection, 'Connected to Clinic KEY-first');
  await shows(connection, '20 patients, 20 of them active');

  const locked = await panel.signIn('manager', 'locked-out');
  const refused = card(locked, 'Connection to Cliniko');
  await refused.getByRole('button', { name: 'Test the connection' }).click();
  await shows(refused, 'Cliniko does not let us in');
  await shows(refused, 'Create a new key in Cliniko');
  await shows(refused, 'CLINIKO_AUTH_FAILED');
});

test('a sync with a wrong key has failed, and says what to do', async () => {
  const page = await panel.signIn('manager', 'locked-out');
  await button(page, 'Sync all patients').click();
  const sync = card(page, 'Sync');
  await shows(sync, 'The last sync failed');
  await shows(sync, 'Create a new key in Cliniko under My Info > Manage API keys');
  await shows(sync, 'Trying again does not help');
  assert.equal(await page.getByText('Completed:').count(), 0);
});

test('a full sync is watched from its start to its end', async () => {
  const { db } = panel;
  await db.hold('watched', [1, 2, 5]);
  const page = await panel.signIn('manager', 'watched');
  await shows(card(page, 'Sync'), 'No sync has run yet.');
  await button(page, 'Sync all patients').click();
  await db.awaitHeld('watched', 1);
  await shows(card(page, 'Sync'), 'Connecting to Cliniko');
  assert.equal(await progressbar(page).getAttribute('aria-valuenow'), null);

  await db.letGo('watched', 1);
  await db.awaitHeld('watched', 2);
  await page.locator('[role=progressbar][aria-valuenow="15.4"]').waitFor();
  await shows(card(page, 'Sync'), '100 / 648');
  await db.letGo('watched', 2);
  await db.awaitHeld('watched', 5);
  await page.locator('[role=progressbar][aria-valuenow="61.7"]').waitFor();
  assert.equal(await progressbar(page).getAttribute('aria-valuetext'), '61.7 %, 400 of 648 patients');
  await shows(card(page, 'Sync'), 'Storing 648 patients');
  await shows(card(page, 'Sync'), /Remaining\d+ (second|minute)/);

  await db.letGo('watched', 5);
  await shows(card(page, 'Sync'), 'Completed: 648 patients in');
  await button(page, 'Sync all patients again').waitFor();
  for (const [name, value] of [['In Cliniko', '648'], ['Synced', '648'], ['Active', '600'], ['Archived', '48'], ['Deleted', '0']])
    await shows(card(page, 'Patients'), new RegExp(`${name}${value}`));
  await shows(card(page, 'Patients'), /As of (now|\d+ seconds? ago)/);
  const lines = await card(page, 'Live activity').getByRole('listitem').allInnerTexts();
  for (const line of ['Connecting to Cliniko', 'Storing 648 patients', 'Completed: 648 patients'])
    assert.ok(lines.some((text) => text.includes(line)), `${line} in ${lines}`);
  await shows(card(page, 'History').getByRole('row'), /All patients.*Completed.*648\s*648\s*0\s*0\s*0/s);
});

test('changes alone are synced', async () => {
  const { db } = panel;
  await db.sync('first');
  await db.control('POST', `accounts/${db.key('first')}/mutations`, { edit: 3, add: 2 });
  const page = await panel.signIn('manager', 'first');
  await button(page, 'Sync changes only').click();
  await shows(card(page, 'History').getByRole('row'), /Changes.*Completed.*5\s*2\s*3/s);
  await shows(card(page, 'Patients'), /Synced22/);
});

test('totals are never older than the run that they are shown beside', async () => {
  const { db } = panel;
  await db.hold('late', [1]);
  const page = await panel.signIn('manager', 'late');
  await shows(card(page, 'Sync'), 'No sync has run yet.');

  // The history takes its time, and the run ends meanwhile: what the totals were before that is not asked for.
  const asked = [];
  let ended;
  const end = new Promise((resolve) => (ended = resolve));
  await page.route(/sync-logs.*limit=20/, async (route) => {
    await end;
    await route.fulfill({ response: await route.fetch() });
    asked.push('history');
  });
  page.on('request', (request) => /cliniko\/status\//.test(request.url()) && asked.push('totals'));
  await button(page, 'Sync all patients').click();
  await db.awaitHeld('late', 1);
  await db.letGo('late', 1);
  await db.untilDone('late');
  ended();
  await shows(card(page, 'Sync'), 'Completed: 20 patients in');
  await shows(card(page, 'Patients'), /Synced20/);
  assert.deepEqual(asked.slice(0, 2), ['history', 'totals']);
});

test('a run that waits for the request limit says so and counts down', async () => {
  const { db } = panel;
  await db.control('PUT', `accounts/${db.key('limited')}/faults`, [{ kind: 'rate_limited', seconds: 50, request: 2, times: 1000 }]);
  const page = await panel.signIn('manager', 'limited');
  await button(page, 'Sync all patients').click();
  const wait = page.locator('.wait');
  await shows(wait, 'Cliniko’s request limit is reached. Goes on in 0:');
  const first = await wait.innerText();
  await page.waitForFunction(([text]) => document.querySelector('.wait')?.innerText !== text, [first]);
  const seconds = (text) => Number(/0:(\d\d)/.exec(text)[1]);
  assert.ok(seconds(await wait.innerText()) < seconds(first), 'the countdown falls');
  await shows(card(page, 'Live activity'), 'Waiting: Cliniko’s request limit is reached');
  await db.sql("SELECT cliniko_cancel_sync('limited')");
});

test('a run is cancelled, with feedback at once', async () => {
  const { db } = panel;
  await db.hold('ending', [2]);
  const page = await panel.signIn('manager', 'ending');
  await button(page, 'Sync all patients').click();
  await db.awaitHeld('ending', 2);
  await shows(card(page, 'Sync'), '100 / 250');
  let answer;
  const held = new Promise((resolve) => (answer = resolve));
  await page.route('**/cancel/*', async (route) => {
    await held;
    await route.continue();
  });
  await button(page, 'Cancel').click();
  assert.ok(await button(page, 'Cancelling…').isDisabled());
  answer();
  await shows(card(page, 'Sync'), 'Cancelled; 100 patients had been stored');
  await shows(card(page, 'History').getByRole('row'), /Cancelled/);
  await db.letGo('ending', 2);
});

test('a failed run is retried', async () => {
  const { db } = panel;
  await db.control('PUT', `accounts/${db.key('failing')}/faults`, [{ kind: 'status', status: 403, body: '{}', request: 2 }]);
  const page = await panel.signIn('manager', 'failing');
  await button(page, 'Sync all patients').click();
  await shows(card(page, 'Sync'), 'The last sync failed');
  await shows(card(page, 'Sync'), '100 patients had been stored; they stay.');
  await button(page, 'Retry with all patients').click();
  await shows(card(page, 'Sync'), 'Completed: 150 patients in');
});

test('patients that could not be stored are listed by id, with the reason', async () => {
  const { db } = panel;
  const ids = await db.control('GET', `accounts/${db.key('bad')}/ids`);
  await db.control('POST', `accounts/${db.key('bad')}/mutations`, { set: { id: ids[7], fields: { date_of_birth: '2023-02-31' } } });
  const page = await panel.signIn('manager', 'bad');
  await button(page, 'Sync all patients').click();
  const failed = card(page, '1 patient could not be stored');
  await shows(failed, `${ids[7]} date_of_birth has an impossible value`);
  await shows(card(page, 'Sync'), 'Completed: 29 patients in');
  await shows(card(page, 'Sync'), '1 could not be stored');
});

test('a viewer is told what the level does not allow', async () => {
  const page = await panel.signIn('viewer', 'history');
  await button(page, 'Sync all patients').click();
  await shows(card(page, 'Sync'), 'Your access does not allow this.');
  await page.getByRole('button', { name: 'Close' }).click();
  assert.equal(await page.getByText('Your access does not allow this.').count(), 0);
});

test('the history has a chart of durations', async () => {
  const { db } = panel;
  for (let n = 0; n < 3; n++) await db.sync('history');
  const page = await panel.signIn('viewer', 'history');
  const history = card(page, 'History');
  await history.getByText('Duration of the last 3 runs').waitFor();
  assert.equal(await history.locator('svg rect.completed').count(), 3);
  assert.equal(await history.getByRole('row').count(), 4);
});

test('patients are searched and paged', async () => {
  const { db } = panel;
  const page = await panel.signIn('viewer', 'history');
  const patients = card(page, 'Active patients');
  await shows(patients, '1 to 25 of 60 active patients');
  await patients.getByRole('button', { name: 'Next' }).click();
  await shows(patients, '26 to 50 of 60 active patients');
  await patients.getByRole('button', { name: 'Next' }).click();
  await shows(patients, '51 to 60 of 60 active patients');
  assert.ok(await patients.getByRole('button', { name: 'Next' }).isDisabled());
  const name = await db.sql("SELECT last_name FROM patients WHERE organization_id = 'history' AND archived_at IS NULL ORDER BY id LIMIT 1");
  const count = await db.sql(`SELECT cliniko_active_patients('history', search => '${name.replaceAll("'", "''")}') #>> '{pagination,total}'`);
  await patients.getByLabel('Search by name or e-mail address').fill(name);
  await shows(patients, new RegExp(`1 to ${Math.min(count, 25)} of ${count} active`));
  await patients.getByLabel('Search by name or e-mail address').fill('nobody is called like this');
  await shows(patients, 'Nobody is called like that.');
});
