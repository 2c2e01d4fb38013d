// The front ends' guide works as it is written: its own TypeScript, run unchanged against the stack.
//
// The code expects a browser. It gets a page with the three elements that it writes to, a fetch() that
// signs in as the application would, and a timer whose ticks are ours: between two polls each test moves
// Cliniko, or the database, to where the next poll is to find it.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { createContext, Script } from 'node:vm';
import { newAddress, call } from './client.mjs';
import { openClinics } from './clinics.mjs';

const require = createRequire(new URL('../../http/package.json', import.meta.url));
const typescript = require('typescript');

const SYNCING = /Syncing in progress\.\.\.$/;
const PROCESSING = /Processing (\d+) patients from Cliniko$/;
const STORING = /Storing patients in database \((\d+)\/(\d+)\)$/;
const COMPLETED = /Sync completed! (\d+) patients updated$/;

let db;
let script;
before(async () => {
  db = await openClinics('guide', { clinics: { clinic: { patients: 648 }, locked: { patients: 5 } } });
  const source = await readFile(new URL('guide.ts', import.meta.url), 'utf8');
  const { outputText } = typescript.transpileModule(source, {
    compilerOptions: { target: typescript.ScriptTarget.ES2022, module: typescript.ModuleKind.None },
  });
  script = new Script(outputText, { filename: 'guide.ts' });
});
after(() => db?.close());

/** What a browser's fetch() answers, as far as the guide uses it. */
async function respond(path, method, token, from) {
  const answer = await call(db.api.url, method, path, { token, from });
  return { ok: answer.status < 400, status: answer.status, json: async () => answer.json };
}

/**
 * A browser for the guide. onPause(n) is awaited between its polls. Answers the functions that the guide
 * defines, and what it showed: the steps, the percentages, and what it wrote to the console.
 */
async function openBrowser(org, onPause) {
  const token = await db.token('manager', org);
  const from = newAddress();
  const shown = { steps: [], widths: [], texts: [], log: [], errors: [] };
  const elements = {
    '.progress-bar': { style: { set width(value) { shown.widths.push(parseFloat(value)); } } },
    '.sync-status': { set textContent(text) { shown.texts.push(text); } },
    '.current-step': { set textContent(text) { shown.steps.push(text); } },
  };
  let pauses = 0;
  const window = createContext({
    fetch: (path, { method = 'GET' } = {}) => respond(path, method, token, from),
    document: { querySelector: (selector) => elements[selector] },
    addActivityLogEntry: (entry) => shown.log.push(entry),
    setTimeout: (resume) => void Promise.resolve(onPause(++pauses)).then(resume),
    console: {
      log: () => {},
      // The guide catches the error that it throws for a failed run, prints it and goes on polling until
      // it has been at it for five minutes. Where printing an error throws it, as in a page that reports
      // its errors, it comes out.
      error: (text, error) => {
        shown.errors.push([text, error]);
        if (text === 'Error polling sync progress:') throw error;
      },
    },
  });
  script.runInContext(window);
  return { window, shown };
}

function assertRising(numbers) {
  assert.deepEqual(numbers, [...numbers].sort((a, b) => a - b), 'a percentage fell');
}

test('a sync is started, shows the three steps in order and a percentage that climbs, and resolves', async () => {
  // Given: Cliniko answers when it is told, and somebody has locked the table of patients.
  await db.hold('clinic', [1, 5]);
  const unlock = await db.lock('patients');
  const stages = [
    // the first poll has seen a run without a size; the next is to see its size, and nothing stored
    async () => {
      await db.letGo('clinic', 1);
      await db.until(`SELECT metadata ? 'patients_found' FROM sync_logs WHERE organization_id = 'clinic'`);
    },
    // then four of its seven pages are stored
    async () => {
      await unlock();
      await db.awaitHeld('clinic', 5);
      await db.until(`SELECT records_success = 400 FROM sync_logs WHERE organization_id = 'clinic'`);
    },
    async () => {
      await db.letGo('clinic', 5);
      await db.untilDone('clinic');
    },
  ];

  // When the guide's code runs,
  const { window, shown } = await openBrowser('clinic', (pause) => stages[pause - 1]());
  const result = await window.startSyncWithProgress('clinic');

  // then it resolves with a completed run, having shown each step once.
  assert.equal(result.status, 'completed');
  assert.equal(result.type, 'full_patients');
  assert.equal(result.recordsSuccess, 648);
  assert.equal(result.successRate, 100);
  assert.equal(shown.steps.length, 4);
  [SYNCING, PROCESSING, STORING, COMPLETED].forEach((step, i) => assert.match(shown.steps[i], step));
  assert.equal(shown.steps[1].match(PROCESSING)[1], '648');
  assert.deepEqual(shown.steps[2].match(STORING).slice(1), ['400', '648']);
  assert.equal(shown.widths[0], 0);
  assert.equal(shown.widths.at(-1), 100);
  assertRising(shown.widths);
  assert.match(shown.texts[2], /^Processing 400\/648 patients \(61\.7%\)$/);
  assert.equal(shown.log.length, 4);
});

test('with a bad key it rejects with the reason', async () => {
  await db.sql(`SELECT cliniko_connect('locked', 'no-such-key-au1')`);
  const { window, shown } = await openBrowser('locked', () => db.untilDone('locked'));
  await assert.rejects(window.startSyncWithProgress('locked'), /^Error: Sync failed: Cliniko does not accept the API key \(HTTP 401\)/);
  assert.match(shown.errors[0][0], /Sync failed:$/);
  assert.match(shown.errors[0][1][0], /Manage API keys/);
});

test('without permission it rejects with the status', async () => {
  const { window } = await openBrowser('no-such-clinic', () => assert.fail('it must not poll'));
  await assert.rejects(window.startSyncWithProgress('no-such-clinic'), /^Error: Failed to start sync: 404$/);
});
