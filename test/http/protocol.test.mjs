// What HTTP is due: methods, headers, limits, errors and logs.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { call, description, newAddress } from './client.mjs';
import { openClinics } from './clinics.mjs';

const require = createRequire(new URL('../../http/package.json', import.meta.url));
const TOKEN = fileURLToPath(new URL('../../http/token.mjs', import.meta.url));
const API = '/api/v1/cliniko';
const SECRET_SEARCH = 'Zq-nobody-may-log-this';

let db;
before(async () => {
  db = await openClinics('protocol', { clinics: { clinic: { patients: 12 } } });
  await db.sync('clinic');
});
after(() => db?.close());

/** Each request has a token of its own unless told, so that none is counted with another. */
const ask = async (method, path, options = {}) =>
  call(db.api.url, method, path, { token: await db.token('manager', 'clinic'), ...options });

test('the description is a valid OpenAPI 3.1 document, and served', async () => {
  const { Validator } = await import(require.resolve('@seriousme/openapi-schema-validator'));
  const { valid, errors } = await new Validator().validate(structuredClone(description));
  assert.ok(valid, JSON.stringify(errors));

  const { parse } = require('yaml');
  const answer = await ask('GET', '/api/v1/openapi.yaml', { token: undefined });
  assert.equal(answer.status, 200);
  assert.match(answer.headers['content-type'], /^application\/yaml/);
  assert.deepEqual(parse(answer.text), description);
});

test('every path of the description answers', async () => {
  for (const [path, operations] of Object.entries(description.paths)) {
    const [method] = Object.keys(operations).filter((name) => name !== 'parameters');
    const answer = await ask(method.toUpperCase(), `/api/v1${path.replace('{organization}', 'clinic')}`);
    assert.ok([200, 409].includes(answer.status), `${method} ${path}: ${answer.status}`);
  }
  await db.untilDone('clinic');
});

test('other methods are refused, with those that there are', async () => {
  for (const [path, methods, allow] of [
    [`${API}/status/clinic`, ['POST', 'PUT', 'PATCH', 'DELETE'], 'GET, HEAD, OPTIONS'],
    [`${API}/organizations`, ['POST', 'PUT', 'PATCH', 'DELETE'], 'GET, HEAD, OPTIONS'],
    [`${API}/sync-all/clinic`, ['GET', 'HEAD', 'PUT', 'PATCH', 'DELETE'], 'POST, OPTIONS'],
  ]) {
    for (const method of methods) {
      const answer = await ask(method, path);
      assert.equal(answer.status, 405, `${method} ${path}`);
      assert.equal(answer.headers.allow, allow);
    }
  }
  assert.equal((await ask('HEAD', `${API}/status/clinic`)).status, 200);
});

test('the old path works as before, and says what to use instead', async () => {
  const answer = await ask('POST', `${API}/sync/clinic%2Fx`, { token: await db.token('admin') });
  assert.equal(answer.status, 404);
  assert.match(answer.headers.deprecation, /^@\d+$/);
  assert.equal(answer.headers.link, `<${API}/sync-all/clinic%2Fx>; rel="successor-version"`);
  assert.ok(!('deprecation' in (await ask('POST', `${API}/cancel/clinic`)).headers));
});

test('what is nowhere is 404, in the shape of every other error', async () => {
  for (const path of ['/', '/api', '/api/v1', API, `${API}/`, `${API}/sync-all`, `${API}/nothing/clinic`,
    `${API}/organizations/`, `${API}/organizations/?x`, `${API}/organizationsx`, `${API}/organizations%2F`, `${API}/organizations;x`,
    '/rpc/cliniko_status?org=clinic', '/patients', '/nginx.conf', '/access.log', '/api/v1/openapi.yaml/x',
    '/api/v1/../nginx.conf', `${API}/../../../nginx.conf`, '/API/V1/CLINIKO/status/clinic']) {
    const answer = await ask('GET', path);
    assert.equal(answer.status, 404, path);
    assert.equal(answer.json.details, 'ENDPOINT_NOT_FOUND');
  }
});

test('what is no request is an error in JSON, too', async () => {
  const tooLong = await ask('GET', `${API}/status/${'x'.repeat(9000)}`);
  assert.equal(tooLong.status, 414);
  for (const body of ['{}', 'x'.repeat(5000)])
    assert.equal((await ask('POST', `${API}/sync-all/clinic`, { body })).status, 413);
  for (const path of [`${API}/status/%`, `${API}/status/%zz`, `${API}/status/%00`, `${API}/status/clinic?search=%c0%af`, `${API}/organizations?search=%c0%af`,
    `${API}/status/clinic?a;b`, `${API}/status/a&b`, `${API}/status/a+b`, `${API}/status/clinic/x`]) {
    assert.equal((await ask('GET', path)).status, 400, path);
  }
});

