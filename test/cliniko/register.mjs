// The patients of one account, ordered by id: generated ones made on demand, and over them what
// mutations changed. Knows where a patient stands, what the API would serve for it, and who is
// archived. It must never know of HTTP, of queries or of faults, and never keeps a million records:
// only ids, the few that were changed, and a bounded cache of serialised ones.

import { setImmediate } from 'node:timers/promises';
import { ControlError } from './errors.mjs';
import {
  archivedAt,
  createdAt,
  createProfile,
  idAt,
  isArchived,
  newId,
  patientJson,
  styleAbsent,
  timestamp,
  updatedAt,
} from './patients.mjs';

// Serialised records are small: pooling them in large slabs keeps the garbage collector out of it.
Buffer.poolSize = 1 << 20;
const CACHED_BYTES = 384 << 20;
const WARM_MARGIN = 1 << 20;
const WARM_SLICE = 200;

const GENERATED_COLUMNS = { created_at: createdAt, updated_at: updatedAt, archived_at: archivedAt };

function now() {
  return timestamp(Math.floor(Date.now() / 1000));
}

/** Absent, however the account writes it, is null. */
function present(value) {
  return value === undefined || value === '' ? null : value;
}

/** A copy of a typed array with the items from..to replaced. */
function splice(list, from, to, inserted) {
  const spliced = new list.constructor(list.length - (to - from) + inserted.length);
  spliced.set(list.subarray(0, from));
  spliced.set(inserted, from);
  spliced.set(list.subarray(to), from + inserted.length);
  return spliced;
}

const MUTATIONS = {
  archive: isChoice,
  unarchive: isChoice,
  edit: isChoice,
  remove: isChoice,
  set: (value) => [value].flat().every(({ id, fields }) => typeof id === 'string' && typeof fields === 'object'),
  put: Array.isArray,
  add: Number.isInteger,
};

function isChoice(value) {
  return Array.isArray(value) || (Number.isInteger(value) && value >= 0);
}

/** Throws a ControlError for a mutation that the interface does not have. */
export function checkMutation(mutation) {
  for (const [name, value] of Object.entries(mutation)) {
    if (!Object.hasOwn(MUTATIONS, name)) throw new ControlError(`there is no mutation ${name}`);
    if (!MUTATIONS[name](value)) throw new ControlError(`${name} cannot be ${JSON.stringify(value)}`);
  }
}

/** The patients of one account: generated ones, and over them what was changed. */
export class Register {
  #key;
  #options;
  #profile;
  #ids; // BigInt64Array, ascending
  #ordinals; // which generated patient stands at a position; beyond profile.count: added later
  #nextOrdinal;
  #highestId; // that there ever was: nobody is given the id of somebody who was removed
  #changes = new Map(); // ordinal -> {facts, set, put}, see #change
  #json = new Map(); // ordinal -> Buffer
  #jsonBytes = 0;
  #activeBefore = null; // Int32Array: how many active ones stand before a position
  #edits = 0;

  /** Grows with every mutation: what was derived from an older one is stale. */
  version = 0;
  /** Whether ordering by created_at is ordering by id. */
  createdInIdOrder;

  constructor(key, options) {
    const profile = createProfile(key, options);
    this.#key = key;
    this.#options = options;
    this.#profile = profile;
    this.#ids = new BigInt64Array(profile.count);
    this.#ordinals = new Int32Array(profile.count);
    for (let ordinal = 0; ordinal < profile.count; ordinal++) {
      this.#ids[ordinal] = idAt(profile, ordinal);
      this.#ordinals[ordinal] = ordinal;
    }
    this.#nextOrdinal = profile.count;
    this.#highestId = this.#ids.at(-1) ?? 0n;
    this.createdInIdOrder = !profile.importedDates;
  }

