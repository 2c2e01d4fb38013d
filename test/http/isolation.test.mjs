// One clinic cannot see another, whatever it puts into a request: to the API, or to PostgREST itself,
// where the tables may be exposed as well.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { call, callUnchecked } from './client.mjs';
import { openClinics } from './clinics.mjs';

const MINE = 30;
const THEIRS = 40;

const INJECTIONS = [
  `'; DROP TABLE patients; --`,
  `' OR '1'='1`,
  `" OR ""="`,
  `\\'; SELECT pg_sleep(30); --`,
  `mine' UNION SELECT api_key_sealed FROM cliniko_organizations --`,
  `$$ || (SELECT 1) || $$`,
  `1); DELETE FROM sync_logs; --`,
  `{"org":"theirs"}`,
  `theirs&org=theirs`,
  `theirs;org=theirs`,
  `eq.theirs`,
  `not.is.null`,
  `in.(theirs,mine)`,
  `%`,
  `_`,
  `*`,
  `\\`,
  `\u0001`,
  `ümlaut 😀`,
];

const TABLES = ['cliniko_organizations', 'patients', 'sync_logs'];

let db;
let state;
before(async () => {
  db = await openClinics('isolation', { clinics: { mine: { patients: MINE }, theirs: { patients: THEIRS } } });
  await db.sync('mine');
  await db.sync('theirs');
  state = await everything();
});
after(() => db?.close());

/** All that is in the tables, as one value. */
function everything() {
  const rows = TABLES.map((table) => `SELECT '${table}' || t::text FROM ${table} t`).join(' UNION ALL ');
  return db.sql(`SELECT md5(string_agg(r, ',' ORDER BY r)) FROM (${rows}) AS all_rows (r)`);
}

const ask = async (path, level = 'viewer', options = {}) =>
  call(db.api.url, 'GET', `/api/v1/cliniko/${path}`, { token: await db.token(level, 'mine'), ...options });

const askPostgrest = async (path, { level = 'viewer', method = 'GET', claim = true, headers = {}, body } = {}) =>
  callUnchecked(db.api.postgrestUrl, method, path, {
    token: await db.token(level, claim && level !== 'admin' ? 'mine' : undefined),
    headers: { ...(body ? { 'content-type': 'application/json' } : {}), ...headers },
    body,
  });

test('SQL in a parameter is inert', async () => {
  const parameters = [
    ['active-patients/mine', ['search', 'limit', 'offset', 'last_synced_after']],
    ['sync-logs/mine', ['limit', 'status', 'operation_type']],
  ];
  for (const injection of INJECTIONS) {
    const encoded = encodeURIComponent(injection);
    for (const [path, names] of parameters) {
      for (const name of names) {
        const { status, text } = await ask(`${path}?${name}=${encoded}`);
        assert.equal(status, name === 'search' ? 200 : 400, `${name}=${injection}: ${text}`);
      }
    }
    for (const [method, endpoint] of [['GET', 'status'], ['GET', 'sync-logs'], ['GET', 'active-patients'],
      ['GET', 'test-connection'], ['POST', 'sync-all'], ['POST', 'sync-changes'], ['POST', 'cancel']]) {
      const answer = await call(db.api.url, method, `/api/v1/cliniko/${endpoint}/${encoded}`, {
        token: await db.token('manager', 'mine'),
      });
      assert.ok([400, 404].includes(answer.status), `${endpoint}/${injection}: ${answer.status} ${answer.text}`);
    }
  }
  assert.equal(await everything(), state, 'nothing has changed');
});

test('SQL in a token is inert', async () => {
  for (const injection of INJECTIONS) {
    const token = await db.token('viewer', injection);
    const answer = await call(db.api.url, 'GET', '/api/v1/cliniko/status/theirs', { token });
    assert.equal(answer.status, 404, injection);
    const list = await call(db.api.url, 'GET', '/api/v1/cliniko/organizations', { token });
    assert.deepEqual(list.json, { organizations: [], has_more: false }, injection);
  }
  assert.equal(await everything(), state);
});

test('what is searched for is text, not a pattern', async () => {
  for (const search of ['%', '_', '\\', '*', '%a%', 'eq.a', 'is.null', 'Te_t', `'`, 'ZO', 'z q']) {
    const { json } = await ask(`active-patients/mine?search=${encodeURIComponent(search)}`);
    const containing = await db.sql(`
      SELECT count(*) FROM patients
      WHERE organization_id = 'mine' AND archived_at IS NULL AND EXISTS (
        SELECT FROM unnest(ARRAY[first_name, last_name, preferred_first_name, email,
                                 concat_ws(' ', first_name, last_name)]) AS text
        WHERE strpos(lower(text), lower($$${search}$$)) > 0)`);
    assert.equal(json.pagination.total, Number(containing), search);
  }
});

