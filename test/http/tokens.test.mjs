// Which tokens are good: those that end, soon, and are for this service.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { call } from './client.mjs';
import { openClinics } from './clinics.mjs';

const { SignJWT } = createRequire(new URL('../../http/package.json', import.meta.url))('jose');
const HOUR = 3600;

let db;
before(async () => {
  db = await openClinics('tokens', { clinics: { mine: { patients: 1 } } });
});
after(() => db?.close());

/** What a token with these claims is answered; undefined takes one away. Times are in hours from now. */
async function answerTo(claims, url = db.api.url) {
  const now = Math.floor(Date.now() / 1000);
  const all = { role: db.role('viewer'), org_id: 'mine', aud: 'clinisync', iat: 0, exp: 1, ...claims };
  for (const name of ['iat', 'exp']) if (all[name] !== undefined) all[name] = now + all[name] * HOUR;
  const token = await new SignJWT(JSON.parse(JSON.stringify(all))).setProtectedHeader({ alg: 'HS256' })
    .sign(new TextEncoder().encode(db.jwtSecret));
  return call(url, 'GET', '/api/v1/cliniko/status/mine', { token });
}

async function refuses(claims, code, details) {
  const { status, json, headers } = await answerTo(claims);
  assert.equal(status, 401, JSON.stringify(claims));
  assert.deepEqual([json.code, json.details], [code, details], JSON.stringify(claims));
  assert.match(headers['www-authenticate'], /^Bearer\b/);
  return json;
}

test('a token that ends soon and is for this service is good', async () => {
  for (const claims of [{}, { iat: undefined }, { exp: 24 }, { iat: -23, exp: 1 }, { aud: ['another', 'clinisync'] }])
    assert.equal((await answerTo(claims)).status, 200, JSON.stringify(claims));
});

test('a token that never ends is refused', async () => {
  const { message, hint } = await refuses({ exp: undefined }, 'PT401', 'TOKEN_WITHOUT_EXPIRY');
  assert.equal(message, 'the token never expires');
  assert.match(hint, /exp/);
});

test('a token that is good for longer than a day is refused, counted from its beginning, or else from now', async () => {
  for (const claims of [{ exp: 25 }, { iat: -24, exp: 1 }, { iat: undefined, exp: 25 }])
    await refuses(claims, 'PT401', 'TOKEN_TOO_LONG_LIVED');
});

test('a token for another service, or for none, is refused', async () => {
  for (const aud of ['another', 'clinisync2', [], ['another']]) await refuses({ aud }, 'PGRST301', null);
  await refuses({ aud: undefined }, 'PT401', 'TOKEN_WITHOUT_AUDIENCE');
});

test('how long a token may be good is a setting', async () => {
  await db.sql("ALTER FUNCTION clinisync_http.pre_request() SET clinisync_http.max_token_lifetime = '2 hours'");
  try {
    assert.equal((await answerTo({ exp: 2 })).status, 200);
    const { hint } = await refuses({ exp: 3 }, 'PT401', 'TOKEN_TOO_LONG_LIVED');
    assert.match(hint, /02:00:00/);
  } finally {
    await db.sql("ALTER FUNCTION clinisync_http.pre_request() SET clinisync_http.max_token_lifetime = '24 hours'");
  }
});

test('a role that may not have its tokens looked at gets nothing', async () => {
  const role = db.role('viewer');
  await db.sql(`REVOKE EXECUTE ON FUNCTION clinisync_http.pre_request() FROM ${role}`);
  try {
    assert.equal((await answerTo({})).status, 403);
  } finally {
    await db.sql(`GRANT EXECUTE ON FUNCTION clinisync_http.pre_request() TO ${role}`);
  }
});

test('a test of the connection may take as long as Cliniko does, and nothing else', async () => {
  const timeout = (path) => db.sql(`
    BEGIN;
    SET LOCAL statement_timeout = '15s';
    SET LOCAL request.path = '${path}';
    SELECT clinisync_http.pre_request();
    SHOW statement_timeout`);
  assert.equal(await timeout('/rpc/cliniko_status'), '15s');
  assert.equal(await timeout('/rpc/cliniko_test_connection'), '55s');
});
