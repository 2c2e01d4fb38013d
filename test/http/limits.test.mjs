// No caller stops another: not with a body that never ends, a token that nobody accepts, more requests than
// one may make, a search that takes long, or a lock that somebody else holds.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { call, callUnchecked, newAddress } from './client.mjs';
import { openClinics } from './clinics.mjs';

const API = '/api/v1/cliniko';
const SERVER_LOG = fileURLToPath(new URL('../../tmp_check/server.log', import.meta.url));
const README = fileURLToPath(new URL('../../http/README.md', import.meta.url));
const LARGE = 20_000;
// What nginx.conf allows to be under way, of a token and of an address.
const MOST_OF_TOKEN = 8;
const MOST_OF_ADDRESS = 16;

let db;
before(async () => {
  db = await openClinics('limits', { clinics: { mine: { patients: 5 }, theirs: { patients: 5 }, large: { patients: 5 } } });
  for (const org of ['mine', 'theirs']) await db.sync(org);
  // as many as it takes for a search to be slow
  await db.sql(`
    INSERT INTO patients (organization_id, cliniko_patient_id, first_name, last_name, preferred_first_name, email)
    SELECT 'large', n, repeat('_', 40) || n, repeat('%', 40) || n, repeat('\\', 40), repeat('%_', 20) || n || '@clinic.example'
    FROM generate_series(1, ${LARGE}) n;
    ANALYZE patients`);
});
after(() => db?.close());

const ask = async (method, path, options = {}) =>
  call(db.api.url, method, `${API}/${path}`, { token: await db.token('manager', 'mine'), ...options });

/** The API once more, with sessions that wait for a lock for as long as it takes. */
async function startPatientApi(options) {
  const login = `ALTER ROLE ${db.role('authenticator')}`;
  await db.sql(`${login} CONNECTION LIMIT -1;
    ${login} IN DATABASE ${db.name} SET lock_timeout = 0;
    ${login} IN DATABASE ${db.name} SET statement_timeout = 0`);
  const api = await db.startAnotherApi(options);
  const stop = async () => {
    await api.stop();
    await db.sql(`${login} CONNECTION LIMIT 25; ${login} IN DATABASE ${db.name} RESET ALL`);
  };
  return { ...api, stop };
}

