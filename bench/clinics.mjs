// Many clinics that one statement starts: what the whole takes beside the machine's limits, what one
// worker needs for it, and what a clinic whose Cliniko hardly answers costs the others.

import {
  DATABASE,
  EMPTY,
  awaitSyncs,
  checksum,
  closeClinic,
  fail,
  keyOf,
  measureSyncs,
  median,
  openClinic,
  psql,
} from './measure.mjs';
import { PAGE_SIZE, curlConfig, measureCopy, measureCurl, saveRows } from './peers.mjs';

// As many as curl can do side by side.
const IN_PARALLEL = 300;
const SLOW = 'a-slow-one';
const SLOW_LATENCY_MS = 20_000;

const START = 'SELECT count(*) FROM cliniko_sync_all_organizations()';

/** Opens clinics that have the patients of the first, each to itself. */
async function openClinics(simulator, organizations, account) {
  const [first, ...others] = organizations;
  await openClinic(simulator, first, account);
  for (const organization of others)
    await openClinic(simulator, organization, { latency_ms: account.latency_ms, like: keyOf(first) });
}

/** One run of each clinic; answers, besides what it took, the median of the runs' own times. */
async function measureAll(clinics, patients, { besideSlow = false } = {}) {
  await psql(DATABASE, ['TRUNCATE sync_logs', ...EMPTY]);
  const usage = await measureSyncs(START, SLOW);
  const [runs] = await psql(DATABASE, [
    `SELECT json_agg(json_build_array(metadata -> 'duration_ms', metadata -> 'inserted'))
     FROM sync_logs WHERE status = 'completed' AND organization_id <> '${SLOW}'`,
  ]);
  const done = JSON.parse(runs) ?? [];
  if (done.length !== clinics || !done.every(([, inserted]) => inserted === patients))
    fail(`${done.length} of ${clinics} clinics were stored completely`);
  if (besideSlow) {
    // This fails unless it is still running, and so was beside the others.
    await psql(DATABASE, [`SELECT cliniko_cancel_sync('${SLOW}')`, ...awaitSyncs()]);
  }
  return { ...usage, medianMs: median(done.map(([ms]) => ms)) };
}

/** Rounds of all clinics, all beside the slow one, curl with the same pages, and COPY of the same rows. */
export async function measureClinics(simulator, { clinics, patients, latency_ms }, rounds, onRound) {
  const organizations = Array.from({ length: clinics }, (_, n) => `clinic-${n + 1}`);
  const pages = clinics * Math.ceil(patients / PAGE_SIZE);
  const curl = organizations
    .map((organization) => curlConfig(simulator, organization, patients, '/dev/null'))
    .join('\nnext\n');
  onRound(0);
  await openClinics(simulator, organizations, { patients, latency_ms });
  // What nobody counts: the simulator knows its pages then, and COPY has its rows.
  await measureAll(clinics, patients);
  await measureCurl(curl, pages, IN_PARALLEL);
  await saveRows();
  const expected = await checksum();

  const results = [];
  for (let round = 1; round <= rounds; round++) {
    onRound(round);
    const all = await measureAll(clinics, patients);
    if ((await checksum()) !== expected) fail('the clinics were stored differently');
    await openClinic(simulator, SLOW, { patients, latency_ms: SLOW_LATENCY_MS });
    const besideSlow = await measureAll(clinics, patients, { besideSlow: true });
    await closeClinic(SLOW);
    const fetched = await measureCurl(curl, pages, IN_PARALLEL);
    const copy = await measureCopy();
    if ((await checksum()) !== expected) fail('COPY stored something else');
    results.push({ all, besideSlow, curl: fetched, copy });
  }
  await psql(DATABASE, [
    'SELECT cliniko_disconnect(organization_id) FROM cliniko_organizations',
    'DELETE FROM cliniko_organizations',
    'TRUNCATE sync_logs',
    ...EMPTY,
  ]);
  return results;
}