test('an id may have any character', async () => {
  for (const id of ['a/b', '../x', 'ü ☃ 😀', `o'"x`, 'a&b=c;d+e', '100%', '#?', '.', '..', '{}', 'org_2xwH', 'x'.repeat(255)]) {
    await db.sql(`SELECT cliniko_connect($id$${id}$id$, 'KEY-clinic-au1')`);
    const path = `${API}/status/${encodeURIComponent(id)}`;
    const answer = await ask('GET', path, { token: await db.token('viewer', id) });
    // a path of dots alone is resolved by every client and proxy before it gets here
    if (['.', '..'].includes(id)) assert.ok([200, 404].includes(answer.status), id);
    else assert.equal(answer.json.organization_id, id);
  }
});

test('a script of an origin that was not named gets nothing from the browser', async () => {
  const headers = { origin: 'https://elsewhere.example', 'access-control-request-method': 'GET' };
  for (const method of ['OPTIONS', 'GET']) {
    const answer = await ask(method, `${API}/status/clinic`, { headers });
    assert.ok(!Object.keys(answer.headers).some((name) => name.startsWith('access-control-')), method);
    assert.match(answer.headers.vary, /Origin/);
  }
});

test('a script of an origin that was named may call, and read the headers that matter', async () => {
  const origin = 'https://app.clinic.example';
  const api = await db.startAnotherApi({ origin });
  try {
    const preflight = await call(api.url, 'OPTIONS', `${API}/sync-all/clinic`, {
      headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' },
    });
    assert.equal(preflight.status, 204);
    assert.equal(preflight.headers['access-control-allow-origin'], origin);
    assert.equal(preflight.headers['access-control-allow-methods'], 'POST, OPTIONS');
    assert.match(preflight.headers['access-control-allow-headers'], /Authorization/);
    const list = await call(api.url, 'OPTIONS', `${API}/organizations`, { headers: { origin } });
    assert.equal(list.status, 204);
    assert.equal(list.headers['access-control-allow-origin'], origin);
    assert.equal(list.headers['access-control-allow-methods'], 'GET, HEAD, OPTIONS');
    const token = await db.token('manager', 'clinic');
    const answers = await Promise.all([token, undefined].map((one) =>
      call(api.url, 'GET', `${API}/status/clinic`, { token: one, headers: { origin } })));
    assert.deepEqual(answers.map(({ status }) => status), [200, 401]);
    for (const { headers } of answers) {
      assert.equal(headers['access-control-allow-origin'], origin);
      assert.match(headers['access-control-expose-headers'], /Retry-After/);
    }
    const other = await call(api.url, 'GET', `${API}/status/clinic`, { token, headers: { origin: 'https://x.example' } });
    assert.ok(!('access-control-allow-origin' in other.headers));
  } finally {
    await api.stop();
  }
});

test('a client may start ten syncs a minute, and another client meanwhile too', async () => {
  const client = { token: await db.token('manager', 'clinic'), from: newAddress() };
  const start = (how, options) => ask('POST', `${API}/${how}/clinic`, { ...client, ...options });
  const began = Date.now();
  let started = 0;
  // one in six seconds becomes free again, which on a slow machine are over before all are used up
  const startUntilRefused = async (how) => {
    for (;;) {
      const answer = await start(how);
      if (answer.status === 429) return answer;
      assert.equal(answer.status, 200, how);
      assert.ok(++started <= 10 + Math.ceil((Date.now() - began) / 6_000), `start ${started}`);
    }
  };
  const refused = await startUntilRefused('sync-all');
  assert.ok(started >= 10, `${started} could be started`);
  assert.ok(Number(refused.headers['retry-after']) > 0);
  assert.equal((await ask('GET', `${API}/sync-logs/clinic`, client)).status, 200, 'reading is counted apart');
  await startUntilRefused('sync-changes');
  assert.equal((await start('sync-all', { token: await db.token('manager', 'clinic') })).status, 200, 'another client, at the same address');
  await db.untilDone('clinic');
});

