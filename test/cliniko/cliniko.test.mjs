// What the simulator promises to the tests that lean on it. It must never wait for time to pass:
// where something has to be held, a gate holds it.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Agent, request as httpRequest } from 'node:http';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { startSimulator } from './cliniko.mjs';

const MANNERS = { Accept: 'application/json', 'User-Agent': 'clinisync test (dev@example.com)' };
const ALL = 'q[]=archived_at:*&per_page=100';
const FIELDS =
  'accepted_email_marketing accepted_privacy_policy accepted_sms_marketing address_1 address_2 address_3 ' +
  'appointment_notes appointments archived_at attendees city concession_type country country_code created_at ' +
  'custom_fields date_of_birth deleted_at dva_card_number email emergency_contact first_name gender ' +
  'gender_identity id invoice_default_to invoice_email invoice_extra_information invoices label last_name ' +
  'latest_booking links medical_alerts medicare medicare_reference_number merged_at merged_with_patient notes ' +
  'occupation old_reference_id patient_attachments patient_phone_numbers post_code preferred_first_name pronouns ' +
  'receives_cancellation_emails receives_confirmation_emails referral_source referring_doctor relationships ' +
  'reminder_type sex state time_zone title updated_at';

let simulator;
const agent = new Agent({ keepAlive: true });
let accountsMade = 0;

before(async () => {
  simulator = await startSimulator();
});

after(async () => {
  agent.destroy();
  await simulator.close();
});

/** Sends a request exactly as written; resolves to {status, headers, bytes}, rejects if the connection breaks. */
function send(path, { method = 'GET', headers = {}, body } = {}) {
  return new Promise((resolve, reject) => {
    const request = httpRequest(simulator.url + path, { path, method, headers, agent }, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () =>
        resolve({ status: response.statusCode, headers: response.headers, bytes: Buffer.concat(chunks) }),
      );
    });
    request.on('error', reject);
    request.end(body);
  });
}

async function control(method, path, body) {
  const { status, bytes } = await send(`/control/${path}`, { method, body: body && JSON.stringify(body) });
  return { status, json: JSON.parse(bytes) };
}

function basic(user, password = '') {
  return { Authorization: `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}` };
}

/** A fresh account and what a test does with it. */
async function clinic(options = {}) {
  const key = `key-of-clinic-${++accountsMade}-au2`;
  const at = `accounts/${encodeURIComponent(key)}`;
  assert.equal((await control('PUT', at, options)).status, 200);
  const get = (path, headers) => send(`/v1${path}`, { headers: { ...MANNERS, ...basic(key), ...headers } });
  const json = async (path) => {
    const answer = await get(path);
    assert.equal(answer.status, 200, answer.bytes.toString());
    return JSON.parse(answer.bytes);
  };
  return {
    key,
    get,
    json,
    ids: async (query) => (await json(`/patients?${query}`)).patients.map(({ id }) => id),
    summary: async () => (await control('GET', at)).json,
    truth: async () => (await control('GET', `${at}/patients`)).json,
    tell: async (method, path, body) => (await control(method, `${at}/${path}`, body)).json,
    faults: (...faults) => control('PUT', `${at}/faults`, faults),
  };
}

/** Everything by keyset pages, as the worker asks for it. */
async function enumerate({ json }) {
  const patients = [];
  for (let last = '0', page; !page || page.length > 0; last = page[page.length - 1]?.id) {
    page = (await json(`/patients?${ALL}&q[]=id:>${last}&sort=id:asc`)).patients;
    patients.push(...page);
  }
  return patients;
}

test('the program says where it listens first, and ends with its standard input', async () => {
  const program = fileURLToPath(new URL('cliniko.mjs', import.meta.url));
  for (const end of [(child) => child.stdin.end(), (child) => child.kill('SIGTERM')]) {
    const child = spawn(process.execPath, [program, '--until-stdin-closes'], { stdio: ['pipe', 'pipe', 'inherit'] });
    const [line] = await once(createInterface(child.stdout), 'line');
    assert.match(line, /^listening on http:\/\/127\.0\.0\.1:\d+$/);
    end(child);
    assert.deepEqual(await once(child, 'exit'), [0, null]);
  }
});