test('parameters that the API does not have are not passed on', async () => {
  const plain = await ask('active-patients/mine?limit=5');
  assert.equal(plain.json.patients.length, 5);
  for (const more of ['org=theirs', 'organization_id=eq.theirs', 'select=*', 'columns=org', 'max_rows=1', 'skip_rows=3',
    'and=(id.gt.0)', 'or=(org.eq.theirs)', 'order=id', 'offset.x=1', 'limit=9']) {
    const { status, json } = await ask(`active-patients/mine?limit=5&${more}`);
    assert.equal(status, 200, more);
    assert.deepEqual(json, plain.json, more);
  }
});

test('headers that PostgREST listens to do not reach it', async () => {
  const plain = await ask('status/mine');
  for (const headers of [
    { prefer: 'count=exact' },
    { prefer: 'params=single-object' },
    { prefer: 'tx=rollback, return=minimal' },
    { range: '0-0', 'range-unit': 'items' },
    { accept: 'application/vnd.pgrst.plan+json' },
    { accept: 'application/vnd.pgrst.object+json' },
    { accept: 'text/csv' },
    { 'accept-profile': 'pg_catalog' },
    { 'content-profile': 'pg_catalog' },
    { 'x-http-method-override': 'DELETE' },
  ]) {
    const answer = await ask('status/mine', 'viewer', { headers });
    assert.equal(answer.status, 200, JSON.stringify(headers));
    assert.deepEqual(answer.json, plain.json);
    assert.ok(!('content-range' in answer.headers) && !('content-profile' in answer.headers));
  }
});

test('a body is refused, and an empty one is none', async () => {
  const token = await db.token('manager', 'mine');
  for (const [type, body, status] of [
    ['application/json', '{"org": "theirs"}', 413],
    ['application/x-www-form-urlencoded', 'org=theirs', 413],
    ['application/json', '', 200],
  ]) {
    const answer = await call(db.api.url, 'POST', '/api/v1/cliniko/sync-all/mine', {
      token, body, headers: { 'content-type': type },
    });
    assert.equal(answer.status, status, body);
  }
  await db.untilDone('mine');
  state = await everything();
});

test('the tables can be exposed: a viewer finds its own rows and no others', async () => {
  const all = await askPostgrest('/patients?select=*', { headers: { prefer: 'count=exact' } });
  assert.equal(all.status, 200);
  assert.equal(all.json.length, MINE);
  assert.ok(all.json.every((row) => row.organization_id === 'mine'));
  assert.equal(all.headers['content-range'], `0-${MINE - 1}/${MINE}`);

  for (const query of [
    'select=id&organization_id=eq.theirs',
    'select=id&organization_id=neq.mine',
    'select=id&organization_id=like.t*',
    'select=id&or=(organization_id.eq.theirs,organization_id.eq.x)',
    'select=id&not.and=(organization_id.eq.mine)',
    'select=organization_id&organization_id=in.(theirs)&limit=1&offset=0&order=organization_id.desc',
  ]) {
    const answer = await askPostgrest(`/patients?${query}`, { headers: { prefer: 'count=exact' } });
    assert.equal(answer.status, 200, query);
    assert.deepEqual(answer.json, [], query);
    assert.match(answer.headers['content-range'], /\/0$/, query);
  }
  const logs = await askPostgrest('/sync_logs?select=id,organization_id,status,metadata');
  assert.deepEqual([...new Set(logs.json.map((log) => log.organization_id))], ['mine']);
  const organizations = await askPostgrest('/cliniko_organizations?select=organization_id,name,sync_enabled');
  assert.deepEqual(organizations.json.map((one) => one.organization_id), ['mine']);
});

test('each clinic finds itself in the list, and an admin both, whatever else is asked for', async () => {
  for (const [level, org, found] of [
    ['viewer', 'mine', ['mine']],
    ['viewer', 'theirs', ['theirs']],
    ['manager', 'mine', ['mine']],
    ['manager', 'theirs', ['theirs']],
    ['manager', undefined, []],
    ['admin', undefined, ['mine', 'theirs']],
    ['admin', 'mine', ['mine', 'theirs']],
  ]) {
    const token = await db.token(level, org);
    for (const query of ['', '?org=theirs', '?organization_id=eq.theirs', '?limit=0&offset=1', '?select=api_key_sealed']) {
      const { json } = await call(db.api.url, 'GET', `/api/v1/cliniko/organizations${query}`, {
        token, headers: { prefer: 'params=single-object', 'content-type': 'application/json' },
      });
      assert.deepEqual(json.organizations.map((one) => one.organization_id), found, `${level} ${org} ${query}`);
    }
    const bare = await callUnchecked(db.api.postgrestUrl, 'GET', '/rpc/cliniko_list_organizations', { token });
    assert.deepEqual(bare.json.organizations.map((one) => one.organization_id), found, `${level} ${org} /rpc`);
  }
});