  /** Another register with the same patients, serialised ones too; from here each changes by itself. */
  copy() {
    const copy = new Register(this.#key, this.#options);
    copy.#ids = this.#ids;
    copy.#ordinals = this.#ordinals;
    copy.#nextOrdinal = this.#nextOrdinal;
    copy.#highestId = this.#highestId;
    copy.#changes = new Map(this.#changes);
    copy.#json = new Map(this.#json);
    copy.#jsonBytes = this.#jsonBytes;
    copy.createdInIdOrder = this.createdInIdOrder;
    return copy;
  }

  /** The base URL of this account's shard, as records name it. */
  get api() {
    return this.#profile.api;
  }

  /** How many patients there are, archived ones included. */
  get size() {
    return this.#ids.length;
  }

  /** How many of them are active. */
  get active() {
    return this.activeBefore(this.size);
  }

  /** Every id, ascending, as text. */
  get ids() {
    return Array.from(this.#ids, String);
  }

  /** The first position whose id is at least this BigInt. */
  lowerBound(id) {
    let low = 0;
    let high = this.#ids.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#ids[middle] < id) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The position of this id (a BigInt), or -1. */
  find(id) {
    const position = this.lowerBound(id);
    return this.#ids[position] === id ? position : -1;
  }

  /** How many active patients stand before a position. */
  activeBefore(position) {
    if (this.#activeBefore === null) {
      const before = new Int32Array(this.size + 1);
      for (let at = 0; at < this.size; at++) before[at + 1] = before[at] + (this.isArchivedAt(at) ? 0 : 1);
      this.#activeBefore = before;
    }
    return this.#activeBefore[position];
  }

  /** Whether the patient at a position is archived. */
  isArchivedAt(position) {
    const ordinal = this.#ordinals[position];
    return this.#changes.has(ordinal)
      ? this.column(position, 'archived_at') !== null
      : isArchived(this.#profile, ordinal);
  }

  /** The value of one column at a position, null when absent in whatever way; an id is a BigInt. */
  column(position, name) {
    if (name === 'id') return this.#ids[position];
    const ordinal = this.#ordinals[position];
    const generated = this.#changes.has(ordinal) ? undefined : GENERATED_COLUMNS[name];
    return generated ? generated(this.#profile, ordinal) : present(this.record(position)[name]);
  }

  /** The record at a position, as the API serves it. */
  record(position) {
    const ordinal = this.#ordinals[position];
    const change = this.#changes.get(ordinal);
    if (change?.put) return { ...change.put, ...change.facts, ...change.set };
    const patient = JSON.parse(patientJson(this.#profile, ordinal, String(this.#ids[position])));
    return { ...styleAbsent(this.#profile, ordinal, { ...patient, ...change?.facts }), ...change?.set };
  }

  /** The record at a position as JSON, followed by a comma. */
  json(position) {
    const ordinal = this.#ordinals[position];
    let json = this.#json.get(ordinal);
    if (json === undefined) {
      json = Buffer.from(`${this.#render(position, ordinal)},`);
      if (this.#jsonBytes + json.length > CACHED_BYTES) this.#forgetJson();
      this.#json.set(ordinal, json);
      this.#jsonBytes += json.length;
    }
    return json;
  }

  /** Serialises every record that fits into the cache, letting other work pass in between. */
  async warm() {
    for (let at = 0; at < this.size && this.#jsonBytes < CACHED_BYTES - WARM_MARGIN; at++) {
      this.json(at);
      if (at % WARM_SLICE === 0) await setImmediate();
    }
  }

  /**
   * Applies a mutation of the control interface and answers what it did: {"archived": [ids], …}.
   * Lists may be ids or a number of patients, chosen evenly among those that qualify.
   */
  mutate({ archive, unarchive, remove, edit, set, put, add }) {
    const done = {};
    const isActive = (position) => !this.isArchivedAt(position);
    const isOut = (position) => this.isArchivedAt(position);
    if (archive !== undefined) done.archived = this.#each(archive, isActive, (at) => this.#archive(at));
    if (unarchive !== undefined) done.unarchived = this.#each(unarchive, isOut, (at) => this.#unarchive(at));
    if (edit !== undefined) done.edited = this.#each(edit, isActive, (at) => this.#edit(at));
    if (set !== undefined) done.set = [set].flat().map((one) => this.#set(one));
    if (remove !== undefined) done.removed = this.#each(remove, () => true, (at) => this.#remove(at));
    if (put !== undefined) done.put = put.map((record) => this.#put(record));
    if (add !== undefined) done.added = this.#add(add);
    return done;
  }

  /** Does something to each patient named by id or, given a number, to as many that qualify. */
  #each(idsOrCount, qualifies, act) {
    const ids = Array.isArray(idsOrCount) ? idsOrCount : this.#choose(idsOrCount, qualifies);
    return ids.map((id) => {
      act(this.#positionOf(id));
      return String(id);
    });
  }

  #choose(count, qualifies) {
    const candidates = [];
    for (let at = 0; at < this.size; at++) if (qualifies(at)) candidates.push(at);
    const chosen = Math.min(count, candidates.length);
    return Array.from({ length: chosen }, (_, n) => {
      const at = candidates[Math.floor(((n + 0.5) * candidates.length) / chosen)];
      return String(this.#ids[at]);
    });
  }

  #positionOf(id) {
    const position = /^\d{1,19}$/.test(id) ? this.find(BigInt(id)) : -1;
    if (position < 0) throw new ControlError(`there is no patient ${id}`);
    return position;
  }

  /**
   * Layers a change over a patient. `facts` are values as the clinic knows them (null when absent),
   * `set` is served exactly as it stands, `put` replaces the generated record.
   */
  #change(position, { facts, set, put }) {
    const ordinal = this.#ordinals[position];
    const before = put ? {} : (this.#changes.get(ordinal) ?? {});
    this.#changes.set(ordinal, {
      put: put ?? before.put,
      facts: { ...before.facts, ...facts },
      set: { ...before.set, ...set },
    });
    const json = this.#json.get(ordinal);
    if (json !== undefined) this.#jsonBytes -= json.length;
    this.#json.delete(ordinal);
    this.#changed();
  }

  /** Most records are as generated: parsing them only to write them again would cost half the speed. */
  #render(position, ordinal) {
    return this.#profile.absent === 'null' && !this.#changes.has(ordinal)
      ? patientJson(this.#profile, ordinal, String(this.#ids[position]))
      : JSON.stringify(this.record(position));
  }

  #changed() {
    this.#activeBefore = null;
    this.version++;
  }

  #forgetJson() {
    this.#json.clear();
    this.#jsonBytes = 0;
  }

  #archive(position) {
    this.#change(position, { facts: { archived_at: now(), updated_at: now() } });
  }

  #unarchive(position) {
    const nothing = { archived_at: null, merged_at: null, merged_with_patient: null };
    this.#change(position, { facts: { ...nothing, updated_at: now() } });
  }

  #edit(position) {
    this.#change(position, { facts: { notes: `Edit ${++this.#edits}\r\nseen today`, updated_at: now() } });
  }

  #set({ id, fields }) {
    this.#change(this.#positionOf(id), { facts: { updated_at: now() }, set: fields });
    if ('created_at' in fields) this.createdInIdOrder = false;
    return String(id);
  }

  #remove(position) {
    this.#ids = splice(this.#ids, position, position + 1, []);
    this.#ordinals = splice(this.#ordinals, position, position + 1, []);
    this.#changed();
  }

  #put(record) {
    if (!/^\d{1,19}$/.test(record.id)) throw new ControlError('a record needs an id of digits');
    const id = BigInt(record.id);
    if (this.find(id) < 0) this.#insert(this.lowerBound(id), [id]);
    this.#change(this.find(id), { put: record });
    this.createdInIdOrder = false;
    return String(record.id);
  }

  #insert(position, ids) {
    for (const id of ids) if (id > this.#highestId) this.#highestId = id;
    const ordinals = ids.map(() => this.#nextOrdinal++);
    this.#ids = splice(this.#ids, position, position, ids);
    this.#ordinals = splice(this.#ordinals, position, position, ordinals);
    this.#changed();
  }

  #add(count) {
    const first = this.size;
    const fresh = newId(this.#profile);
    const start = fresh > this.#highestId ? fresh : this.#highestId + 1n;
    const ids = Array.from({ length: count }, (_, n) => start + BigInt(n));
    this.#insert(first, ids);
    const facts = { created_at: now(), updated_at: now() };
    ids.forEach((_, n) => this.#change(first + n, { facts }));
    return ids.map(String);
  }
}
