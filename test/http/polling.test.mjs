// Sixteen dashboards watch a run: none gets an error, and to none does the percentage fall.

import assert from 'node:assert/strict';
import { Agent } from 'node:http';
import { after, before, test } from 'node:test';
import { call } from './client.mjs';
import { openClinics } from './clinics.mjs';

const CLIENTS = 16;
const PATIENTS = 3000;

let db;
before(async () => {
  db = await openClinics('polling', { clinics: { clinic: { patients: PATIENTS, latency_ms: 20 } }, unlimited: true });
});
after(() => db?.close());

/** Polls until the run has ended, and answers every log that it saw. */
async function watch(token) {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const seen = [];
  do {
    const { status, json } = await call(db.api.url, 'GET', '/api/v1/cliniko/sync-logs/clinic?limit=1', { token, agent, from: undefined });
    assert.equal(status, 200);
    seen.push(json.logs[0]);
  } while (seen.at(-1).status === 'running');
  agent.destroy();
  return seen;
}

test('sixteen clients poll a run to its end without an error', async () => {
  const token = await db.token('manager', 'clinic');
  await call(db.api.url, 'POST', '/api/v1/cliniko/sync-all/clinic', { token });
  const watched = await Promise.all(Array.from({ length: CLIENTS }, () => watch(token)));
  for (const logs of watched) {
    const percents = logs.map((log) => log.metadata.progress_percent);
    assert.deepEqual(percents, [...percents].sort((a, b) => a - b), 'the percentage fell');
    assert.equal(logs.at(-1).status, 'completed');
    assert.equal(logs.at(-1).records_success, PATIENTS);
    assert.ok(logs.every((log) => log.records_success <= (log.records_processed || 0)));
  }
});
