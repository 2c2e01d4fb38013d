// How fast clinisync is, beside the other ways to do the same; how time and memory grow; and what a sync
// costs its neighbours. test/run starts it beside a throwaway PostgreSQL server that PGHOST, PGPORT and
// PGUSER name. Machines differ and are noisy, so what counts is ratios of what one run measured;
// docs/PERFORMANCE.md explains the tables, and has those of the last run with BENCH_WRITE=1.

import { readFile } from 'node:fs/promises';
import { cpus, totalmem } from 'node:os';
import { startSimulator } from '../test/cliniko/cliniko.mjs';
import { measureClinics } from './clinics.mjs';
import { measureGrowth } from './growth.mjs';
import { DATABASE, announce, closeClinic, createDatabase, openClinic, psql, run } from './measure.mjs';
import { WATCHERS, measurePgbench, measureWatching } from './neighbours.mjs';
import { measureChanges, measureLimit, measurePace, measurePeers } from './peers.mjs';
import { report, thousands, writeReport } from './report.mjs';

const full = Boolean(process.env.BENCH_FULL);
// With fewer, CPU time is too little to be told in ticks.
const FEWEST_PATIENTS = 10_000;
const PATIENTS = readNumber('BENCH_PATIENTS', 20_000, FEWEST_PATIENTS);
const CLINICS = readNumber('BENCH_CLINICS', full ? 1_000 : 200, 1);
const ROUNDS = readNumber('BENCH_ROUNDS', 3, 1);
const SIZES = [1_000, 10_000, 100_000, ...(full ? [1_000_000] : [])];
const CLINIC = { patients: 648 };
const PACE_MS = 300;
const PACES = [{ patients: 648, script: true }, { patients: 5_000 }, { patients: 20_000 }];
// Cliniko's, and the default of clinisync.requests_per_minute.
const REQUESTS_PER_MINUTE = 200;
const CHANGED_PERCENT = 5;
const CLINICS_MS = 100;
const BYTES_PER_GB = 1 << 30;
const SETTINGS = ['fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size'];

function readNumber(name, otherwise, least) {
  const number = Number(process.env[name] || otherwise);
  if (Number.isInteger(number) && number >= least) return number;
  console.error(`clinisync: ${name} must be a number from ${least} up`);
  process.exit(2);
}

async function firstWords(program, args, pattern) {
  const { stdout } = await run(program, args);
  return stdout.match(pattern)?.[1] ?? '?';
}

async function describeSetting() {
  const shows = ['server_version', ...SETTINGS].map((name) => `SHOW ${name}`);
  const [server, ...values] = await psql(DATABASE, shows);
  const system = (await readFile('/etc/os-release', 'utf8')).match(/^PRETTY_NAME="?([^"\n]*)/m)?.[1];
  const python = (args) => firstWords('/usr/bin/python3', args, /^(\S+(?: [\d.]+)?)/);
  const versionOf = (library) => python(['-c', `import ${library}; print(${library}.__version__)`]);
  const versions = [
    `PostgreSQL ${server}`,
    `curl ${await firstWords('curl', ['--version'], /^curl (\S+)/)}`,
    await python(['--version']),
    `requests ${await versionOf('requests')}`,
    `psycopg2 ${await versionOf('psycopg2')}`,
    `Node.js ${process.versions.node}`,
  ].join(', ');
  const memory = Math.round(totalmem() / BYTES_PER_GB);
  const setting = {
    machine: `${cpus().length} cores (${cpus()[0].model.trim()}), ${memory} GB of memory, ${system}`,
    versions,
    settings: SETTINGS.map((name, i) => `\`${name}\` ${values[i]}`).join(', '),
    rounds: ROUNDS,
  };
  announce('Machine', setting.machine);
  announce('Versions', setting.versions);
  return setting;
}

function announceRound(what) {
  return (round) =>
    announce('Measuring', round === 0 ? `${what}: preparing` : `${what}: round ${round} of ${ROUNDS}`);
}

async function bench() {
  const simulator = await startSimulator();
  await createDatabase(simulator);
  const setting = await describeSetting();

  // First, while the worker is new: only then does its memory tell anything.
  const growth = await measureGrowth(simulator, SIZES, (patients) =>
    announce('Measuring', `growth: a clinic of ${thousands(patients)} patients`),
  );

  await openClinic(simulator, 'clinic', { patients: PATIENTS });
  const peers = await measurePeers(
    simulator, 'clinic', PATIENTS, ROUNDS,
    announceRound(`${thousands(PATIENTS)} patients, by clinisync and by others`),
  );
  announce('Measuring', `${CHANGED_PERCENT} % of them changed`);
  const changed = Math.round((PATIENTS * CHANGED_PERCENT) / 100);
  const changes = await measureChanges(simulator, 'clinic', { patients: PATIENTS, changed }, ROUNDS);
  await closeClinic('clinic');

  const paces = [];
  let limit;
  for (const pace of PACES) {
    announce('Measuring', `a clinic of ${thousands(pace.patients)} patients at ${PACE_MS} ms a request`);
    await openClinic(simulator, 'clinic', { patients: pace.patients, latency_ms: PACE_MS });
    paces.push({ ...pace, rounds: await measurePace(simulator, 'clinic', pace, ROUNDS) });
    if (pace === PACES.at(-1)) limit = await measureLimit(simulator, 'clinic', pace.patients, REQUESTS_PER_MINUTE);
    await closeClinic('clinic');
  }

  const clinics = await measureClinics(
    simulator, { clinics: CLINICS, patients: CLINIC.patients, latency_ms: CLINICS_MS }, ROUNDS,
    announceRound(`${thousands(CLINICS)} clinics at ${CLINICS_MS} ms a request`),
  );
  const pgbench = await measurePgbench(simulator, ROUNDS, announceRound('pgbench beside syncs'));
  announce('Measuring', `${WATCHERS} clients that watch a sync through the REST API`);
  const watching = await measureWatching(simulator);

  return {
    setting,
    growth,
    peers: { patients: PATIENTS, rounds: peers },
    changes: { patients: PATIENTS, changed, rounds: changes },
    pace: { latencyMs: PACE_MS, paces, limit: { perMinute: REQUESTS_PER_MINUTE, ...limit } },
    clinics: { clinics: CLINICS, patients: CLINIC.patients, latencyMs: CLINICS_MS, rounds: clinics },
    pgbench: { rounds: pgbench },
    watching: { watchers: WATCHERS, ...watching },
  };
}

try {
  const results = await bench();
  console.log(`\n${report(results)}\n`);
  await writeReport(results);
} catch (error) {
  console.error(`clinisync: ${error.stack}`);
  process.exit(1);
}
process.exit(0); // the simulator would stay