test('a patient has the 57 documented fields, in text that clients must survive', async () => {
  const { truth } = await clinic({ patients: 600, archived: 20, merged: 5 });
  const patients = await truth();
  for (const patient of patients) assert.equal(Object.keys(patient).join(' '), FIELDS);
  const text = JSON.stringify(patients);
  for (const sample of ['ë', '山田', '👩🏽‍⚕️', '\\"', '\\\\', '\\r\\n', 'e\u0301', '\u2028', 'Zq'])
    assert.ok(text.includes(sample), `somewhere there is ${sample}`);
  for (const field of FIELDS.split(' ').filter((name) => name !== 'deleted_at'))
    assert.ok(patients.some((patient) => patient[field] !== null), `${field} is set somewhere`);
  assert.ok(patients.some(({ patient_phone_numbers: phones }) => phones === null));
  assert.ok(patients.some(({ patient_phone_numbers: phones }) => phones?.length === 0));
  assert.ok(patients.some(({ patient_phone_numbers: phones }) => phones?.length === 4));
  assert.ok(patients.some(({ patient_phone_numbers: phones }) => phones?.some((p) => !('normalized_number' in p))));
  const sections = patients.flatMap(({ custom_fields }) => custom_fields?.sections ?? []);
  const types = new Set(sections.flatMap(({ fields }) => fields.map(({ type }) => type)));
  assert.deepEqual([...types].sort(), ['checkboxes', 'date', 'paragraph', 'radiobuttons', 'text']);
  const merged = patients.filter(({ merged_at }) => merged_at !== null);
  assert.equal(merged.length, 5);
  for (const { archived_at, merged_at, merged_with_patient } of merged) {
    assert.equal(archived_at, merged_at);
    const survivor = merged_with_patient.links.self.split('/').pop();
    assert.equal(patients.find(({ id }) => id === survivor).archived_at, null);
  }
});

test('an account is the same each time, and no two accounts are alike', async () => {
  const options = { patients: 50, seed: 7 };
  const [one, other] = [await clinic(options), await clinic(options)];
  const first = await one.truth();
  await control('PUT', `accounts/${one.key}`, options);
  assert.deepEqual(await one.truth(), first);
  const markers = (patients) => patients.map(({ last_name }) => /Zq\d+/.exec(last_name)[0]);
  const shared = new Set(markers(await other.truth()));
  assert.ok(markers(first).every((marker) => !shared.has(marker)));
  assert.equal(new Set(markers(first)).size, 50);
});

test('an account can begin like another one, and then goes its own way', async () => {
  const one = await clinic({ patients: 20, archived: 2 });
  await one.tell('POST', 'mutations', { edit: 1, add: 1 });
  const before = await one.truth();
  const twin = await clinic({ like: one.key });
  assert.deepEqual(await twin.truth(), before);
  await twin.tell('POST', 'mutations', { remove: 3, edit: 2 });
  await one.tell('POST', 'mutations', { remove: [before[0].id] });
  assert.equal((await twin.truth()).length, before.length - 3);
  assert.deepEqual(await one.truth(), before.slice(1));
  const { json } = await control('PUT', 'accounts/orphan-au1', { like: 'nobody-au1' });
  assert.deepEqual(json, { message: 'there is no account nobody-au1' });
});

