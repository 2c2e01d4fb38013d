// The files of the admin panel: what is served, and how, and that nothing else is.

import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { call, callUnchecked, newAddress } from './client.mjs';
import { openClinics } from './clinics.mjs';

const PAGE = '<!doctype html><title>Panel</title><script type="module" src="/assets/index-C3d_4f.js"></script>\n';
const SCRIPT = 'console.log("panel");\n'.repeat(100);

// What each file of /assets has in it, and is.
const ASSETS = {
  'index-C3d_4f.js': [SCRIPT, 'text/javascript'],
  'index-a1-B2c3.css': ['body { margin: 0 }\n', 'text/css'],
  'logo-D4e5f6.svg': ['<svg xmlns="http://www.w3.org/2000/svg"/>\n', 'image/svg+xml'],
  'text-g7H8i9.woff2': [SCRIPT, 'font/woff2'],
  'icon-J1k2l3.ico': ['icon', 'image/x-icon'],
  'words-m4N5o6.json': ['{"yes": "no"}\n', 'application/json'],
};

const HEADERS = {
  'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    + "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
};

// Files that are there, but have no path; and paths that lead out of the panel.
const NOWHERE = [
  '/index.html', '/private.txt', '/assets', '/assets/', '/assets/more', '/assets/more/', '/assets/index-C3d_4f.js/',
  '/ASSETS/index-C3d_4f.js', '/assets/private.txt', '/assets/none.js', '/panel/index.html', '/panel/assets/index-C3d_4f.js',
  '/nginx.conf', '/openapi.yaml', '/access.log',
  '/assets/../nginx.conf', '/assets/..%2fnginx.conf', '/assets/%2e%2e/nginx.conf', '/assets/%2E%2E%2Fnginx.conf',
  '/assets/.%2e/private.txt', '/assets/..//private.txt', '/assets/more/../../private.txt',
  '/assets/%252e%252e/private.txt', '/assets/..%5cprivate.txt', '/assets/..\\private.txt', '/assets/..;/private.txt',
];
const IMPOSSIBLE = [
  '/assets/../../nginx.conf', '/../nginx.conf', '/assets/%2e%2e/%2e%2e/nginx.conf', '/assets/..%2f..%2fnginx.conf',
  '/assets/%00', '/assets/index-C3d_4f.js%00.svg', '/assets/%', '/assets/%zz',
];

let db;
let directory;
let api;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'clinisync-panel-'));
  await mkdir(join(directory, 'assets', 'more'), { recursive: true });
  await writeFile(join(directory, 'index.html'), PAGE);
  await writeFile(join(directory, 'private.txt'), 'private');
  for (const [name, [text]] of Object.entries(ASSETS)) await writeFile(join(directory, 'assets', name), text);
  db = await openClinics('panel', { clinics: { clinic: { patients: 1 } } });
  api = await db.startAnotherApi({ panel: directory });
});
after(async () => {
  await api?.stop();
  await db?.close();
  await rm(directory, { recursive: true });
});

const ask = (method, path, options) => callUnchecked(api.url, method, path, options);

function assertNotFound({ status, headers, json }, what) {
  assert.equal(status, 404, what);
  assert.equal(json.details, 'ENDPOINT_NOT_FOUND', what);
  assert.equal(headers['cache-control'], 'no-store', what);
}

test('the page is served at /, and is asked for again each time', async () => {
  for (const path of ['/', '/?from=an-application']) {
    const { status, headers, text } = await ask('GET', path);
    assert.equal(status, 200);
    assert.equal(text, PAGE);
    assert.equal(headers['content-type'], 'text/html');
    assert.equal(headers['cache-control'], 'no-cache');
  }
  const { headers: { etag } } = await ask('GET', '/');
  const again = await ask('GET', '/', { headers: { 'if-none-match': etag } });
  assert.equal(again.status, 304);
  assert.equal(again.headers['cache-control'], 'no-cache');
});

