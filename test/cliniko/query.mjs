// What a GET /v1/patients asks for: parses the query string by Cliniko's documented rules and finds
// the patients that it selects. It must never be more lenient than the documentation, except where
// a rule has a switch (sort=id), and never compares ids as floating-point numbers.

import { Refusal } from './errors.mjs';

const PER_PAGE_DEFAULT = 50;
const PER_PAGE_MAX = 100;
const INT64_MAX = 2n ** 63n - 1n;
const REMEMBERED_SELECTIONS = 8;

const OPERATORS = {
  'date-time': ['>=', '>', '<=', '<', '?', '!?', '*'],
  date: ['=', '>=', '>', '<=', '<', '?', '!?'],
  int64: ['=', '!=', '>=', '>', '<=', '<', '?', '!?'],
  string: ['=', '!=', '~~', '~', '?', '!?'],
  boolean: ['=', '!='],
};
const UNARY = new Set(['?', '!?', '*']);

const FILTERS = {
  accepted_privacy_policy: 'boolean',
  archived_at: 'date-time',
  created_at: 'date-time',
  date_of_birth: 'date',
  email: 'string',
  first_name: 'string',
  id: 'int64',
  last_name: 'string',
  old_reference_id: 'string',
  preferred_first_name: 'string',
  updated_at: 'date-time',
};

const SORT_COLUMNS = new Set(
  (
    'accepted_email_marketing accepted_privacy_policy accepted_sms_marketing address_1 address_2 ' +
    'address_3 appointment_notes archived_at city country country_code created_at date_of_birth ' +
    'deleted_at dva_card_number email emergency_contact first_name gender gender_identity id ' +
    'invoice_default_to invoice_email invoice_extra_information label last_name medicare ' +
    'medicare_reference_number merged_at notes occupation old_reference_id post_code ' +
    'preferred_first_name receives_cancellation_emails receives_confirmation_emails referral_source ' +
    'reminder_type sex state time_zone title updated_at'
  ).split(' '),
);

const SORT_MESSAGE = 'Sort parameter must be a valid column name';

/** Undoes percent-encoding, leaving a stray % as it is, as Cliniko's own examples do. */
function decode(text) {
  const unescape = (run) => Buffer.from(run.replaceAll('%', ''), 'hex').toString();
  return text.replaceAll('+', ' ').replace(/(?:%[0-9a-f]{2})+/gi, unescape);
}