test('a token without a claim finds nothing, an admin everything', async () => {
  for (const table of TABLES) {
    const nothing = await askPostgrest(`/${table}?select=organization_id`, { claim: false });
    assert.deepEqual(nothing.json, [], table);
  }
  const everybody = await askPostgrest('/patients?select=organization_id', { level: 'admin' });
  assert.equal(everybody.json.length, MINE + THEIRS);
});

test('neither keys nor checkpoints can be read, at any level', async () => {
  for (const level of ['viewer', 'manager', 'admin']) {
    for (const path of [
      '/cliniko_organizations?select=api_key_sealed',
      '/cliniko_organizations?select=*',
      '/cliniko_organizations?select=organization_id&api_key_sealed=not.is.null',
      '/cliniko_organizations?select=organization_id&order=api_key_sealed',
      '/sync_logs?select=checkpoint',
      '/sync_logs?select=*',
      '/sync_logs?select=id&checkpoint->>order=eq.id',
    ]) {
      const answer = await askPostgrest(path, { level });
      assert.equal(answer.status, 403, `${level} ${path}: ${answer.text}`);
      assert.equal(answer.json.code, '42501');
    }
  }
});

test('nothing can be written, at any level', async () => {
  const row = { cliniko_organizations: { name: 'x' }, patients: { notes: 'x' }, sync_logs: { status: 'failed' } };
  for (const level of ['viewer', 'manager', 'admin']) {
    for (const table of TABLES) {
      for (const [method, path, body] of [
        ['POST', `/${table}`, { organization_id: 'mine', ...row[table] }],
        ['POST', `/${table}?columns=organization_id`, { organization_id: 'mine', ...row[table] }],
        ['PATCH', `/${table}?organization_id=eq.mine`, row[table]],
        ['DELETE', `/${table}?organization_id=eq.mine`, undefined],
        ['PUT', `/${table}?organization_id=eq.mine`, { organization_id: 'mine', ...row[table] }],
      ]) {
        const headers = { prefer: 'resolution=merge-duplicates, return=representation' };
        const answer = await askPostgrest(path, { level, method, headers, body: body && JSON.stringify(body) });
        assert.ok([400, 403, 405].includes(answer.status), `${level} ${method} ${path}: ${answer.status} ${answer.text}`);
      }
    }
  }
  assert.equal(await everything(), state);
});

test('embedding and plans reach nothing', async () => {
  for (const [path, headers] of [
    ['/patients?select=id,cliniko_organizations(*)', {}],
    ['/patients?select=id,sync_logs(checkpoint)', {}],
    ['/sync_logs?select=id,patients!inner(*)', {}],
    ['/cliniko_organizations?select=organization_id,patients(*)', {}],
    ['/patients?select=id', { accept: 'application/vnd.pgrst.plan+json; options=analyze' }],
    ['/patients?select=count()', {}],
    ['/patients?select=id', { 'accept-profile': 'pg_catalog' }],
    ['/pg_authid?select=*', {}],
    ['/', {}],
  ]) {
    const answer = await askPostgrest(path, { headers });
    assert.ok(answer.status >= 400 && answer.status < 500, `${path} ${JSON.stringify(headers)}: ${answer.status} ${answer.text}`);
  }
});

test('a level reaches its own functions and none of the others, as /rpc either', async () => {
  // all that can be called, with the arguments that PostgREST needs to find it
  const functions = JSON.parse(await db.sql(`
    SELECT json_object_agg(p.proname, (
      SELECT coalesce(json_object_agg(a.name, CASE a.type
          WHEN 'boolean'::regtype THEN 'true' WHEN 'oid[]'::regtype THEN '[]'
          WHEN 'regrole'::regtype THEN to_json('${db.role('viewer')}'::text) ELSE '"mine"' END::json), '{}')
      FROM unnest(p.proargnames[:p.pronargs - p.pronargdefaults], p.proargtypes::oid[]) AS a (name, type)
      WHERE a.name IS NOT NULL))
    FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clinisync')
      AND p.prorettype <> 'event_trigger'::regtype`));
  const levels = {
    viewer: ['cliniko_sync_logs', 'cliniko_status', 'cliniko_list_organizations', 'cliniko_active_patients'],
    manager: ['cliniko_sync_all', 'cliniko_sync', 'cliniko_sync_changes', 'cliniko_cancel_sync', 'cliniko_test_connection'],
    admin: ['cliniko_connect', 'cliniko_disconnect', 'cliniko_set_sync_enabled', 'cliniko_sync_all_organizations'],
  };
  assert.ok(Object.keys(functions).length > 15);
  const allowed = [];
  for (const [level, more] of Object.entries(levels)) {
    allowed.push(...more);
    for (const [name, body] of Object.entries(functions).filter(([one]) => !allowed.includes(one))) {
      const { status, text } = await askPostgrest(`/rpc/${name}`, { level, method: 'POST', body: JSON.stringify(body) });
      assert.equal(status, 403, `${level} ${name}: ${status} ${text}`);
    }
  }
  assert.equal(await everything(), state);
});