test('assets are served as what they are, and kept for good', async () => {
  for (const [name, [content, type]] of Object.entries(ASSETS)) {
    const { status, headers, text } = await ask('GET', `/assets/${name}`);
    assert.equal(status, 200, name);
    assert.equal(text, content, name);
    assert.equal(headers['content-type'], type, name);
    assert.equal(headers['cache-control'], 'public, max-age=31536000, immutable', name);
  }
});

test('the page may load from this server, call it, and do nothing else', async () => {
  for (const path of ['/', ...Object.keys(ASSETS).map((name) => `/assets/${name}`)]) {
    const { headers } = await ask('GET', path, { headers: { origin: 'https://elsewhere.example' } });
    for (const [name, value] of Object.entries(HEADERS)) assert.equal(headers[name], value, `${path}: ${name}`);
    const features = headers['permissions-policy'].split(', ');
    for (const name of ['camera', 'geolocation', 'microphone', 'payment', 'usb']) assert.ok(features.includes(`${name}=()`), name);
    for (const feature of features) assert.match(feature, /^[a-z-]+=\(\)$/);
    assert.ok(!Object.keys(headers).some((name) => name.startsWith('access-control-')), path);
  }
});

test('HEAD has the same headers and nothing else, and there is no other method', async () => {
  for (const path of ['/', '/assets/index-C3d_4f.js']) {
    const get = await ask('GET', path);
    const head = await ask('HEAD', path);
    assert.equal(head.status, 200);
    assert.equal(head.text, '');
    assert.deepEqual({ ...head.headers, date: '' }, { ...get.headers, date: '' });
    for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']) {
      const refused = await ask(method, path);
      assert.equal(refused.status, 405, `${method} ${path}`);
      assert.equal(refused.headers.allow, 'GET, HEAD');
      assert.equal(refused.json.details, 'METHOD_NOT_ALLOWED');
    }
  }
});

test('nothing else has a path, and no path leads out', async () => {
  for (const path of NOWHERE) assertNotFound(await ask('GET', path), path);
  for (const path of IMPOSSIBLE) {
    const { status, json } = await ask('GET', path);
    assert.equal(status, 400, path);
    assert.equal(json.code, 'PT400', path);
  }
});

test('what is text is compressed, and of the API nothing', async () => {
  const compressed = (path, options = {}) =>
    fetch(`${api.url}${path}`, { ...options, headers: { 'accept-encoding': 'gzip', ...options.headers } });
  const script = await compressed('/assets/index-C3d_4f.js');
  assert.equal(script.headers.get('content-encoding'), 'gzip');
  assert.equal(script.headers.get('vary'), 'Accept-Encoding');
  assert.equal(await script.text(), SCRIPT);

  const headers = { authorization: `Bearer ${await db.token('viewer', 'clinic')}` };
  for (const [path, status] of [['/assets/text-g7H8i9.woff2', 200], ['/assets/none.js', 404], ['/api/v1/openapi.yaml', 200],
    ['/api/v1/cliniko/status/clinic', 200], ['/api/v1/cliniko/organizations', 200], ['/api/v1/cliniko/status/theirs', 404]]) {
    const answer = await compressed(path, { headers });
    await answer.text();
    assert.equal(answer.status, status, path);
    assert.equal(answer.headers.get('content-encoding'), null, path);
  }
});

test('files are not counted as requests to the API', async () => {
  const from = newAddress();
  for (let n = 0; n < 130; n++) assert.equal((await ask('GET', n % 2 ? '/' : '/assets/index-a1-B2c3.css', { from })).status, 200);
  const token = await db.token('viewer', 'clinic');
  assert.equal((await call(api.url, 'GET', '/api/v1/cliniko/status/clinic', { token, from })).status, 200);
});

test('where there is no panel, its paths are as any other', async () => {
  for (const path of ['/', '/index.html', '/assets/', '/assets/index-C3d_4f.js'])
    for (const method of ['GET', 'POST', 'PUT', 'DELETE', 'OPTIONS']) assertNotFound(await call(db.api.url, method, path), `${method} ${path}`);
});