/** How many sessions of the API wait for a lock. */
const waiting = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`;

/** Sends the head of a request, and nothing after it. Answers the connection. */
async function sendHead(url, from, path, token, more = '') {
  const { hostname, port } = new URL(url);
  const socket = connect({ host: hostname, port, localAddress: from }).setEncoding('utf8');
  await once(socket, 'connect');
  socket.write(`GET ${API}/${path} HTTP/1.1\r\nHost: x\r\n${token ? `Authorization: Bearer ${token}\r\n` : ''}${more}\r\n`);
  return socket;
}

/** A token like those that are accepted, with a signature that is not. */
async function forge(level = 'manager') {
  const token = await db.token(level, 'mine');
  const [head, claims, signature] = token.split('.');
  return `${head}.${claims}.${[...signature].reverse().join('')}`;
}

test('a body is refused without being waited for, and keeps nobody out', async () => {
  const from = newAddress();
  const [token, forged] = [await db.token('manager', 'mine'), await forge()];
  const slow = [];
  for (const bearer of [undefined, forged, token])
    for (const length of Array.from({ length: 10 }, (_, n) => (n % 2 ? 'Content-Length: 4000' : 'Transfer-Encoding: chunked')))
      slow.push(await sendHead(db.api.url, from, 'test-connection/mine', bearer, `${length}\r\n`));
  for (const socket of slow) {
    const [head] = await once(socket, 'data');
    assert.match(head, /^HTTP\/1\.1 413 /);
    assert.match(head, /"details": "REQUEST_TOO_LARGE"/);
  }
  assert.equal((await ask('GET', 'test-connection/mine', { token, from })).status, 200);
  for (const socket of slow) socket.destroy();
});

test('what has no token, or none that is accepted, uses up nothing that others need', async () => {
  const from = newAddress();
  const token = await db.token('manager', 'mine');
  const expired = await db.token('manager', 'mine', { expires: new Date(Date.now() - 3_600_000) });
  const elsewhere = await db.token('manager', 'mine', { audience: 'another-service' });
  // with the beginning of the right signature, and so counted with it if at all
  const close = `${token.slice(0, -5)}AAAAA`;
  for (const bearer of [undefined, 'nonsense', expired, elsewhere, close, ...await Promise.all(Array.from({ length: 20 }, () => forge()))]) {
    for (let n = 0; n < 12; n++) {
      const { status, json, headers } = await ask('POST', 'sync-all/mine', { token: bearer, from });
      assert.equal(status, 401);
      assert.match(headers['www-authenticate'], /^Bearer(?!.*Bearer)/, 'one challenge');
      assert.match(json.code, bearer?.includes('.') ? /^PGRST301$/ : /^PGRST302$/);
    }
  }
  for (let n = 0; n < 10; n++) assert.equal((await ask('POST', 'sync-all/mine', { token, from })).status, 200);
  await db.untilDone('mine');
});

test('who waits for a lock is told so in the end, and what needs no lock goes on meanwhile', async () => {
  const unlock = await db.lock('patients', 'ACCESS EXCLUSIVE');
  try {
    const token = await db.token('viewer', 'mine');
    const read = () => call(db.api.url, 'GET', `${API}/active-patients/mine`, { token });
    const blocked = Array.from({ length: MOST_OF_TOKEN }, read);
    await db.until(`SELECT (${waiting}) > 0`);
    const [logs, organizations] = await Promise.all(['sync-logs/theirs', 'organizations'].map(async (path) =>
      ask('GET', path, { token: await db.token('viewer', 'theirs') })));
    assert.deepEqual([logs.status, organizations.status], [200, 200]);
    for (const { status, json } of await Promise.all(blocked)) {
      assert.equal(status, 500);
      assert.deepEqual(json, { code: '55P03', details: null, hint: null, message: 'canceling statement due to lock timeout' });
    }
  } finally {
    await unlock();
  }
  assert.equal((await ask('GET', 'active-patients/mine')).status, 200);
});

test('a token has eight requests under way at most, and an address sixteen', async () => {
  const address = newAddress();
  const api = await startPatientApi();
  const tokens = await Promise.all(['mine', 'mine', 'mine', 'theirs'].map((org) => db.token('viewer', org)));
  const read = (n, from) => call(api.url, 'GET', `${API}/active-patients/mine`, { token: tokens[n], from });
  const list = (n, from) => call(api.url, 'GET', `${API}/organizations`, { token: tokens[n], from });
  const unlock = await db.lock('patients', 'ACCESS EXCLUSIVE');
  try {
    const blocked = Array.from({ length: MOST_OF_TOKEN }, () => read(0, address));
    await db.until(`SELECT (${waiting}) = ${MOST_OF_TOKEN}`);
    assert.equal((await list(0, newAddress())).status, 429, 'the token, from wherever');
    assert.equal((await list(1, address)).status, 200, 'another token, from there');
    blocked.push(...Array.from({ length: MOST_OF_ADDRESS - MOST_OF_TOKEN }, () => read(1, address)));
    await db.until(`SELECT (${waiting}) = ${MOST_OF_ADDRESS}`);
    const refused = await list(2, address);
    assert.equal(refused.status, 429, 'the address, with whatever token');
    assert.equal(refused.json.details, 'TOO_MANY_REQUESTS');
    assert.equal((await list(3, newAddress())).status, 200, 'another clinic, from elsewhere');
    await unlock();
    for (const { status } of await Promise.all(blocked)) assert.equal(status, 200);
  } finally {
    await unlock();
    await api.stop();
  }
});

test('what its client does not wait for is under way all the same', async () => {
  const api = await startPatientApi();
  const unlock = await db.lock('patients', 'ACCESS EXCLUSIVE');
  try {
    const token = await db.token('viewer', 'mine');
    const sockets = await Promise.all(Array.from({ length: MOST_OF_TOKEN }, () =>
      sendHead(api.url, newAddress(), 'active-patients/mine', token)));
    await db.until(`SELECT (${waiting}) = ${MOST_OF_TOKEN}`);
    for (const socket of sockets) socket.destroy();
    const more = Array.from({ length: MOST_OF_TOKEN }, () =>
      call(api.url, 'GET', `${API}/active-patients/mine`, { token }));
    assert.deepEqual((await Promise.all(more)).map(({ status }) => status), Array(MOST_OF_TOKEN).fill(429));
  } finally {
    await unlock();
    await api.stop();
  }
});

test('behind a proxy that is named each of its clients has an address, and nobody else can claim one', async () => {
  const proxy = newAddress();
  const api = await startPatientApi({ proxy });
  const tokens = await Promise.all(['mine', 'mine', 'mine', 'theirs'].map((org) => db.token('viewer', org)));
  const get = (path, n, from, client) =>
    call(api.url, 'GET', `${API}/${path}`, { token: tokens[n], from, headers: { 'x-forwarded-for': client } });
  const block = (from, client) => [0, 1].flatMap((n) =>
    Array.from({ length: MOST_OF_TOKEN }, () => get('active-patients/mine', n, from, client)));
  try {
    // a client who claims to pass on another's request, also where it comes by two proxies, is the client
    const clients = ['203.0.113.1', '203.0.113.2', '203.0.113.9, 203.0.113.1', `203.0.113.9, 203.0.113.1, ${proxy}`];
    for (const [from, statuses] of [[proxy, [429, 200, 429, 429]], [newAddress(), [429, 429, 429, 429]]]) {
      const unlock = await db.lock('patients', 'ACCESS EXCLUSIVE');
      try {
        const blocked = block(from, clients[0]);
        await db.until(`SELECT (${waiting}) = ${MOST_OF_ADDRESS}`);
        const seen = [];
        for (const client of clients) seen.push((await get('organizations', client === clients[1] ? 3 : 2, from, client)).status);
        assert.deepEqual(seen, statuses);
        await unlock();
        await Promise.all(blocked);
      } finally {
        await unlock();
      }
    }
    const access = (await api.readLog('access.log')).trim().split('\n').map(JSON.parse);
    assert.ok(access.some(({ client, status }) => client === '203.0.113.2' && status === 200));
  } finally {
    await api.stop();
  }
});

test("one viewer's worst request a hundred times, side by side: another clinic's status still answers 200", async () => {
  const token = await db.token('viewer', 'large');
  const search = encodeURIComponent('%_'.repeat(49) + '\\x');
  const from = newAddress();
  const worst = () => call(db.api.url, 'GET', `${API}/active-patients/large?limit=500&offset=2147483647&search=${search}`, { token, from });
  const hundred = Array.from({ length: 100 }, worst);
  await db.until(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE usename = '${db.role('authenticator')}' AND state = 'active')`);
  const answers = await Promise.all(Array.from({ length: 10 }, async () =>
    ask('GET', 'status/theirs', { token: await db.token('viewer', 'theirs') })));
  assert.deepEqual(answers.map(({ status }) => status), Array(10).fill(200));
  const statuses = (await Promise.all(hundred)).map(({ status }) => status);
  assert.ok(statuses.filter((status) => status === 200).length >= MOST_OF_TOKEN);
  assert.ok(statuses.every((status) => [200, 429].includes(status)), `${statuses}`);
});

