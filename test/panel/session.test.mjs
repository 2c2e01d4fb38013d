// Whose session it is: a link with a token signs in whoever is not signed in, and asks whoever is.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { button, follow, openPanel, shows } from './browser.mjs';

let panel;
before(async () => {
  panel = await openPanel('session', { clinics: { mine: { patients: 5 }, theirs: { patients: 5 } } });
});
after(() => panel.close());

const clinic = (page, name) => shows(page.locator('header'), name);
const stored = (page) => page.evaluate(() => sessionStorage.getItem('clinisync.token'));

/** A page of a manager of "mine", and the tokens that it has sent since. */
async function signedIn() {
  const token = await panel.db.token('manager', 'mine');
  const page = await panel.signIn('manager', 'mine', { token });
  await clinic(page, 'mine');
  const sent = new Set();
  page.on('request', (request) => sent.add(request.headers().authorization));
  return { page, token, sent };
}

test('a link with a token does not replace a session before its owner has agreed', async () => {
  const { page, token, sent } = await signedIn();
  const other = await panel.db.token('manager', 'theirs', { sub: 'Zoë <b>Other</b>' });
  await follow(page, other);
  const dialog = page.getByRole('dialog', { name: 'Sign in as Zoë <b>Other</b> instead?' });
  await dialog.waitFor();
  assert.doesNotMatch(page.url(), /token/, 'nor is it left in the address');
  assert.equal(await stored(page), token);
  // the session goes on behind the question
  const look = page.waitForResponse(/sync-logs/);
  await page.evaluate(() => window.dispatchEvent(new Event('online')));
  await look;
  assert.deepEqual([...sent].filter(Boolean), [`Bearer ${token}`]);

  await dialog.getByRole('button', { name: 'Sign in' }).click();
  await clinic(page, 'theirs');
  assert.equal(await stored(page), other);
  assert.equal(await page.getByRole('dialog').count(), 0);
});

test('the session is kept by its button, and by Escape, which give the focus back', async () => {
  const { page, token, sent } = await signedIn();
  const keep = [
    (dialog) => dialog.getByRole('button', { name: 'Keep this session' }).click(),
    () => page.keyboard.press('Escape'),
  ];
  for (const how of keep) {
    await button(page, 'Sign out').focus();
    await follow(page, await panel.db.token('manager', 'theirs'));
    const dialog = page.getByRole('dialog', { name: 'Sign in as theirs instead?' });
    await dialog.waitFor();
    assert.equal(await dialog.getByRole('button', { name: 'Keep this session' }).evaluate((at) => at === document.activeElement), true);
    await how(dialog);
    await dialog.waitFor({ state: 'detached' });
    assert.equal(await button(page, 'Sign out').evaluate((at) => at === document.activeElement), true);
  }
  await page.reload();
  await clinic(page, 'mine');
  assert.equal(await stored(page), token);
  assert.deepEqual([...sent].filter(Boolean), [`Bearer ${token}`]);
});

test('a page that is opened with a link over a session asks as well, also where the token says nothing', async () => {
  const { page, token } = await signedIn();
  await page.goto(`${panel.url}?clinic=mine#token=no.thing.here`);
  await page.getByRole('dialog', { name: 'Sign in with another token instead?' }).waitFor();
  await clinic(page, 'mine');
  assert.equal(await stored(page), token);
});

test('the same token again is no question, and without a session there is none', async () => {
  const { page, token } = await signedIn();
  await follow(page, token);
  await page.waitForURL((url) => url.hash === '');
  assert.equal(await page.getByRole('dialog').count(), 0);
  await button(page, 'Sign out').click();
  await page.getByRole('heading', { name: 'Your session has ended' }).waitFor();
  await follow(page, await panel.db.token('manager', 'theirs'));
  await clinic(page, 'theirs');
});
