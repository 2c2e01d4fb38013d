// The ways to get the same patients into the same table that clinisync is measured beside, each checked
// for having done the same job. They are written as a competent user would; see peers/.

import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  CONTACT,
  DATABASE,
  EMPTY,
  OUTPUT_BYTES,
  SETTLE,
  checksum,
  closeClinic,
  control,
  fail,
  keyOf,
  measureSync,
  psql,
  readUsage,
  run,
  setAll,
  used,
} from './measure.mjs';

const SCRIPT = fileURLToPath(new URL('peers/sync.py', import.meta.url));
const PROCEDURE = fileURLToPath(new URL('peers/upsert.sql', import.meta.url));
// The server reads and writes it; it runs as the user that we run as.
const ROWS_FILE = join(tmpdir(), 'patients.copy');
const PAGES = join(tmpdir(), 'pages');
export const PAGE_SIZE = 100;
const IN_PARALLEL = 16;
const MINUTE_MS = 60_000;
const SAID = /^(\d+) patients in ([\d.]+) s, ([\d.]+) s of it at work, ([\d.]+) MB at most$/m;

/** Does some work, and answers what the server used meanwhile with what the work answered. */
async function besideTheServer(work) {
  const look = async () => readUsage((await psql(DATABASE, ['SELECT bench_usage(pg_backend_pid())']))[0]);
  const before = await look();
  const result = await work();
  return { ...result, server: used(before, await look()) };
}

/** The Python script; its CPU time is its own and that of its session in the server. */
export async function measureScript(simulator, organization, patients, options = []) {
  const { said, server } = await besideTheServer(async () => {
    const env = { ...process.env, CLINIKO_KEY: keyOf(organization) };
    const { stdout } = await run(SCRIPT, [...options, `${simulator.url}/v1`, organization, DATABASE], { env });
    return { said: stdout };
  });
  const [stored, seconds, cpuSeconds, peakMb] = SAID.exec(said)?.slice(1).map(Number) ?? [];
  if (stored !== patients) fail(`the script did not store ${patients} patients: ${said}`);
  return { ms: seconds * 1000, cpuMs: cpuSeconds * 1000 + server.endedCpuMs, wal: server.wal, peakMb };
}

async function measureStatement(statement) {
  const usage = 'SELECT bench_usage(pg_backend_pid())';
  const lines = await psql(DATABASE, [usage, statement, usage]);
  return used(readUsage(lines[0]), readUsage(lines.at(-1)));
}

export async function saveRows() {
  await psql(DATABASE, [`COPY patients TO '${ROWS_FILE}'`]);
}

export async function measureCopy() {
  return measureStatement(`COPY patients FROM '${ROWS_FILE}'`);
}

/** What curl is to do to fetch all pages of a clinic, in the language of its configuration file. */
export function curlConfig(simulator, organization, patients, output) {
  const query = `per_page=${PAGE_SIZE}&q%5B%5D=archived_at%3A*&sort=id`;
  return [
    `url = "${simulator.url}/v1/patients?page=[1-${Math.ceil(patients / PAGE_SIZE)}]&${query}"`,
    `user = "${keyOf(organization)}:"`,
    `user-agent = "curl (${CONTACT})"`,
    'header = "Accept: application/json"',
    'compressed',
    'fail',
    `output = "${output}"`,
    'write-out = "%{http_code}\\n"',
  ].join('\n');
}

/** Fetches with curl, so many requests at once, and answers how long that took. */
export async function measureCurl(config, pages, inParallel = IN_PARALLEL) {
  const file = join(tmpdir(), 'curl.conf');
  await writeFile(file, config);
  const parallel = ['--parallel', '--parallel-immediate', '--parallel-max', String(inParallel)];
  const options = ['-sS', ...(inParallel > 1 ? parallel : []), '-K', file];
  const start = performance.now();
  const { stdout } = await run('curl', options, { maxBuffer: OUTPUT_BYTES });
  const ms = performance.now() - start;
  const fetched = stdout.match(/^200$/gm)?.length ?? 0;
  if (fetched !== pages) fail(`curl fetched ${fetched} pages of ${pages}`);
  return { ms };
}

/** Puts the pages of a clinic into the table that the procedure reads. */
async function storePages(simulator, organization, patients) {
  await rm(PAGES, { recursive: true, force: true });
  await mkdir(PAGES);
  const config = curlConfig(simulator, organization, patients, join(PAGES, '#1'));
  await measureCurl(config, Math.ceil(patients / PAGE_SIZE));
  await psql(DATABASE, [
    'TRUNCATE pages',
    `INSERT INTO pages SELECT n, pg_read_file('${PAGES}/' || n)
     FROM generate_series(1, ${(await readdir(PAGES)).length}) n`,
    'VACUUM ANALYZE pages',
  ]);
  await rm(PAGES, { recursive: true });
}

