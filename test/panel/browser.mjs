// The panel in Chromium, in front of the real stack, as a test sees it:
//
//   const panel = await openPanel('runs', { clinics: { mine: { patients: 648 } } });
//   const page = await panel.signIn('manager', 'mine');
//   await page.getByRole('button', { name: 'Sync all patients' }).click();
//   …
//   await panel.close();
//
// Each file has a database and servers of its own. Whatever the pages ask for is noted, and close() fails
// where it was somebody else's, or where a page complained.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { openClinics } from '../http/clinics.mjs';

const require = createRequire(new URL('../../panel/package.json', import.meta.url));
const { chromium } = require('playwright-core');

const DIST = fileURLToPath(new URL('../../panel/dist', import.meta.url));
const CHROMIUM = '/usr/bin/chromium';
// Where that passes, something is wrong, and not slow.
const PATIENCE_MS = 600_000;
// What Chromium says of an answer that is no 200, and of a request without network: both are tested for.
const EXPECTED = /the server responded with a status of|net::ERR_INTERNET_DISCONNECTED|net::ERR_FAILED/;

class Panel {
  #complaints = [];
  #hosts = new Set();

  constructor(db, browser) {
    this.db = db;
    this.browser = browser;
    this.url = `${db.api.url}/`;
  }

  /** A context like a person's browser: options are playwright's, such as colorScheme and viewport. */
  async context(options = {}) {
    const context = await newContext(this.browser, { locale: 'en-AU', timezoneId: 'Australia/Sydney', ...options });
    context.on('request', (request) => this.#hosts.add(new URL(request.url()).host));
    context.on('console', (message) => {
      if (['error', 'warning'].includes(message.type()) && !EXPECTED.test(message.text()))
        this.#complaints.push(message.text());
    });
    context.on('weberror', (error) => this.#complaints.push(error.error().message));
    return context;
  }

  /** The panel with a token of a level for a clinic; without one, an admin's. options: { context, token }. */
  async signIn(level, org, options = {}) {
    const context = options.context ?? (await this.context(options));
    const page = await context.newPage();
    const token = options.token ?? (await this.db.token(level, org));
    await page.goto(`${this.url}#token=${token}`);
    return page;
  }

  async close() {
    await this.browser.close();
    await this.db.close();
    assert.deepEqual(this.#complaints, [], 'no page complained');
    assert.deepEqual([...this.#hosts], [new URL(this.url).host], 'nothing was asked of another host');
  }
}

export function launchBrowser() {
  return chromium.launch({
    executablePath: CHROMIUM,
    timeout: PATIENCE_MS,
    // the pages are ours alone, and a sandbox needs privileges that a container may lack
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--force-color-profile=srgb'],
  });
}

/** A context whose pages are given time; options are playwright's. */
export async function newContext(browser, options = {}) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(PATIENCE_MS);
  return context;
}

/** Starts all that. options: those of openClinics(). */
export async function openPanel(name, options) {
  const db = await openClinics(`panel_${name}`, { unlimited: true, panel: DIST, ...options });
  return new Panel(db, await launchBrowser());
}

/** Follows a link to the panel, with a token in it, in a page that has the panel already. */
export async function follow(page, token) {
  await page.evaluate((fragment) => (location.hash = fragment), `#token=${token}`);
}

/** Waits until a locator shows a text, or a text like this. */
export async function shows(locator, text) {
  await locator.filter({ hasText: text }).first().waitFor();
}

export const progressbar = (page) => page.getByRole('progressbar', { name: 'Progress of the sync' });
export const button = (page, name) => page.getByRole('button', { name, exact: true });
export const card = (page, name) => page.getByRole('region', { name, exact: true });