test('the server that logs every statement logs neither what was searched for, nor tokens, nor claims', async () => {
  const secret = 'Zq-no-server-may-log-this';
  await db.sql(`ALTER DATABASE ${db.name} SET log_min_duration_statement = 0`);
  const api = await db.startAnotherApi();
  try {
    const [token, other] = [await db.token('viewer', 'mine'), await db.token('viewer', secret)];
    for (const more of ['', '&limit=x', '&limit=0'])
      for (const bearer of [token, other])
        await call(api.url, 'GET', `${API}/active-patients/mine?search=${secret}${more}`, { token: bearer });
    const log = await readFile(SERVER_LOG, 'utf8');
    assert.match(log, /duration: .*cliniko_active_patients/, 'statements are logged');
    assert.ok(!log.includes(secret), 'what was searched for, and a claim');
    for (const part of [token, other].flatMap((one) => one.split('.').slice(1))) assert.ok(!log.includes(part), 'a token');
  } finally {
    await api.stop();
    await db.sql(`ALTER DATABASE ${db.name} RESET log_min_duration_statement`);
  }
});

test('a table that is offered as the README says tells no size but that of what the caller sees', async () => {
  const [, location] = /^```nginx\n(.*?)^```$/ms.exec(await readFile(README, 'utf8'));
  const api = await db.startAnotherApi({ more: location });
  try {
    const token = await db.token('viewer', 'mine');
    const read = (headers) => callUnchecked(api.url, 'GET', '/api/v1/patients?select=organization_id', { token, headers });
    const plain = await read({});
    assert.equal(plain.status, 200);
    assert.deepEqual(plain.json, Array(5).fill({ organization_id: 'mine' }));
    for (const headers of [{ prefer: 'count=planned' }, { prefer: 'count=estimated' }, { accept: 'application/vnd.pgrst.plan+json' }]) {
      const answer = await read(headers);
      assert.deepEqual(answer.json, plain.json);
      assert.equal(answer.status, 200);
      for (const name of ['content-range', 'preference-applied']) assert.ok(!(name in answer.headers), JSON.stringify(headers));
    }
    assert.equal((await callUnchecked(api.url, 'GET', '/api/v1/patients')).status, 401);
    assert.equal((await callUnchecked(api.url, 'POST', '/api/v1/patients', { token })).status, 405);
  } finally {
    await api.stop();
  }
});

test('the login role has no more connections than it needs, and each ends what takes too long', async () => {
  const login = db.role('authenticator');
  assert.equal(await db.sql(`SELECT rolconnlimit FROM pg_roles WHERE rolname = '${login}'`), '25');
  const settings = await db.sql(`SELECT unnest(rolconfig) FROM pg_roles WHERE rolname = '${login}' ORDER BY 1`);
  assert.deepEqual(settings.split('\n'), ['idle_in_transaction_session_timeout=10s', 'lock_timeout=5s',
    'log_parameter_max_length=0', 'log_parameter_max_length_on_error=0', 'statement_timeout=15s']);
});
