// Numbers, times and spans as the viewer's locale and zone have them.

const number = new Intl.NumberFormat();
const decimal = new Intl.NumberFormat(undefined, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'long' });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium' });
const date = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeZone: 'UTC' });
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: 'auto' });

const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

export const formatNumber = (value: number): string => number.format(value);
export const formatPercent = (value: number): string => `${decimal.format(value)} %`;
export const formatMoment = (iso: string): string => moment.format(new Date(iso));
export const formatExact = (iso: string): string => exact.format(new Date(iso));
export const formatClock = (ms: number): string => clock.format(new Date(ms));
/** A day without a time of day, which is the same everywhere. */
export const formatDate = (day: string): string => date.format(new Date(`${day}T00:00:00Z`));

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${formatNumber(count)} ${count === 1 ? one : many}`;
}

/** How long something took: "90 ms", "1.9 s", "42 s", "3 min 20 s", "1 h 4 min". */
export function formatSpan(ms: number): string {
  if (ms < SECOND_MS) return `${formatNumber(Math.round(ms))} ms`;
  if (ms < 10 * SECOND_MS) return `${decimal.format(ms / SECOND_MS)} s`;
  const seconds = Math.round(ms / SECOND_MS);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** What is left until a moment, as a countdown: "0:42", "12:05". */
export function formatCountdown(ms: number): string {
  const seconds = Math.max(0, Math.ceil(ms / SECOND_MS));
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}

/** How long ago a moment was: "3 minutes ago", "yesterday". */
export function formatAge(iso: string, now: number): string {
  const age = now - Date.parse(iso);
  if (age < MINUTE_MS) return relative.format(-Math.max(0, Math.round(age / SECOND_MS)), 'second');
  if (age < HOUR_MS) return relative.format(-Math.floor(age / MINUTE_MS), 'minute');
  if (age < DAY_MS) return relative.format(-Math.floor(age / HOUR_MS), 'hour');
  return relative.format(-Math.floor(age / DAY_MS), 'day');
}
