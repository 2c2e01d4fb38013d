// The demo's three requests work as pasted, and so does the admin panel's address.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { card, launchBrowser, newContext, shows } from '../panel/browser.mjs';
import { psql } from './clinics.mjs';

const DEMO = fileURLToPath(new URL('../demo.mjs', import.meta.url));
const LARGE_KEY = 'MS0yLWxhcmdlLWNsaW5pYw-au1';

/** Starts the demo, and answers it with what it has printed once it stays. */
async function startDemo() {
  const demo = spawn('node', [DEMO, '--stay'], { stdio: ['ignore', 'pipe', 'inherit'] });
  let printed = '';
  for await (const chunk of demo.stdout.setEncoding('utf8').iterator({ destroyOnReturn: false })) {
    printed += chunk;
    if (printed.includes('until Ctrl-C')) return { demo, printed };
  }
  throw new Error(`the demo ended:\n${printed}`);
}

/** Has the demo's Cliniko hold a request of a clinic. */
async function holdRequest(key, request) {
  const url = (await psql('my_clinic', 'SHOW clinisync.base_url')).replace(/v1$/, `control/accounts/${key}/gates`);
  const { ok } = await fetch(url, { method: 'PUT', body: JSON.stringify([request]) });
  assert.ok(ok, url);
}

/** Does in the panel what one would try first. */
async function usePanel(address) {
  const browser = await launchBrowser();
  try {
    const page = await (await newContext(browser)).newPage();
    await page.goto(address);
    const chooser = page.getByLabel('Clinic');
    await chooser.waitFor();
    assert.deepEqual(await chooser.locator('option').allInnerTexts(), ['Clinic with a Wrong Key', 'Large Clinic', 'My Clinic']);
    await chooser.selectOption('Clinic with a Wrong Key');
    await page.getByRole('button', { name: 'Test the connection' }).click();
    await shows(card(page, 'Connection to Cliniko'), 'Cliniko does not accept the API key');
    await chooser.selectOption('My Clinic');
    await shows(card(page, 'Patients'), /Synced648/);
    // so that its sync is still under way when it is cancelled
    await holdRequest(LARGE_KEY, 20);
    await chooser.selectOption('Large Clinic');
    await page.getByRole('button', { name: 'Sync all patients' }).click();
    await shows(card(page, 'Sync'), / 5,200/);
    await page.getByRole('button', { name: 'Cancel' }).click();
    await shows(card(page, 'Sync'), 'Cancelled');
  } finally {
    await browser.close();
  }
}

test('make demo prints three curl commands that work as pasted', async () => {
  const { demo, printed } = await startDemo();
  try {
    assert.match(printed, /Stored +648 of 648 patients/);
    const commands = printed.match(/^ *curl .*$/gm);
    assert.equal(commands.length, 3);
    const answers = await Promise.all(commands.map(async (command) =>
      JSON.parse((await promisify(execFile)('sh', ['-c', command])).stdout)));
    assert.equal(answers[0].patient_counts.synced_to_database, 648);
    assert.equal(answers[1].operation_type, 'incremental_patients');
    assert.equal(answers[2].patients.length, 1);

    await usePanel(/^ *(http\S+\/#token=\S+)$/m.exec(printed)[1]);
  } finally {
    demo.kill('SIGTERM');
    await once(demo, 'close');
    await psql('postgres', 'DROP DATABASE my_clinic WITH (FORCE)');
    await psql('postgres', 'DROP ROLE demo_authenticator, demo_manager, demo_admin');
  }
});
