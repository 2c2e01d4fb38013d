// What a sync costs those who use the server beside it: pgbench's transactions, and dashboards that watch
// the sync through the REST API.

import { randomBytes } from 'node:crypto';
import { Agent, get } from 'node:http';
import { issueToken } from '../http/token.mjs';
import { setUpDatabase, startRestApi } from '../test/http/stack.mjs';
import {
  DATABASE,
  EMPTY,
  awaitSyncs,
  closeClinic,
  fail,
  keyOf,
  openClinic,
  psql,
  run,
  setAll,
} from './measure.mjs';
import { PAGE_SIZE, curlConfig, measureCurl } from './peers.mjs';

// Its tables are in a database of their own, as another application's would be.
const NEIGHBOUR = 'neighbour';
const SCALE = 10;
const CLIENTS = 2;
const SECONDS = 4;
const BUSY_CLINICS = 8;
const BUSY_PATIENTS = 5_000;

// A clinic at Cliniko's pace, watched by so many dashboards that poll as fast as they can.
const WATCHED = { patients: 5_000, latency_ms: 100 };
export const WATCHERS = 16;

// Clinics that answer at once, and as many that answer like a Cliniko.
const BUSY = Array.from({ length: BUSY_CLINICS }, (_, n) => `busy-${n + 1}`);
const PACED = BUSY.map((organization) => organization.replace('busy', 'paced'));
const PACE_MS = 300;
const SYNCS = [
  { name: 'full', settings: {} },
  { name: 'largeBatches', settings: { batch_size: 1000 } },
  { name: 'oneRun', settings: { max_running_syncs: 1 } },
  { name: 'paced', settings: {}, organizations: PACED },
];
// Said, since a worker keeps what it had when a setting is reset.
const DEFAULTS = { batch_size: 50, max_running_syncs: 64 };

async function pgbench() {
  const options = ['-n', '-c', CLIENTS, '-j', CLIENTS, '-T', SECONDS, NEIGHBOUR].map(String);
  const { stdout } = await run('pgbench', options);
  const number = (pattern) => Number(stdout.match(pattern)?.[1] ?? fail(`pgbench said: ${stdout}`));
  return { tps: number(/^tps = ([\d.]+)/m), latencyMs: number(/^latency average = ([\d.]+)/m) };
}

/** Runs pgbench beside `work`, which is given a function that tells whether pgbench is done. */
async function pgbenchBeside(work) {
  let over = false;
  const busy = work(() => over);
  const result = await pgbench();
  over = true;
  return { ...result, ...(await busy) };
}

/** Syncs all enabled clinics into an empty table, again and again while pgbench runs. */
async function syncOn() {
  const lines = await psql(DATABASE, [
    'TRUNCATE sync_logs',
    `DO $$
     DECLARE
       deadline CONSTANT timestamptz = clock_timestamp() + interval '${SECONDS} s';
     BEGIN
       WHILE clock_timestamp() < deadline LOOP
         TRUNCATE patients;
         PERFORM cliniko_sync_all_organizations();
         COMMIT;
         WHILE clock_timestamp() < deadline AND EXISTS (SELECT FROM sync_logs WHERE status = 'running') LOOP
           COMMIT;
           PERFORM pg_sleep(0.05);
         END LOOP;
       END LOOP;
     END $$`,
    'SELECT coalesce(sum(records_success), 0) FROM sync_logs',
    `DO $$
     DECLARE
       org text;
     BEGIN
       FOR org IN SELECT organization_id FROM sync_logs WHERE status = 'running' LOOP
         BEGIN
           PERFORM cliniko_cancel_sync(org);
         EXCEPTION WHEN SQLSTATE 'PT409' THEN
           NULL; -- it has just ended
         END;
       END LOOP;
     END $$`,
    ...awaitSyncs(),
  ]);
  return { patientsPerSecond: Number(lines[0]) / SECONDS };
}

/** Has these clinics synced, and no others. */
async function enable(organizations) {
  const list = organizations.map((organization) => `'${organization}'`).join();
  await psql(DATABASE, [
    `SELECT cliniko_set_sync_enabled(organization_id, organization_id IN (${list}))
     FROM cliniko_organizations`,
  ]);
}

