// What the TLS in front of the simulator promises to the tests that lean on it.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { get } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { startSimulator } from './cliniko.mjs';
import { startTls } from './tls.mjs';

let simulator;
let cert;
let key;

before(async () => {
  const directory = mkdtempSync(join(tmpdir(), 'tls-'));
  const [certFile, keyFile] = [join(directory, 'cert.pem'), join(directory, 'key.pem')];
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
  execFileSync(
    'openssl',
    ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', ...subject, '-keyout', keyFile, '-out', certFile],
    { stdio: 'ignore' },
  );
  cert = readFileSync(certFile);
  key = readFileSync(keyFile);
  rmSync(directory, { recursive: true });
  simulator = await startSimulator();
});

after(() => simulator.close());

/** Asks for the simulator's totals through TLS: {status, version}, or rejects. */
function ask(url, options) {
  return new Promise((resolve, reject) => {
    get(`${url}/control/totals`, { ca: cert, agent: false, ...options }, (response) => {
      response.resume();
      response.on('end', () => resolve(answer));
      const answer = { status: response.statusCode, version: response.socket.getProtocol() };
    }).on('error', reject);
  });
}

test('what is asked through TLS reaches the simulator, in no later version than allowed', async () => {
  for (const maxVersion of ['TLSv1.1', 'TLSv1.2', 'TLSv1.3']) {
    const tls = await startTls({ target: Number(new URL(simulator.url).port), cert, key, maxVersion });
    const lax = { minVersion: 'TLSv1', ciphers: 'DEFAULT@SECLEVEL=0' };
    assert.deepEqual(await ask(tls.url, lax), { status: 200, version: maxVersion });
    if (maxVersion === 'TLSv1.1') await assert.rejects(ask(tls.url), /alert protocol version|unsupported protocol/i);
    await assert.rejects(ask(tls.url, { ...lax, ca: [] }), { code: 'DEPTH_ZERO_SELF_SIGNED_CERT' });
    await tls.close();
  }
});