/**
 * Rounds of everything, each into its own quiet, after one of clinisync and of curl that nobody counts:
 * it leaves what the others need and are checked against, and the simulator knows its pages by then.
 */
export async function measurePeers(simulator, organization, patients, rounds, onRound) {
  const pages = Math.ceil(patients / PAGE_SIZE);
  const curl = curlConfig(simulator, organization, patients, '/dev/null');
  const upsert = `CALL upsert_pages('${organization}')`;
  const script = (options) => measureScript(simulator, organization, patients, options);
  onRound(0);
  await psql(DATABASE, [await readFile(PROCEDURE, 'utf8')]);
  await psql(DATABASE, EMPTY);
  await measureSync(organization, patients, 'inserted');
  await saveRows();
  await storePages(simulator, organization, patients);
  const expected = await checksum();

  const measure = async (prepare, work) => {
    await psql(DATABASE, prepare);
    const result = await work();
    const found = await checksum();
    if (found !== expected) fail(`this left ${found}, a sync ${expected}`);
    return result;
  };
  const results = [];
  for (let round = 1; round <= rounds; round++) {
    onRound(round);
    results.push({
      curl: await measureCurl(curl, pages),
      rowByRow: await measure(EMPTY, () => script(['--row-by-row'])),
      script: await measure(EMPTY, () => script([])),
      scriptAgain: await measure(SETTLE, () => script([])),
      sql: await measure(EMPTY, () => measureStatement(upsert)),
      sqlAgain: await measure(SETTLE, () => measureStatement(upsert)),
      copy: await measure(EMPTY, measureCopy),
      first: await measure(EMPTY, () => measureSync(organization, patients, 'inserted')),
      unchanged: await measure(SETTLE, () => measureSync(organization, patients, 'unchanged')),
    });
  }
  await psql(DATABASE, ['TRUNCATE pages']);
  return results;
}

/**
 * Rounds of a run that finds nothing changed, and of one that finds so many patients edited. Another
 * organization with the same key is synced before each, so that the simulator knows its pages.
 */
export async function measureChanges(simulator, organization, { patients, changed }, rounds) {
  const other = `${organization}-again`;
  await psql(DATABASE, [...EMPTY, `SELECT cliniko_connect('${other}', '${keyOf(organization)}')`]);
  await measureSync(organization, patients, 'inserted');
  await measureSync(other, patients, 'inserted');
  const measure = async (outcome, number) => {
    await measureSync(other, number, outcome);
    await psql(DATABASE, SETTLE);
    return measureSync(organization, number, outcome);
  };
  const results = [];
  while (results.length < rounds) {
    const unchanged = await measure('unchanged', patients);
    await control(simulator, 'POST', `accounts/${keyOf(organization)}/mutations`, { edit: changed });
    results.push({ unchanged, changed: await measure('updated', changed) });
  }
  await closeClinic(other);
  return results;
}

/**
 * A clinic at a real pace: clinisync, and curl with one request after another and with all at once;
 * of a small one, the script as well.
 */
export async function measurePace(simulator, organization, { patients, script }, rounds) {
  const pages = Math.ceil(patients / PAGE_SIZE);
  const curl = curlConfig(simulator, organization, patients, '/dev/null');
  const results = [];
  while (results.length < rounds) {
    await psql(DATABASE, EMPTY);
    const first = await measureSync(organization, patients, 'inserted');
    const expected = await checksum();
    const result = { first, parallel: await measureCurl(curl, pages) };
    if (script) {
      await psql(DATABASE, EMPTY);
      result.script = await measureScript(simulator, organization, patients);
      if ((await checksum()) !== expected) fail('the script stored something else than the sync');
      result.curl = await measureCurl(curl, pages, 1);
    }
    results.push(result);
  }
  return results;
}

/** One run under the limit that Cliniko sets, and the most requests that left within any minute. */
export async function measureLimit(simulator, organization, patients, limit) {
  const account = `accounts/${keyOf(organization)}`;
  await psql(DATABASE, EMPTY);
  await control(simulator, 'POST', `${account}/reset`);
  await setAll({ requests_per_minute: limit });
  const { ms } = await measureSync(organization, patients, 'inserted');
  await setAll({ requests_per_minute: 0 });
  const { log, rate_limited } = await control(simulator, 'GET', account);
  const times = log.map(({ at_ms }) => at_ms);
  const within = times.map((start) => times.filter((at) => at >= start && at < start + MINUTE_MS).length);
  return { ms, requests: times.length, most: Math.max(...within), refused: rate_limited };
}