test('a client may make 120 other requests a minute; preflights are not counted', async () => {
  const client = { token: await db.token('manager', 'clinic'), from: newAddress() };
  const read = (path = 'status/clinic') => ask('GET', `${API}/${path}`, client);
  for (let n = 0; n < 20; n++) await ask('OPTIONS', `${API}/status/clinic`, { ...client, headers: { origin: 'https://x.example' } });
  const statuses = [];
  for (let n = 0; n < 120; n++) statuses.push((await read()).status);
  assert.deepEqual(new Set(statuses), new Set([200]));
  // two a second become free again: fewer than are asked for at once, also on a slow machine
  for (const path of ['status/clinic', 'organizations']) {
    let refused = false;
    for (let n = 0; n < 10 && !refused; n++) {
      const answers = await Promise.all(Array.from({ length: 40 }, () => read(path)));
      refused = answers.some(({ status }) => status === 429);
    }
    assert.ok(refused, path);
  }
});

test('no log has a query string, a body or a token in it', async () => {
  const token = await db.token('manager', 'clinic');
  await ask('GET', `${API}/active-patients/clinic?search=${SECRET_SEARCH}`, { token });
  await ask('GET', `${API}/active-patients/clinic?search=${SECRET_SEARCH}&limit=x`);
  await ask('GET', `${API}/nothing/clinic?search=${SECRET_SEARCH}`);
  await ask('POST', `${API}/sync-all/clinic?x=${SECRET_SEARCH}`, { body: `{"search": "${SECRET_SEARCH}"}` });
  for (let n = 0; n < 11; n++) await ask('POST', `${API}/sync-all/clinic?x=${SECRET_SEARCH}`, { token });
  await db.untilDone('clinic');
  const [access, errors] = await Promise.all(['access.log', 'error.log'].map(db.api.readLog));
  const lines = access.trim().split('\n').map(JSON.parse);
  assert.ok(lines.some((line) => line.endpoint === 'active-patients' && line.organization === 'clinic' && line.status === 200));
  for (const text of [access, errors, db.api.postgrest.printed]) {
    assert.ok(!text.includes(SECRET_SEARCH));
    assert.ok(!text.includes(token));
  }
});

test('token.mjs issues tokens that work, and says what is missing', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'clinisync-token-'));
  const secret = join(directory, 'secret');
  const run = (...args) => promisify(execFile)('node', [TOKEN, ...args]);
  await writeFile(secret, `${db.jwtSecret}\n`);
  const { stdout } = await run('--secret-file', secret, '--role', db.role('viewer'), '--org', 'clinic', '--expires', '5m');
  assert.equal((await ask('GET', `${API}/status/clinic`, { token: stdout.trim() })).status, 200);
  assert.equal((await ask('GET', `${API}/status/other`, { token: stdout.trim() })).status, 404);

  assert.match((await run('--help')).stdout, /^Usage: /);
  await assert.rejects(run('--role', 'x'), /--secret-file is missing/);
  await assert.rejects(run('--secret-file', secret, '--role', 'x', '--expires', 'soon'), { code: 2 });
  await writeFile(secret, 'short');
  await assert.rejects(run('--secret-file', secret, '--role', 'x'), /fewer than 32 characters/);
  await rm(directory, { recursive: true });
});

for (const path of ['app_metadata.org_id', '{https://clinic.example/org_id}']) {
  test(`clinisync.org_claim names where a token has the organization: ${path}`, async () => {
    await db.sql(`ALTER DATABASE ${db.name} SET clinisync.org_claim = '${path}'`);
    const api = await db.startAnotherApi();
    try {
      const there = await db.token('viewer', 'clinic', { claim: path });
      const elsewhere = await db.token('viewer', 'clinic');
      assert.equal((await call(api.url, 'GET', `${API}/status/clinic`, { token: there })).status, 200);
      assert.equal((await call(api.url, 'GET', `${API}/status/clinic`, { token: elsewhere })).status, 404);
    } finally {
      await api.stop();
      await db.sql(`ALTER DATABASE ${db.name} RESET clinisync.org_claim`);
    }
  });
}

test('while PostgREST is gone, callers are told to come back', async () => {
  const api = await db.startAnotherApi();
  try {
    await api.postgrest.stop();
    const answer = await call(api.url, 'GET', `${API}/status/clinic`, { token: await db.token('viewer', 'clinic') });
    assert.equal(answer.status, 503);
    assert.equal(answer.json.details, 'SERVICE_UNAVAILABLE');
    assert.ok(Number(answer.headers['retry-after']) > 0);
  } finally {
    await api.stop();
  }
});