/** Rounds of pgbench alone, beside curl that fetches what the syncs would, and beside syncs. */
export async function measurePgbench(simulator, rounds, onRound) {
  await psql('postgres', [`CREATE DATABASE ${NEIGHBOUR}`]);
  await run('pgbench', ['-i', '-q', '-s', String(SCALE), NEIGHBOUR]);
  const [first, ...others] = BUSY;
  await openClinic(simulator, first, { patients: BUSY_PATIENTS });
  for (const organization of others) await openClinic(simulator, organization, { like: keyOf(first) });
  for (const organization of PACED)
    await openClinic(simulator, organization, { like: keyOf(first), latency_ms: PACE_MS });
  const curl = curlConfig(simulator, first, BUSY_PATIENTS, '/dev/null');
  const fetchOn = async (isOver) => {
    while (!isOver()) await measureCurl(curl, BUSY_PATIENTS / PAGE_SIZE);
  };
  // The simulator knows its pages then.
  await enable(BUSY);
  await psql(DATABASE, ['SELECT count(*) FROM cliniko_sync_all_organizations()', ...awaitSyncs()]);

  const results = [];
  for (let round = 1; round <= rounds; round++) {
    onRound(round);
    const result = { alone: await pgbench(), curl: await pgbenchBeside(fetchOn) };
    for (const { name, settings, organizations = BUSY } of SYNCS) {
      await enable(organizations);
      await setAll({ ...DEFAULTS, ...settings });
      result[name] = await pgbenchBeside(syncOn);
    }
    results.push(result);
  }
  await setAll(DEFAULTS);
  await psql(DATABASE, [
    'SELECT cliniko_disconnect(organization_id) FROM cliniko_organizations',
    'DELETE FROM cliniko_organizations',
    ...EMPTY,
  ]);
  return results;
}

function fetchLog(url, token, agent) {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    get(url, { agent, headers: { authorization: `Bearer ${token}` } }, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () => {
        if (response.statusCode !== 200) reject(new Error(`HTTP ${response.statusCode}: ${Buffer.concat(chunks)}`));
        else resolve({ ms: performance.now() - start, log: JSON.parse(Buffer.concat(chunks)).logs[0] });
      });
    }).on('error', reject);
  });
}

/** One dashboard: polls until the run has ended, and answers how long each poll took. */
async function watch(url, token) {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const times = [];
  for (let status = 'running'; status === 'running'; ) {
    const { ms, log } = await fetchLog(url, token, agent);
    times.push(ms);
    status = log.status;
    if (status === 'failed') fail(`the watched sync failed: ${log.error_details}`);
  }
  agent.destroy();
  return times;
}

/** Many dashboards poll sync-logs?limit=1 through nginx and PostgREST while a sync runs. */
export async function measureWatching(simulator) {
  await openClinic(simulator, 'watched', WATCHED);
  const jwtSecret = randomBytes(32).toString('hex');
  await psql(DATABASE, [
    'CREATE ROLE bench_viewer',
    `SELECT cliniko_grant('bench_viewer', 'viewer')`,
  ]);
  await setUpDatabase(DATABASE, 'bench_authenticator', ['bench_viewer']);
  const api = await startRestApi({ database: DATABASE, role: 'bench_authenticator', jwtSecret, unlimited: true });
  const token = await issueToken(jwtSecret, { role: 'bench_viewer', org: 'watched' });
  const url = `${api.url}/api/v1/cliniko/sync-logs/watched?limit=1`;
  await psql(DATABASE, [`SELECT cliniko_sync_all('watched')`]);
  const start = performance.now();
  const times = (await Promise.all(Array.from({ length: WATCHERS }, () => watch(url, token)))).flat();
  const seconds = (performance.now() - start) / 1000;
  await api.stop();
  await closeClinic('watched');
  const sorted = times.sort((a, b) => a - b);
  const share = (part) => sorted[Math.floor((sorted.length - 1) * part)];
  return { requests: times.length, seconds, median: share(0.5), late: share(0.95), latest: share(1) };
}
