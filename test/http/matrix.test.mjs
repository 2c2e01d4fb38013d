// Who may ask for what: every endpoint, for every kind of caller, about every kind of organization, from
// one table of the statuses that must come back.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { call } from './client.mjs';
import { openClinics } from './clinics.mjs';

// An endpoint, and the level that it needs.
const ENDPOINTS = [
  ['GET', 'sync-logs', 'viewer'],
  ['GET', 'status', 'viewer'],
  ['GET', 'active-patients', 'viewer'],
  ['GET', 'test-connection', 'manager'],
  ['POST', 'sync-all', 'manager'],
  ['POST', 'sync', 'manager'],
  ['POST', 'sync-changes', 'manager'],
  ['POST', 'cancel', 'manager'],
];

// What is asked about. The last three are no ids to nginx, which refuses them without asking for a token.
const IDS = {
  own: null,
  other: null,
  unknown: 'no-such-clinic',
  empty: '',
  long: 'x'.repeat(300),
  quotes: `o'%22%27--`,
  dots: '..%2Fmine',
  slash: 'mine%2F',
  unicode: '%E2%98%83%F0%9F%98%80',
  traversal: '../status/mine',
  bytes: '%ff%fe',
  outside: '..%2F..%2Fmine',
};

const STATUSES = `
  needs    caller    own other unknown empty long quotes dots slash unicode traversal bytes outside
  viewer   nobody    401 401   401     401   401  401    401  401   401     400       400   404
  viewer   expired   401 401   401     401   401  401    401  401   401     400       400   404
  viewer   forged    401 401   401     401   401  401    401  401   401     400       400   404
  viewer   claimless 404 404   404     400   400  404    404  404   404     400       400   404
  viewer   viewer    200 404   404     400   400  404    404  404   404     400       400   404
  viewer   manager   200 404   404     400   400  404    404  404   404     400       400   404
  viewer   admin     200 200   404     400   400  404    404  404   404     400       400   404
  manager  nobody    401 401   401     401   401  401    401  401   401     400       400   404
  manager  expired   401 401   401     401   401  401    401  401   401     400       400   404
  manager  forged    401 401   401     401   401  401    401  401   401     400       400   404
  manager  claimless 404 404   404     400   400  404    404  404   404     400       400   404
  manager  viewer    403 403   403     403   403  403    403  403   403     400       400   404
  manager  manager   200 404   404     400   400  404    404  404   404     400       400   404
  manager  admin     200 200   404     400   400  404    404  404   404     400       400   404`;

// The one endpoint that no id follows: a status, or the organizations that the caller finds.
const LISTS = {
  nobody: 401,
  expired: 401,
  forged: 401,
  claimless: [],
  viewer: ['mine'],
  manager: ['mine'],
  admin: ['held', 'held-too', 'mine', 'theirs'],
};

/** The table as { needs, caller, [id]: status } for each row. */
function readTable(text) {
  const [names, ...rows] = text.trim().split('\n').map((line) => line.trim().split(/\s+/));
  return rows.map((cells) => Object.fromEntries(cells.map((cell, i) => [names[i], cell])));
}

// Runs of these two never get an answer from Cliniko, so that there is always something to cancel.
const HELD = ['held', 'held-too'];
const EVERY_REQUEST = Array.from({ length: 200 }, (_, n) => n + 1);

let db;
before(async () => {
  const clinics = { mine: { patients: 5 }, theirs: { patients: 5 }, held: { patients: 5 }, 'held-too': { patients: 5 } };
  db = await openClinics('matrix', { clinics });
  for (const org of HELD) await db.hold(org, EVERY_REQUEST);
});
after(() => db?.close());

/** The token of a kind of caller whose clinic is `own`. */
function tokenOf(caller, own) {
  switch (caller) {
    case 'nobody':
      return undefined;
    case 'expired':
      return db.token('admin', own, { expires: new Date(Date.now() - 3_600_000) });
    case 'forged':
      return db.token('admin', own).then((token) => `${token.slice(0, -4)}AAAA`);
    case 'claimless':
      return db.token('manager');
    case 'admin':
      return db.token('admin');
    default:
      return db.token(caller, own);
  }
}

for (const [method, endpoint, needs] of ENDPOINTS) {
  test(`${endpoint}: each caller sees what it may, and nothing else`, async () => {
    const [own, other] = endpoint === 'cancel' ? HELD : ['mine', 'theirs'];
    const seen = [];
    const expected = [];
    for (const { caller, needs: rowNeeds, ...statuses } of readTable(STATUSES)) {
      if (rowNeeds !== needs) continue;
      const token = await tokenOf(caller, own);
      for (const [kind, status] of Object.entries(statuses)) {
        const org = { own, other }[kind];
        const id = org ?? IDS[kind];
        if (org && endpoint === 'cancel') await db.sql(`SELECT cliniko_sync_all('${org}')`);
        const answer = await call(db.api.url, method, `/api/v1/cliniko/${endpoint}/${id}`, { token });
        expected.push(`${caller} ${kind} ${status}`);
        seen.push(`${caller} ${kind} ${answer.status}`);
      }
    }
    assert.deepEqual(seen, expected);
  });
}

for (const method of ['GET', 'HEAD']) {
  test(`${method} organizations: each caller finds those that it may see`, async () => {
    for (const [caller, expected] of Object.entries(LISTS)) {
      const answer = await call(db.api.url, method, '/api/v1/cliniko/organizations', { token: await tokenOf(caller, 'mine') });
      assert.equal(answer.status, Array.isArray(expected) ? 200 : expected, caller);
      if (answer.status !== 200 || method === 'HEAD') continue;
      assert.deepEqual(answer.json, {
        organizations: expected.map((id) => ({ organization_id: id, name: null, sync_enabled: true, connected: true })),
        has_more: false,
      }, caller);
    }
  });
}

test('no id follows organizations', async () => {
  const token = await db.token('admin');
  for (const id of Object.values(IDS)) {
    const answer = await call(db.api.url, 'GET', `/api/v1/cliniko/organizations/${id ?? 'mine'}`, { token });
    assert.equal(answer.status, 404, id);
    assert.equal(answer.json.details, 'ENDPOINT_NOT_FOUND', id);
  }
});

test('the table has every kind of caller and of organization', () => {
  const rows = readTable(STATUSES);
  assert.equal(rows.length, 14);
  for (const row of rows) assert.deepEqual(Object.keys(row).slice(2), Object.keys(IDS));
});

test('an organization that is not ours cannot be told from one that does not exist', async () => {
  for (const [method, endpoint] of ENDPOINTS) {
    const token = await db.token('manager', 'mine');
    const [theirs, nobodys] = await Promise.all(['theirs', 'no-such-clinic'].map((id) =>
      call(db.api.url, method, `/api/v1/cliniko/${endpoint}/${id}`, { token })));
    assert.equal(theirs.status, 404);
    assert.deepEqual(theirs.json, nobodys.json);
    assert.equal(theirs.json.details, 'ORGANIZATION_NOT_FOUND');
  }
});