test('ids rise with the time of creation, which neighbours may share', async () => {
  const lengths = { snowflake: [18, 19], old: [8], mixed: [8, 18, 19] };
  for (const [ids, expected] of Object.entries(lengths)) {
    const patients = await (await clinic({ patients: 300, ids })).truth();
    assert.deepEqual([...new Set(patients.map(({ id }) => id.length))].sort((a, b) => a - b), expected, ids);
    let twins = 0;
    for (let n = 1; n < patients.length; n++) {
      assert.ok(BigInt(patients[n].id) > BigInt(patients[n - 1].id));
      assert.ok(patients[n].created_at >= patients[n - 1].created_at);
      assert.match(patients[n].updated_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
      if (patients[n].created_at === patients[n - 1].created_at) twins++;
    }
    assert.ok(twins > 0);
    if (ids === 'mixed') assert.equal(patients.filter(({ id }) => id.length === 8).length, 100);
  }
});

test('absent values are null, empty or missing, as the account says', async () => {
  const seen = async (absent) => {
    const { json, truth } = await clinic({ patients: 100, archived: 5, absent });
    const patients = await truth();
    assert.deepEqual((await json(`/patients?${ALL}`)).patients, patients.slice(0, 100));
    assert.equal((await json('/patients')).total_entries, 100, 'archived ones are known in every style');
    const all = patients.flatMap((patient) => FIELDS.split(' ').map((field) => patient[field]));
    return { null: all.includes(null), '': all.includes(''), missing: all.includes(undefined) };
  };
  assert.deepEqual(await seen('null'), { null: true, '': false, missing: false });
  assert.deepEqual(await seen('empty'), { null: true, '': true, missing: true });
  assert.deepEqual(await seen('missing'), { null: false, '': false, missing: true });
  assert.deepEqual(await seen('mixed'), { null: true, '': true, missing: true });
});

test('pages follow created_at by default and link to their neighbours', async () => {
  const { json, truth, key } = await clinic({ patients: 120, archived: 10 });
  const active = (await truth()).filter(({ archived_at }) => archived_at === null);
  const first = await json('/patients');
  assert.deepEqual(first.patients, active.slice(0, 50));
  assert.equal(first.total_entries, 120);
  assert.equal(first.links.previous, undefined);
  const query = 'q%5B%5D=archived_at%3A%2A&q[]=id:>1&sort=id:asc';
  const middle = await json(`/patients?${query}&page=2&per_page=60`);
  const url = (page) =>
    `${simulator.url}/v1/patients?page=${page}&per_page=60&q%5B%5D=archived_at%3A*&q%5B%5D=id%3A%3E1&sort=id%3Aasc`;
  assert.deepEqual(middle.links, { self: url(2), next: url(3), previous: url(1) });
  assert.equal((await json(middle.links.next.slice(`${simulator.url}/v1`.length))).patients.length, 10);
  const last = await json('/patients?page=3');
  assert.equal(last.patients.length, 20);
  assert.equal(last.links.next, undefined);
  assert.deepEqual((await json('/patients?page=9')).patients, []);
  assert.deepEqual((await control('GET', `accounts/${key}`)).json.violations, []);
});

test('keyset pages give every patient once, and what remains as the total', async () => {
  const account = await clinic({ patients: 230, archived: 20, ids: 'mixed' });
  const truth = await account.truth();
  assert.deepEqual(await enumerate(account), truth);
  const rest = await account.json(`/patients?${ALL}&q[]=id:>${truth[99].id}&sort=id:asc`);
  assert.equal(rest.total_entries, 150);
  assert.deepEqual((await account.summary()).violations, []);
});

test('filters mean what Cliniko documents', async () => {
  const account = await clinic({ patients: 400, archived: 25 });
  const truth = await account.truth();
  const { id, created_at, date_of_birth } = truth.find((patient) => patient.date_of_birth !== null);
  const expectations = {
    'q[]=archived_at:?': (p) => p.archived_at !== null,
    'q[]=archived_at:!?': (p) => p.archived_at === null,
    'q[]=archived_at:>2022-01-01T00:00:00Z': (p) => p.archived_at > '2022-01-01T00:00:00Z',
    [`q[]=archived_at:*&q[]=id:>=${id}&q[]=id:<${truth[300].id}`]: (p) =>
      BigInt(p.id) >= BigInt(id) && BigInt(p.id) < BigInt(truth[300].id),
    [`q[]=archived_at:*&q[]=id:<=${truth[5].id}`]: (p) => BigInt(p.id) <= BigInt(truth[5].id),
    [`q[]=archived_at:*&q[]=id:=${truth[9].id},${truth[3].id},1,${truth[3].id}`]: (p) =>
      [truth[9].id, truth[3].id].includes(p.id),
    [`q[]=archived_at:*&q[]=id:!=${id}`]: (p) => p.id !== id,
    'q[]=id:!?': () => false,
    'q[]=id:?': (p) => p.archived_at === null,
    [`q[]=created_at:<=${created_at}`]: (p) => p.created_at <= created_at && p.archived_at === null,
    'q[]=archived_at:*&q[]=updated_at:>=2023-06-01T00:00:00Z': (p) => p.updated_at >= '2023-06-01T00:00:00Z',
    [`q[]=archived_at:*&q[]=date_of_birth:=${date_of_birth}`]: (p) => p.date_of_birth === date_of_birth,
    'q[]=archived_at:*&q[]=date_of_birth:=****-02-29': (p) => p.date_of_birth?.endsWith('-02-29') ?? false,
    'q[]=archived_at:*&q[]=date_of_birth:!?': (p) => p.date_of_birth === null,
    'q[]=archived_at:*&q[]=last_name:~zq': () => true,
    'q[]=archived_at:*&q[]=last_name:~~M%25mmy%25': (p) => /^m.*mmy/i.test(p.last_name),
    'q[]=archived_at:*&q[]=first_name:=Zo%C3%AB': (p) => p.first_name === 'Zoë',
    'q[]=archived_at:*&q[]=email:?': (p) => p.email !== null,
    'q[]=archived_at:*&q[]=accepted_privacy_policy:!=true': (p) => p.accepted_privacy_policy === false,
  };
  for (const [query, holds] of Object.entries(expectations)) {
    const expected = truth.filter(holds);
    const page = await account.json(`/patients?${query}&per_page=100&sort=id`);
    assert.equal(page.total_entries, expected.length, query);
    assert.deepEqual(page.patients, expected.slice(0, 100), query);
    const second = await account.json(`/patients?${query}&per_page=100&sort=id&page=2`);
    assert.deepEqual(second.patients, expected.slice(100, 200), query);
  }
  assert.deepEqual((await account.summary()).violations, []);
});

test('sort takes several columns and directions, nulls last', async () => {
  const { json, ids, truth } = await clinic({ patients: 90 });
  const patients = await truth();
  const byId = patients.map(({ id }) => id);
  assert.deepEqual(await ids('per_page=100&sort=id:desc'), [...byId].reverse());
  assert.deepEqual(await ids('per_page=100&sort=created_at&order=desc'), [...byId].reverse());
  const { patients: sorted } = await json('/patients?per_page=100&sort=city,post_code:desc');
  const key = ({ city }) => city ?? '\uffff';
  for (let n = 1; n < sorted.length; n++) {
    assert.ok(key(sorted[n - 1]) <= key(sorted[n]));
    const comparable = key(sorted[n - 1]) === key(sorted[n]) && sorted[n - 1].post_code && sorted[n].post_code;
    if (comparable) assert.ok(sorted[n - 1].post_code >= sorted[n].post_code);
  }
});

test('sort=id can be rejected, or ignored so that pages are not in the order of ids', async () => {
  const rejecting = await clinic({ sort_by_id: 'rejected' });
  const refused = await rejecting.get('/patients?sort=id:asc');
  assert.equal(refused.status, 400);
  assert.deepEqual(JSON.parse(refused.bytes), { message: 'Sort parameter must be a valid column name' });
  assert.deepEqual((await rejecting.summary()).violations, []);

  const ignoring = await clinic({ sort_by_id: 'ignored' });
  const { patients, total_entries } = await ignoring.json(`/patients?${ALL}&q[]=id:>0&sort=id:asc`);
  assert.equal(total_entries, 648);
  assert.ok(patients.some(({ id }, n) => n > 0 && BigInt(id) < BigInt(patients[n - 1].id)));
  assert.ok(patients.every(({ created_at }, n) => n === 0 || created_at >= patients[n - 1].created_at));
});

test('one patient is found by id, an archived one only if asked for', async () => {
  const { get, truth, summary } = await clinic({ patients: 5, archived: 2 });
  const patients = await truth();
  const archived = patients.find(({ archived_at }) => archived_at !== null);
  const active = patients.find(({ archived_at }) => archived_at === null);
  assert.deepEqual(JSON.parse((await get(`/patients/${active.id}`)).bytes), active);
  assert.equal((await get(`/patients/${archived.id}`)).status, 404);
  assert.deepEqual(JSON.parse((await get(`/patients/${archived.id}?q[]=archived_at:*`)).bytes), archived);
  assert.equal((await get('/patients/1')).status, 404);
  assert.deepEqual((await summary()).violations, []);
});

test('the connection test finds its user and account, unless the role is too low', async () => {
  const { key, json } = await clinic({ patients: 3 });
  assert.equal((await json('/user')).role, 'administrator');
  assert.equal((await json('/settings/public')).account.subdomain, key.replace(/-au2$/, ''));
  const scheduler = await clinic({ role: 'scheduler' });
  assert.equal((await scheduler.get('/user')).status, 403);
  assert.equal((await scheduler.get('/settings/public')).status, 403);
  assert.equal((await scheduler.get('/patients?per_page=1')).status, 200);
  assert.deepEqual((await scheduler.summary()).violations, []);
});

test('a request that breaks a documented rule is refused and counted', async () => {
  const account = await clinic({ patients: 3 });
  const { key } = account;
  const broken = [
    ['/patients?per_page=101', 'per_page'],
    ['/patients?per_page=0', 'per_page'],
    ['/patients?page=0', 'page'],
    ['/patients?limit=5', 'parameter'],
    ['/patients?page=1&page=2', 'parameter'],
    ['/patients?q=id:>1', 'parameter'],
    ['/user?page=1', 'parameter'],
    ['/patients?q[]=deleted_at:*', 'filter'],
    ['/patients?q[]=constructor:=1', 'filter'],
    ['/patients?q[]=id:5', 'operator'],
    ['/patients?q[]=created_at:=2024-01-01T00:00:00Z', 'operator'],
    ['/patients?q[]=accepted_privacy_policy:?', 'operator'],
    ['/patients?q[]=id:>five', 'filter value'],
    ['/patients?q[]=id:>9223372036854775808', 'filter value'],
    ['/patients?q[]=updated_at:>2024-01-01', 'filter value'],
    ['/patients?q[]=updated_at:>2024-02-30T00:00:00Z', 'filter value'],
    ['/patients?q[]=date_of_birth:>****-01-01', 'filter value'],
    ['/patients?q[]=archived_at:*x', 'filter value'],
    ['/patients?sort=patient', 'sort'],
    ['/patients?sort=id:up', 'sort'],
    ['/patients?order=down', 'order'],
    ['/patients', 'user-agent', 400, { headers: { 'User-Agent': 'curl/8.0' } }],
    ['/patients', 'user-agent', 400, { headers: { 'User-Agent': '(dev@example.com)' } }],
    ['/patients', 'accept', 406, { headers: { Accept: '*/*' } }],
    ['/patients', 'method', 405, { method: 'POST', body: '{}' }],
    ['/patients', 'password', 401, { headers: basic(key, 'secret') }],
    ['/practitioners', 'endpoint', 404],
  ];
  for (const [path, rule, status = 400, { headers, ...rest } = {}] of broken) {
    const answer = await send(`/v1${path}`, { headers: { ...MANNERS, ...basic(key), ...headers }, ...rest });
    assert.equal(answer.status, status, path);
    assert.equal(typeof JSON.parse(answer.bytes).message, 'string');
    const { violations } = await account.summary();
    assert.equal(violations[violations.length - 1].rule, rule, path);
    assert.ok(violations[violations.length - 1].request.endsWith(`/v1${path}`));
  }
  const { violations } = await account.summary();
  assert.equal(violations.length, broken.length);
  const { details } = (await control('GET', 'totals')).json;
  assert.equal(details.filter(({ account: of }) => of === key).length, broken.length);
});

test('an account that is not strict answers a bare curl', async () => {
  const { key, summary } = await clinic({ patients: 3, strict: false });
  assert.equal((await send('/v1/patients', { headers: basic(key) })).status, 200);
  assert.deepEqual((await summary()).violations, []);
});

test('a key works with and without its shard; an unknown one is 401 and no violation', async () => {
  const { key } = await clinic({ patients: 3 });
  const before = (await control('GET', 'totals')).json;
  const status = async (headers) => (await send('/v1/patients', { headers: { ...MANNERS, ...headers } })).status;
  assert.equal(await status(basic(key.replace(/-au2$/, ''))), 200);
  assert.equal(await status(basic('nobody-au1')), 401);
  const middle = (await control('GET', 'totals')).json;
  assert.equal(middle.unauthorized, before.unauthorized + 1);
  assert.deepEqual(middle.stray_violations, before.stray_violations);
  assert.equal(await status({}), 401);
  const { stray_violations } = (await control('GET', 'totals')).json;
  assert.equal(stray_violations[stray_violations.length - 1].rule, 'authorization');
});

test('gzip is served to who offers it, and never an outdated page', async () => {
  const { get, ids, tell } = await clinic({ patients: 30 });
  const page = async (search = '') => {
    const { headers, bytes } = await get(`/patients${search}`, { 'Accept-Encoding': 'gzip, br' });
    assert.equal(headers['content-encoding'], 'gzip');
    return JSON.parse(gunzipSync(bytes));
  };
  assert.deepEqual(await page(), await page());
  const [ten, firstTen] = [await page('?per_page=10&q[]=id:>1'), await page('?per_page=10')];
  assert.deepEqual(ten.patients, firstTen.patients);
  assert.notEqual(ten.links.self, firstTen.links.self);
  const [first] = await ids('');
  await tell('POST', 'mutations', { set: { id: first, fields: { city: 'Newtown' } } });
  assert.equal((await page()).patients[0].city, 'Newtown');
  assert.equal((await get('/patients', { 'Accept-Encoding': 'gzip;q=0' })).headers['content-encoding'], undefined);
  const plain = await clinic({ patients: 3, gzip: false });
  assert.equal((await plain.get('/patients', { 'Accept-Encoding': 'gzip' })).headers['content-encoding'], undefined);
});

test('more requests than the limit are answered 429 until the window ends', async () => {
  const { get, summary, tell } = await clinic({ patients: 3, rate_limit: 2, rate_window_ms: 3_600_000 });
  const statuses = [];
  for (const path of ['/user', '/patients', '/patients', '/patients']) statuses.push((await get(path)).status);
  assert.deepEqual(statuses, [200, 200, 429, 429]);
  const reset = Number((await get('/patients')).headers['x-ratelimit-reset']);
  assert.ok(Math.abs(reset - Date.now() / 1000 - 3600) < 60);
  assert.equal((await summary()).rate_limited, 3);
  assert.deepEqual((await summary()).violations, []);
  await tell('POST', 'reset');
  assert.equal((await get('/patients')).status, 200);
});

test('mutations change what is served, and when it was updated', async () => {
  const account = await clinic({ patients: 20, archived: 4, absent: 'missing' });
  const { tell, truth, ids } = account;
  const before = await truth();
  const [a, b, c, d] = before.filter(({ archived_at }) => archived_at === undefined).map(({ id }) => id);
  const out = before.find(({ archived_at }) => archived_at !== undefined).id;
  const answer = await tell('POST', 'mutations', {
    archive: [a],
    unarchive: [out],
    remove: [b],
    edit: [c],
    set: { id: d, fields: { date_of_birth: '2023-02-31', first_name: 'nul\u0000' } },
    put: [{ id: '12345678', first_name: 'Put', created_at: '2010-01-01T00:00:00Z', surprise: [1] }],
    add: 2,
  });
  assert.equal(answer.added.length, 2);
  const now = await truth();
  assert.equal(now.length, 24 - 1 + 1 + 2);
  assert.deepEqual(now.map(({ id }) => id).slice(-2), answer.added);
  assert.deepEqual(now[0], { id: '12345678', first_name: 'Put', created_at: '2010-01-01T00:00:00Z', surprise: [1] });
  const find = (id, list) => list.find((patient) => patient.id === id);
  assert.ok(find(a, now).archived_at);
  assert.ok(!('archived_at' in find(out, now)), 'active again, absent in the style of the account');
  assert.equal(find(b, now), undefined);
  assert.notEqual(find(c, now).notes, find(c, before).notes);
  assert.equal(find(d, now).date_of_birth, '2023-02-31');
  assert.equal(find(d, now).first_name, 'nul\u0000');
  for (const id of [a, out, c, d]) assert.ok(find(id, now).updated_at > find(id, before).updated_at);
  const active = now.filter(({ archived_at }) => archived_at === undefined).map(({ id }) => id);
  assert.deepEqual(await ids('per_page=100'), active);
  assert.deepEqual(await ids(`${ALL}&sort=id`), now.map(({ id }) => id));
  assert.deepEqual(await tell('GET', 'ids'), now.map(({ id }) => id));
  const { removed } = await tell('POST', 'mutations', { remove: 3 });
  assert.equal((await truth()).length, 26 - removed.length);
  assert.equal(removed.length, 3);
  const unknown = await control('POST', `accounts/${account.key}/mutations`, { archive: [b] });
  assert.deepEqual(unknown, { status: 400, json: { message: `there is no patient ${b}` } });
});

test('patients can be added to whatever account', async () => {
  for (const options of [{ patients: 0 }, { patients: 3, ids: 'old' }, { patients: 0, ids: 'mixed' }]) {
    const { ids, tell, truth } = await clinic(options);
    const { added } = await tell('POST', 'mutations', { add: 2 });
    assert.equal((await truth()).length, options.patients + 2);
    assert.deepEqual((await ids(`${ALL}&sort=id`)).slice(-2), added);
  }
});

test('a mutation can wait for a request, so that a list drifts between two pages', async () => {
  const { ids, tell } = await clinic({ patients: 10 });
  await tell('POST', 'mutations', { generate_on_request: [{ request: 2, add: 1 }, { request: 3, remove: 4 }] });
  const sizes = [];
  for (let n = 0; n < 4; n++) sizes.push((await ids('')).length);
  assert.deepEqual(sizes, [10, 11, 7, 7]);
});

test('a fault hits the request it was planned for, and no other', async () => {
  const { get, faults, summary } = await clinic({ patients: 3 });
  await faults({ request: 2, times: 2, kind: 'status', status: 500, body: '<html>', headers: { 'X-A': 'b' } });
  const answers = [];
  for (let n = 0; n < 4; n++) answers.push(await get('/patients'));
  assert.deepEqual(answers.map(({ status }) => status), [200, 500, 500, 200]);
  assert.equal(answers[1].headers['content-type'], 'text/html');
  assert.equal(answers[1].headers['x-a'], 'b');
  assert.equal(answers[1].bytes.toString(), '<html>');
  const { log, patients_requests } = await summary();
  assert.equal(patients_requests, 4);
  const { at_ms, ...second } = log[1];
  assert.deepEqual(second, { n: 2, method: 'GET', path: '/v1/patients', status: 500, patients_request: 2 });
  assert.ok(Math.abs(at_ms - Date.now()) < 60_000);
  await faults({ request: 1, path: '/user', kind: 'status', status: 403 });
  assert.equal((await get('/user')).status, 403);
});

test('each fault does what its name says', async () => {
  const { get, faults, truth } = await clinic({ patients: 5 });
  const good = await truth();
  const plan = (kind, settings) => faults({ request: 'every', kind, ...settings });
  const page = async (kind, settings) => {
    await plan(kind, settings);
    return JSON.parse((await get('/patients')).bytes);
  };
  await plan('rate_limited', { seconds: 5, retry_after: 0 });
  const limited = await get('/patients');
  assert.equal(limited.status, 429);
  assert.equal(limited.headers['retry-after'], '0');
  assert.ok(Number(limited.headers['x-ratelimit-reset']) > Date.now() / 1000);
  assert.deepEqual(await page('empty_object'), {});
  assert.deepEqual(Object.keys(await page('no_patients')), ['total_entries', 'links']);
  assert.equal((await page('wrong_total', { by: -2 })).total_entries, 3);
  assert.deepEqual((await page('disorder')).patients, [...good].reverse());
  assert.deepEqual((await page('duplicate')).patients.map(({ id }) => id), [0, 1, 2, 2, 3, 4].map((n) => good[n].id));
  assert.equal((await page('bad_id')).patients[2].id, 'abc');
  assert.ok((await page('lone_surrogate')).patients[2].first_name.endsWith('\ud800'));
  assert.ok((await page('nul')).patients[2].first_name.includes('\u0000'));
  assert.deepEqual((await page('next_elsewhere')).links.next, undefined);
  await plan('next_elsewhere', { host: 'elsewhere.example:81' });
  const { links } = JSON.parse((await get('/patients?per_page=2')).bytes);
  assert.equal(links.next, 'http://elsewhere.example:81/v1/patients?page=2&per_page=2');
  assert.deepEqual((await page('delay', { ms: 1 })).patients, good);
  await plan('truncated_json');
  const truncated = await get('/patients');
  assert.equal(truncated.status, 200);
  assert.throws(() => JSON.parse(truncated.bytes), SyntaxError);
  await plan('html');
  assert.equal((await get('/patients')).headers['content-type'], 'text/html');
  await plan('redirect');
  assert.equal((await get('/patients')).headers.location, 'http://127.0.0.1:1/');
  await plan('latin1');
  const latin1 = (await get('/patients')).bytes;
  assert.throws(() => new TextDecoder('utf-8', { fatal: true }).decode(latin1), TypeError);
  assert.equal(JSON.parse(latin1.toString('latin1')).patients.length, 5);
  await plan('big', { megabytes: 2 });
  const big = (await get('/patients', { 'Accept-Encoding': 'gzip' })).bytes;
  assert.ok(big.length > 2 << 20);
  assert.deepEqual(JSON.parse(big).patients, good);
  await plan('gzip_bomb', { megabytes: 3 });
  const bomb = (await get('/patients', { 'Accept-Encoding': 'gzip' })).bytes;
  assert.ok(bomb.length < 100_000);
  assert.equal(gunzipSync(bomb).length, 3 << 20);
  await plan('gzip_members');
  assert.deepEqual(JSON.parse(gunzipSync((await get('/patients')).bytes)).patients, good);
  for (const kind of ['gzip_cut', 'gzip_garbage', 'not_gzip']) {
    await plan(kind);
    const { bytes, headers } = await get('/patients');
    assert.equal(headers['content-encoding'], 'gzip', kind);
    assert.throws(() => gunzipSync(bytes), kind);
  }
  await plan('unknown_encoding');
  assert.equal((await get('/patients')).headers['content-encoding'], 'br');
  for (const kind of ['reset_before_headers', 'reset_mid_body']) {
    await plan(kind);
    await assert.rejects(get('/patients'), { code: 'ECONNRESET' }, kind);
  }
});

test('a page can be repeated instead of the next', async () => {
  const { ids, faults } = await clinic({ patients: 10 });
  await faults({ request: 2, kind: 'repeat_page' });
  const first = await ids('per_page=5');
  assert.deepEqual(await ids('per_page=5&page=2'), first);
  assert.notDeepEqual(await ids('per_page=5&page=2'), first);
});

test('a stalled answer stays unfinished until its client goes', { timeout: 300_000 }, async () => {
  const { key, faults, summary } = await clinic({ patients: 5 });
  await faults({ request: 1, kind: 'stall' });
  const request = httpRequest(`${simulator.url}/v1/patients`, { headers: { ...MANNERS, ...basic(key) } });
  request.end();
  const [response] = await once(request, 'response');
  const [chunk] = await once(response, 'data');
  assert.ok(chunk.length < Number(response.headers['content-length']));
  assert.equal((await summary()).in_flight, 1);
  response.destroy();
  const leftBehind = async () => (await summary()).in_flight;
  while ((await leftBehind()) > 0);
});

test('a gate holds a request until it is opened, and shows what changed meanwhile', async () => {
  const { ids, tell, summary } = await clinic({ patients: 5 });
  await tell('PUT', 'gates', [2, 3]);
  await ids('');
  const held = ids('');
  assert.deepEqual(await tell('GET', 'gates/2/reached'), { reached: true });
  assert.equal((await summary()).in_flight, 1);
  await tell('POST', 'mutations', { add: 1 });
  await tell('POST', 'gates/3/open');
  assert.equal((await ids('')).length, 6, 'a gate opened ahead holds nobody');
  await tell('POST', 'gates/2/open');
  assert.equal((await held).length, 6);
  const missing = await tell('GET', 'gates/9/reached');
  assert.deepEqual(missing, { message: 'no gate is set for request 9' });
});

test('requests of many accounts are in flight together', async () => {
  const template = { patients: 3 };
  const { keys } = (await control('POST', 'accounts', { count: 40, prefix: 'many', suffix: '-uk1', template })).json;
  assert.equal(keys[39], 'many40-uk1');
  const reached = [];
  const held = [];
  for (const key of keys) {
    await control('PUT', `accounts/${key}/gates`, [1]);
    held.push(send('/v1/patients', { headers: { ...MANNERS, ...basic(key) } }));
    reached.push(control('GET', `accounts/${key}/gates/1/reached`));
  }
  await Promise.all(reached);
  const { in_flight, max_in_flight } = (await control('GET', 'totals')).json;
  assert.equal(in_flight, 40);
  assert.ok(max_in_flight >= 40);
  for (const key of keys) await control('POST', `accounts/${key}/gates/all/open`);
  for (const { status } of await Promise.all(held)) assert.equal(status, 200);
});

test('a reset forgets requests, violations, faults and gates', async () => {
  const { get, faults, tell, summary } = await clinic({ patients: 3 });
  await faults({ request: 'every', kind: 'empty_object' });
  await tell('PUT', 'gates', [2]);
  await get('/patients?per_page=500');
  const held = get('/patients');
  await tell('GET', 'gates/2/reached');
  await tell('POST', 'reset');
  assert.equal((await held).status, 200);
  assert.equal(JSON.parse((await get('/patients')).bytes).total_entries, 3);
  const { requests, violations, log } = await summary();
  assert.deepEqual([requests, violations.length, log.length], [1, 0, 1]);
});

test('the control path refuses what it does not know', async () => {
  const { key } = await clinic({ patients: 1 });
  const status = async (method, path, body) => (await control(method, path, body)).status;
  assert.equal(await status('PUT', `accounts/${key}`, { patient: 5 }), 400);
  assert.equal(await status('PUT', `accounts/${key}`, { ids: 'uuid' }), 400);
  assert.equal(await status('PUT', `accounts/${key}`, { archived: 1, merged: 2 }), 400);
  assert.equal(await status('PUT', `accounts/${key}/faults`, [{ request: 1, kind: 'explode' }]), 400);
  assert.equal(await status('PUT', `accounts/${key}/faults`, [{ request: 0, kind: 'html' }]), 400);
  assert.equal(await status('PUT', `accounts/${key}/faults`, { request: 1, kind: 'html' }), 400);
  assert.equal(await status('PUT', `accounts/${key}/gates`, ['3']), 400);
  assert.equal(await status('POST', `accounts/${key}/mutations`, { delete: 5 }), 400);
  assert.equal(await status('GET', 'accounts/nobody-au1'), 404);
  assert.equal(await status('GET', 'nothing'), 404);
});

test('a warm account answers with its patients serialised already', async () => {
  const { json, truth } = await clinic({ patients: 500, warm: true, absent: 'mixed' });
  assert.deepEqual((await json('/patients?per_page=100&page=5')).patients, (await truth()).slice(400));
});

test('an account of a million patients is made and paged through in little time', async () => {
  const { json, summary } = await clinic({ patients: 990_000, archived: 10_000 });
  assert.equal((await summary()).patients, 1_000_000);
  const { patients, total_entries } = await json('/patients?per_page=100&page=9000');
  assert.equal(total_entries, 990_000);
  const rest = await json(`/patients?${ALL}&q[]=id:>${patients[99].id}&sort=id:asc`);
  assert.ok(rest.total_entries > 90_000 && rest.total_entries < 91_000);
  assert.equal(rest.patients.length, 100);
});