/** Encodes a query value the way that Ruby on Rails does in Cliniko's links. */
function encode(text) {
  return encodeURIComponent(text)
    .replace(/[!'()]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`)
    .replaceAll('%20', '+');
}

/** The name and value pairs of a query string, decoded. */
function pairs(search) {
  return search
    .split('&')
    .filter((part) => part !== '')
    .map((part) => {
      const equals = part.indexOf('=');
      return equals < 0 ? [decode(part), ''] : [decode(part.slice(0, equals)), decode(part.slice(equals + 1))];
    });
}

function isCalendarTime(text) {
  const ms = Date.parse(text);
  return !Number.isNaN(ms) && new Date(ms).toISOString().startsWith(text.slice(0, 10));
}

/** Checks a filter's value against the type of its column and gives it its comparable form. */
function filterValue(field, type, operator, text) {
  const refuse = (what) => new Refusal(400, `Filter value for ${field} must be ${what}`, 'filter value');
  if (UNARY.has(operator)) {
    if (text !== '') throw refuse('empty');
    return null;
  }
  switch (type) {
    case 'int64': {
      const numbers = operator === '=' ? text.split(',') : [text];
      if (!numbers.every((n) => /^-?\d{1,19}$/.test(n) && BigInt(n) <= INT64_MAX)) throw refuse('a number');
      return numbers.map(BigInt);
    }
    case 'date-time':
      if (!/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/.test(text) || !isCalendarTime(text))
        throw refuse('a UTC date and time');
      return text;
    case 'date': {
      const wild = operator === '=' && /^[\d*]{4}-[\d*]{2}-[\d*]{2}$/.test(text) && text.includes('*');
      if (!wild && !(/^\d{4}-\d\d-\d\d$/.test(text) && isCalendarTime(text))) throw refuse('a date');
      return text;
    }
    case 'boolean':
      if (text !== 'true' && text !== 'false') throw refuse('true or false');
      return text === 'true';
    default:
      return text;
  }
}

/** Parses one q[] value: FIELD:OPVALUE. */
function parseFilter(text) {
  const [, field, rest] = /^([^:]*):?(.*)$/s.exec(text);
  const type = Object.hasOwn(FILTERS, field) ? FILTERS[field] : undefined;
  if (type === undefined) throw new Refusal(400, `${field} is not filterable`, 'filter');
  // Longest first: ">=" must not be read as ">" and a value that begins with "=".
  const operator = OPERATORS[type].filter((op) => rest.startsWith(op)).sort((a, b) => b.length - a.length)[0];
  if (operator === undefined) throw new Refusal(400, `Filter for ${field} has no valid operator`, 'operator');
  return { field, type, operator, value: filterValue(field, type, operator, rest.slice(operator.length)) };
}

function parseSort(text, defaultDirection) {
  return text.split(',').map((part) => {
    const [column, direction = defaultDirection, ...rest] = part.split(':');
    if (!SORT_COLUMNS.has(column) || !['asc', 'desc'].includes(direction) || rest.length > 0)
      throw new Refusal(400, SORT_MESSAGE, 'sort');
    return { column, descending: direction === 'desc' };
  });
}

function parseNumber(name, text, max) {
  const number = /^\d{1,9}$/.test(text) ? Number(text) : 0;
  if (number < 1 || number > max) throw new Refusal(400, `${name} must be between 1 and ${max}`, name);
  return number;
}

/** Reads the parameters that may be given at most once, and the q[] filters, of those allowed. */
function parseParameters(search, allowed) {
  const single = {};
  const filters = [];
  for (const [name, value] of pairs(search)) {
    if (!allowed.includes(name)) throw new Refusal(400, `Unknown parameter ${name}`, 'parameter');
    if (name === 'q[]') filters.push(value);
    else if (name in single) throw new Refusal(400, `Parameter ${name} is repeated`, 'parameter');
    else single[name] = value;
  }
  return { single, filters };
}

/**
 * Parses the query string of GET /v1/patients; throws a Refusal for what Cliniko does not document.
 * `sortById` is what this account makes of sort=id: "honoured", "rejected" or "ignored".
 */
export function parseListQuery(search, sortById) {
  const { single, filters } = parseParameters(search, ['page', 'per_page', 'sort', 'order', 'q[]']);
  const order = single.order ?? 'asc';
  if (order !== 'asc' && order !== 'desc') throw new Refusal(400, 'Order must be asc or desc', 'order');
  let sort = parseSort(single.sort ?? 'created_at', order);
  if (sort.some(({ column }) => column === 'id')) {
    if (sortById === 'rejected') throw new Refusal(400, SORT_MESSAGE, null);
    if (sortById === 'ignored') sort = parseSort('created_at', 'asc');
  }
  return {
    page: parseNumber('page', single.page ?? '1', 999_999_999),
    perPage: parseNumber('per_page', single.per_page ?? String(PER_PAGE_DEFAULT), PER_PAGE_MAX),
    filters: filters.map(parseFilter),
    sort,
    given: { filters, sort: single.sort, order: single.order },
  };
}

/** Parses the query string of GET /v1/patients/{id}: whether an archived patient may be answered. */
export function parseSingleQuery(search) {
  const filters = parseParameters(search, ['q[]']).filters.map(parseFilter);
  if (filters.some(({ field }) => field !== 'archived_at'))
    throw new Refusal(400, 'Only archived_at is filterable here', 'filter');
  return { archivedToo: filters.some(({ operator }) => operator === '*' || operator === '?') };
}

/** Refuses any parameter: for endpoints that document none. */
export function parseNoQuery(search) {
  parseParameters(search, []);
}

function wildcard(pattern) {
  const parts = pattern.split('%').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${parts.join('.*')}$`, 'isu');
}

/** A predicate on a column's value. As in SQL, null satisfies no comparison. */
function predicate({ type, operator, value }) {
  const onPresent = (test) => (actual) => actual !== null && test(actual);
  if (type === 'int64' && operator === '=') {
    const wanted = new Set(value);
    return onPresent((actual) => wanted.has(actual));
  }
  const operand = type === 'int64' && value !== null ? value[0] : value;
  switch (operator) {
    case '*':
      return () => true;
    case '?':
      return (actual) => actual !== null;
    case '!?':
      return (actual) => actual === null;
    case '=': {
      if (type !== 'date') return onPresent((actual) => actual === operand);
      const pattern = new RegExp(`^${operand.replaceAll('*', '.')}$`);
      return onPresent((actual) => pattern.test(actual));
    }
    case '!=':
      return onPresent((actual) => actual !== operand);
    case '~':
    case '~~': {
      const pattern = wildcard(operator === '~' ? `%${operand}%` : operand);
      return onPresent((actual) => pattern.test(actual));
    }
    case '>':
      return onPresent((actual) => actual > operand);
    case '>=':
      return onPresent((actual) => actual >= operand);
    case '<':
      return onPresent((actual) => actual < operand);
    default:
      return onPresent((actual) => actual <= operand);
  }
}

/** Splits filters into an interval of positions, who is visible, and the rest. */
function plan(register, filters) {
  let low = 0;
  let high = register.size;
  const raiseLow = (position) => (low = Math.max(low, position));
  const lowerHigh = (position) => (high = Math.min(high, position));
  const rest = [];
  const visible = { active: true, archived: filters.some(({ field }) => field === 'archived_at') };
  for (const filter of filters) {
    const { field, operator, value } = filter;
    if (field === 'id' && operator === '>') raiseLow(register.lowerBound(value[0] + 1n));
    else if (field === 'id' && operator === '>=') raiseLow(register.lowerBound(value[0]));
    else if (field === 'id' && operator === '<') lowerHigh(register.lowerBound(value[0]));
    else if (field === 'id' && operator === '<=') lowerHigh(register.lowerBound(value[0] + 1n));
    else if (field === 'archived_at' && operator === '!?') visible.archived = false;
    else if (field === 'archived_at' && operator === '?') visible.active = false;
    else if (operator !== '*') rest.push(filter);
  }
  return { low, high: Math.max(low, high), visible, rest };
}

/** "asc" or "desc" where a sort is by id, in name or in effect; otherwise null. */
function idOrder(register, [{ column, descending }, ...more]) {
  const isById = column === 'id' || (column === 'created_at' && more.length === 0 && register.createdInIdOrder);
  if (!isById) return null;
  return descending ? 'desc' : 'asc';
}

function compareNullsLast(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return a < b ? -1 : Number(a > b);
}

/** Sorts positions by the values of their columns, the id deciding ties. */
function sortByColumns(register, positions, sort) {
  const keyed = positions.map((position) => ({
    position,
    keys: sort.map(({ column }) => register.column(position, column)),
  }));
  const compare = (a, b) => {
    for (const [n, { descending }] of sort.entries()) {
      const order = compareNullsLast(a.keys[n], b.keys[n]);
      if (order !== 0) return descending ? -order : order;
    }
    return a.position - b.position;
  };
  return keyed.sort(compare).map(({ position }) => position);
}

/** The nth (from 0) visible position at or after low. */
function nthVisible(register, visibleBefore, low, nth) {
  const wanted = visibleBefore(low) + nth;
  let from = low;
  let to = register.size;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (visibleBefore(middle + 1) <= wanted) from = middle + 1;
    else to = middle;
  }
  return from;
}

/** Selects without looking at a record: an interval of ids, in their order, with or without the archived. */
function selectInterval(register, { low, high, visible }, offset, limit, order) {
  if (visible.active && visible.archived) {
    if (order === 'desc') {
      const from = Math.max(low, high - offset);
      const to = Math.max(low, from - limit);
      return { total: high - low, positions: Array.from({ length: from - to }, (_, n) => from - 1 - n) };
    }
    const from = Math.min(high, low + offset);
    const to = Math.min(high, from + limit);
    return { total: high - low, positions: Array.from({ length: to - from }, (_, n) => from + n) };
  }
  if (!visible.active && !visible.archived) return { total: 0, positions: [] };
  const visibleBefore = visible.active
    ? (position) => register.activeBefore(position)
    : (position) => position - register.activeBefore(position);
  const total = visibleBefore(high) - visibleBefore(low);
  const count = Math.max(0, Math.min(limit, total - offset));
  const positions = [];
  for (let at = low; positions.length < count; at = positions[positions.length - 1] + 1)
    positions.push(nthVisible(register, visibleBefore, at, positions.length === 0 ? offset : 0));
  return { total, positions };
}

/** Selects by looking at every record of the interval. */
function selectByLooking(register, { low, high, visible, rest }, sort) {
  const tests = rest.map((filter) => ({ column: filter.field, holds: predicate(filter) }));
  const matches = (position) =>
    (register.isArchivedAt(position) ? visible.archived : visible.active) &&
    tests.every(({ column, holds }) => holds(register.column(position, column)));
  const list = rest.find(({ field, operator }) => field === 'id' && operator === '=');
  const found = [];
  if (list) {
    const named = [...new Set(list.value)].map((id) => register.find(id)).sort((a, b) => a - b);
    for (const position of named) if (position >= low && position < high && matches(position)) found.push(position);
  } else {
    for (let position = low; position < high; position++) if (matches(position)) found.push(position);
  }
  const order = idOrder(register, sort);
  if (order === 'desc') found.reverse();
  return order === null ? sortByColumns(register, found, sort) : found;
}

/** Finds what parsed queries select in one register, remembering what took a look at every record. */
export class Finder {
  #register;
  #remembered = new Map();
  #version = 0;

  constructor(register) {
    this.#register = register;
  }

  /** The positions of the wanted page, and how many patients match on all pages. */
  find(query) {
    const offset = (query.page - 1) * query.perPage;
    const planned = plan(this.#register, query.filters);
    const order = idOrder(this.#register, query.sort);
    const everyone = planned.visible.active && planned.visible.archived;
    if (planned.rest.length === 0 && (order === 'asc' || (order === 'desc' && everyone)))
      return selectInterval(this.#register, planned, offset, query.perPage, order);
    const positions = this.#lookOnce(query, planned);
    return { total: positions.length, positions: positions.slice(offset, offset + query.perPage) };
  }

  #lookOnce({ given, sort }, planned) {
    if (this.#version !== this.#register.version) this.#remembered.clear();
    this.#version = this.#register.version;
    const question = JSON.stringify([given.filters, sort]);
    if (!this.#remembered.has(question)) {
      if (this.#remembered.size >= REMEMBERED_SELECTIONS) this.#remembered.clear();
      this.#remembered.set(question, selectByLooking(this.#register, planned, sort));
    }
    return this.#remembered.get(question);
  }
}

/** The links of a page, with the parameters that were given, encoded and ordered as Cliniko's are. */
export function pageLinks(url, { page, perPage, given }, total) {
  const at = (number) => {
    const parameters = [['page', String(number)], ['per_page', String(perPage)]];
    if (given.order !== undefined) parameters.unshift(['order', given.order]);
    for (const filter of given.filters) parameters.push(['q[]', filter]);
    if (given.sort !== undefined) parameters.push(['sort', given.sort]);
    return `${url}?${parameters.map(([name, value]) => `${encode(name)}=${encode(value)}`).join('&')}`;
  };
  const links = { self: at(page) };
  if (page * perPage < total) links.next = at(page + 1);
  if (page > 1) links.previous = at(page - 1);
  return links;
}
