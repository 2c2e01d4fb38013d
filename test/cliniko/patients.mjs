// Makes the synthetic patients of an account: patient n of an account is a pure function of the
// account's key, its seed and n, so that nothing has to be stored and any test can be repeated.
// It must never hold state, look at the clock, or produce anything that resembles a real person:
// e-mails are at example.com, phone numbers come from the ranges reserved for fiction, and every
// surname carries a marker ("Zq" and a number) by which a test can find a leak in a log.

const EPOCH_MS = Date.UTC(2019, 0, 1); // what Cliniko's long ids count milliseconds from
const SHARD_BITS = 10n;
const TIME_BITS = 23n;

// Long ids of these years have 18 and then 19 digits: sorting them as text goes wrong.
const SNOWFLAKE_YEARS = { from: Date.UTC(2020, 0, 1) / 1000, to: Date.UTC(2025, 0, 1) / 1000 };
const OLD_YEARS = { from: Date.UTC(2012, 0, 1) / 1000, to: Date.UTC(2019, 0, 1) / 1000 };
const OLD_ID_FIRST = 10_000_000;
const OLD_ID_SPAN = 89_000_000;
const OLD_ID_STEP = 40;

// Of each TWIN_CYCLE patients, three in a row were created within one second.
const TWIN_CYCLE = 40;
const TWIN_FIRST = 6;
const TWINS = 3;

// In an account whose created_at order is not its id order, every tenth patient was imported
// with the date at which another system had created it.
const IMPORT_CYCLE = 10;
const IMPORT_AGE = 2 * 365 * 86400;

const CUSTOM_FIELD_TOKENS = 13;

const STYLE_SALT = 0x5a5a; // keeps the choice of styles apart from that of values
const ABSENT_STYLES = ['null', 'empty', 'missing'];

// Words are kept escaped as they stand within a JSON string, because a patient is written as text.
// Each list has a plain half and one of other scripts, accents and characters that need escaping:
// a patient takes all of its words from one of the two.
const AWKWARD_SHARE = 0.25;
const escape = (word) => JSON.stringify(word).slice(1, -1);
const words = (plain, awkward) => [plain.map(escape), awkward.map(escape)];

const FIRST_NAMES = words(
  ['Alex', 'Mary Jane', 'Nia', 'Omar', 'Priya', 'Ruth', 'Tama', 'Uma', 'Viktor', 'Wren', 'Xavier'],
  ['Zoë', 'José', 'Søren', 'Łukasz', 'Ngọc', 'Siobhán', '美咲', '小龍', '지우', 'Дарья', 'Ελένη',
    'فاطمة', 'Ana 🌻', 'Kim 👩🏽‍⚕️', 'Ann "Nan"', 'D\'Arcy', 'Jo\\ann'],
);
const SURNAMES = words(
  ['Example', 'Fictive', 'Testersson', 'Specimen', 'van der Proef'],
  ['O\'Sample', 'de la Prüfung', 'Müller-Muster', '山田', 'Nguyễn', 'Mac "Dot" Dummy', 'Demo\\Slash'],
);
const NICKNAMES = words(['Lex', 'Ty'], ['Zö', '小', '"Ace"']);
const STREETS = words(
  ['Example Parade', 'Sample Street', 'Fixture Road'],
  ['Prüfweg', 'Rue de l’Échantillon', '試験通り', 'Test "Court"'],
);
const CITIES = words(['Testville', 'Sampleton', 'Mt Fixture'], ['Exämple', '試験市', '\tTabbed']);
const OCCUPATIONS = words(['Tester', 'Nurse', 'Student'], ['Carpenter & joiner', 'Café owner', '教師']);
const GENDER_IDENTITIES = words(['Woman', 'Man', 'Non-binary'], ['Self-described: genderfluid 🏳️‍🌈']);
const NOTES = words(
  ['Line one\r\nLine two\r\n\r\nLine four', 'Prefers mornings', 'Says "no needles"; see C:\\old\\chart'],
  [
    'Line one – with a dash\r\nand 日本語 and 한국어, an emoji 🦴 and a trailing blank ',
    'Crème brûlée intolerance (self-reported) & <b>allergies</b>',
    'Zero-width\u200bspace, a combining e\u0301, a line separator\u2028and a tab\t.',
  ],
);
const TITLES = ['Ms', 'Mr', 'Mx', 'Dr', 'Mrs'];
const SEXES = ['Female', 'Male', 'Intersex', 'Other'];
const STATES = ['VIC', 'NSW', 'QLD', 'WA', 'TAS'];
const COUNTRIES = [['Australia', 'AU'], ['New Zealand', 'NZ'], ['United Kingdom', 'GB'], ['Canada', 'CA']];
const TIME_ZONES = ['Australia/Melbourne', 'Australia/Perth', 'Pacific/Auckland', 'Europe/London'];
const REFERRALS = ['Search engine', 'Friend or family', 'Doctor', 'Walked past'];
const REMINDERS = ['None', 'SMS', 'Email', 'SMS & Email'];
const ACCEPTANCES = [true, false, null];
const PRONOUNS = [
  ['they', 'them', 'their', 'theirs', 'themself'],
  ['she', 'her', 'her', 'hers', 'herself'],
  ['xe', 'xem', 'xyr', 'xyrs', 'xemself'],
].map(([nominative, accusative, pronominal_possessive, predicative_possessive, reflexive]) =>
  JSON.stringify({ nominative, accusative, pronominal_possessive, predicative_possessive, reflexive }),
);

/** Hashes a text to 32 bits (FNV-1a). */
function hashText(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** Hashes two 32-bit numbers to one, every bit of both mattering. */
function mix(a, b) {
  let hash = Math.imul(a ^ (b + 0x9e3779b9), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** A number in [0, 1) that depends on the seed, the ordinal and the purpose alone. */
function chanceAt(seed, ordinal, purpose) {
  return mix(mix(seed, ordinal), purpose) / 2 ** 32;
}

/** A repeatable sequence of random choices (mulberry32). */
class Dice {
  constructor(seed) {
    this.state = seed;
  }

  next() {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  below(limit) {
    return Math.floor(this.next() * limit);
  }

  pick(list) {
    return list[this.below(list.length)];
  }

  digits(count) {
    return String(this.below(10 ** count)).padStart(count, '0');
  }
}

function uuid(seed, number) {
  const hex = [0, 1, 2, 3].map((part) => mix(mix(seed, number), part).toString(16).padStart(8, '0')).join('');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20)}`;
}

/** Writes unix seconds the way Cliniko writes a time: whole seconds, UTC. */
export function timestamp(seconds) {
  return `${new Date(seconds * 1000).toISOString().slice(0, 19)}Z`;
}

/** The long id of something made at this millisecond; `sequence` (0 to 1023) keeps neighbours apart. */
function snowflake(profile, ms, sequence) {
  return (BigInt(ms - EPOCH_MS) << TIME_BITS) | (profile.shardNumber << SHARD_BITS) | BigInt(sequence);
}

/** Splits an API key into what identifies the account and its shard, au1 where none is named. */
export function splitKey(key) {
  const [, bare = key, shard = 'au1'] = /^(.*)-([a-z]{2}\d{1,2})$/i.exec(key) ?? [];
  return { bare, shard: shard.toLowerCase() };
}

/**
 * Everything that the patients of one account follow from.
 * `patients` are active, `archived` more are archived, `merged` of these were merged away.
 */
export function createProfile(key, { patients, archived, merged, ids, absent, seed, importedDates }) {
  const count = patients + archived;
  const oldCount = ids === 'old' ? count : ids === 'mixed' ? Math.floor(count / 3) : 0;
  const accountSeed = mix(hashText(key), seed);
  const { shard } = splitKey(key);
  return {
    count,
    archived,
    merged,
    absent,
    importedDates,
    seed: accountSeed,
    tokens: Array.from({ length: CUSTOM_FIELD_TOKENS }, (_, n) => uuid(accountSeed, n)),
    marker: (1000 + (accountSeed % 9000)) * 1e7,
    shardNumber: BigInt(1 + (hashText(shard) % 1000)),
    api: `https://api.${shard}.cliniko.com/v1`,
    oldIds: ids === 'old',
    oldEra: { ...OLD_YEARS, first: 0, count: oldCount },
    snowflakeEra: { ...SNOWFLAKE_YEARS, first: oldCount, count: count - oldCount },
    oldStep: Math.max(1, Math.min(OLD_ID_STEP, Math.floor(OLD_ID_SPAN / Math.max(1, oldCount)))),
  };
}

function eraOf(profile, ordinal) {
  return ordinal < profile.oldEra.count ? profile.oldEra : profile.snowflakeEra;
}

/** How many patients before this one were created within the same second. */
function twinsBefore(nth) {
  const place = (nth % TWIN_CYCLE) - TWIN_FIRST;
  return place > 0 && place < TWINS ? place : 0;
}

/** The id that a patient gets who is entered now: the least one, since others may have been taken already. */
export function newId(profile) {
  return profile.oldIds ? BigInt(OLD_ID_FIRST) : snowflake(profile, Date.now(), 0);
}

/** The second at which a patient was entered: never falls as the ordinal grows. */
function enteredSecond(profile, ordinal) {
  const era = eraOf(profile, ordinal);
  const twins = twinsBefore(ordinal - era.first);
  const nth = ordinal - era.first - twins;
  // an era may begin with patients who were added
  const step = (era.to - era.from) / Math.max(1, era.count);
  return Math.floor(era.from + nth * step + chanceAt(profile.seed, ordinal - twins, 1) * (step - 1));
}

/** The id of a generated patient, as a BigInt: rises strictly with the ordinal. */
export function idAt(profile, ordinal) {
  const chance = chanceAt(profile.seed, ordinal, 2);
  if (ordinal < profile.oldEra.count)
    return BigInt(OLD_ID_FIRST + ordinal * profile.oldStep + Math.floor(chance * profile.oldStep));
  const twins = twinsBefore(ordinal - profile.snowflakeEra.first);
  const ms = enteredSecond(profile, ordinal) * 1000 + twins * 300 + Math.floor(chance * 300);
  return snowflake(profile, ms, mix(profile.seed, ordinal) & 0x3ff);
}

function createdSecond(profile, ordinal) {
  const imported = profile.importedDates && ordinal % IMPORT_CYCLE === IMPORT_CYCLE - 1;
  return enteredSecond(profile, ordinal) - (imported ? IMPORT_AGE : 0);
}

function updatedSecond(profile, ordinal) {
  const created = createdSecond(profile, ordinal);
  const chance = chanceAt(profile.seed, ordinal, 3);
  const untouched = chance < 0.3 && !isArchived(profile, ordinal);
  return untouched ? created : created + 1 + Math.floor(chance * (SNOWFLAKE_YEARS.to - created));
}

/** Whether item n is one of `chosen` spread evenly over `count`. */
function isChosen(n, chosen, count) {
  return n < count && Math.floor(((n + 1) * chosen) / count) > Math.floor((n * chosen) / count);
}

/** Whether a generated patient is archived from the start. */
export function isArchived(profile, ordinal) {
  return isChosen(ordinal, profile.archived, profile.count);
}

function isMerged(profile, ordinal) {
  const nthArchived = Math.floor((ordinal * profile.archived) / profile.count);
  return isArchived(profile, ordinal) && isChosen(nthArchived, profile.merged, profile.archived);
}

/** The nearest older patient (or else the nearest younger one) that is active: who survived the merge. */
function survivorOf(profile, ordinal) {
  let older = ordinal - 1;
  while (older >= 0 && isArchived(profile, older)) older--;
  let younger = ordinal + 1;
  while (older < 0 && younger < profile.count && isArchived(profile, younger)) younger++;
  return older >= 0 ? older : younger;
}

/** created_at of a generated patient. */
export function createdAt(profile, ordinal) {
  return timestamp(createdSecond(profile, ordinal));
}

/** updated_at of a generated patient. */
export function updatedAt(profile, ordinal) {
  return timestamp(updatedSecond(profile, ordinal));
}

/** archived_at of a generated patient, or null: archiving was the last thing that happened to it. */
export function archivedAt(profile, ordinal) {
  return isArchived(profile, ordinal) ? timestamp(updatedSecond(profile, ordinal)) : null;
}

function link(url) {
  return `{"links":{"self":"${url}"}}`;
}

function phoneNumber(type, number, normalized) {
  return `{"number":"${number}","normalized_number":"${normalized}","phone_type":"${type}"}`;
}

/** The phone numbers as JSON objects: null, none, one or many, of each kind that occurs. */
function phoneNumbers(dice) {
  const last = dice.digits(3);
  const mobile = phoneNumber('Mobile', `0491 570 ${last}`, `61491570${last}`);
  const landline = (type) => phoneNumber(type, `(02) 5550 1${last}`, `61255501${last}`);
  switch (dice.below(12)) {
    case 0:
      return null;
    case 1:
      return [];
    case 2:
      return [phoneNumber('Mobile', '0491 570 156 (mum, after 5pm)', '61491570156')];
    case 3:
      return [landline('Home'), landline('Work'), mobile, phoneNumber('Mobile', '0491 570 157', '61491570157')];
    case 4:
      return ['{"number":"+64 (0)20 4555 01","normalized_number":null,"phone_type":"Other"}', landline('Fax')];
    case 5:
      return [`{"number":"(02) 5550 1${last}","phone_type":"Home"}`];
    case 6:
    case 7:
      return [landline('Home'), mobile];
    default:
      return [mobile];
  }
}

function birthDate(dice) {
  const year = 1930 + dice.below(90);
  if (dice.next() < 0.02) return `${year - (year % 4)}-02-29`;
  const twoDigits = (number) => String(number).padStart(2, '0');
  return `${year}-${twoDigits(1 + dice.below(12))}-${twoDigits(1 + dice.below(28))}`;
}

function customFields(profile, dice) {
  const token = (number) => profile.tokens[number];
  const text = { name: 'Policy number', type: 'text', token: token(1) };
  if (dice.next() < 0.8) text.value = `TEST-${dice.digits(4)} (gold)`;
  const since = { name: 'Member since', type: 'date', token: token(2) };
  if (dice.next() < 0.7) since.value = `20${10 + dice.below(14)}-0${1 + dice.below(9)}-1${dice.below(10)}`;
  const option = (name, number, chosen) =>
    chosen ? { name, token: token(number), selected: true } : { name, token: token(number) };
  const provider = dice.below(3);
  const sections = [
    {
      name: 'Insurance',
      token: token(3),
      archived: false,
      fields: [
        text,
        since,
        {
          name: 'Provider',
          type: 'radiobuttons',
          token: token(4),
          options: [option('Provider A', 5, provider === 0), option('Provider Б', 6, provider === 1)],
          other: provider === 2 ? { enabled: true, selected: true, value: 'Another one' } : { enabled: true },
        },
      ],
    },
  ];
  if (dice.next() < 0.3)
    sections.push({
      name: null,
      token: token(7),
      archived: true,
      fields: [
        { name: 'History', type: 'paragraph', token: token(8), archived: null, value: 'First\r\nsecond \\ third' },
        {
          name: 'Goals',
          type: 'checkboxes',
          token: token(9),
          options: [
            option('Walk', 10, true),
            option('Run', 11, dice.next() < 0.5),
            { name: 'Fly', token: token(12), archived: true },
          ],
          other: { enabled: false, archived: null },
        },
      ],
    });
  return { sections };
}

/** One patient as JSON text, all 57 fields, absent ones null; `id` is the id as text. */
export function patientJson(profile, ordinal, id) {
  const { api } = profile;
  const dice = new Dice(mix(profile.seed, ordinal));
  const half = dice.next() < AWKWARD_SHARE ? 1 : 0;
  const word = (list) => dice.pick(list[half]);
  const text = (share, make) => (dice.next() < share ? `"${make()}"` : null);
  const relatedTo = (share, kind) =>
    dice.next() < share ? link(`${api}/${kind}/1369857366580${dice.digits(6)}`) : null;

  const self = `${api}/patients/${id}`;
  const ofThisPatient = `q%5B%5D=patient_id%3A%3D${id}`;
  const marker = `Zq${profile.marker + ordinal + 1}`;
  const firstName = word(FIRST_NAMES);
  const lastName = `${word(SURNAMES)} ${marker}`;
  const sex = text(0.8, () => dice.pick(SEXES));
  const [country, countryCode] = dice.pick(COUNTRIES);
  const updated = timestamp(updatedSecond(profile, ordinal));
  const archived = isArchived(profile, ordinal) ? `"${updated}"` : null;
  const merged = isMerged(profile, ordinal);
  const phones = phoneNumbers(dice);

  return `{${[
    `"accepted_email_marketing":${dice.pick(ACCEPTANCES)}`,
    `"accepted_privacy_policy":${dice.pick(ACCEPTANCES)}`,
    `"accepted_sms_marketing":${dice.pick(ACCEPTANCES)}`,
    `"address_1":${text(0.8, () => `Unit ${1 + dice.below(99)}`)}`,
    `"address_2":${text(0.6, () => `${1 + dice.below(400)} ${word(STREETS)}`)}`,
    `"address_3":${text(0.05, () => 'c/o Reception')}`,
    `"appointment_notes":${text(0.2, () => word(NOTES))}`,
    `"appointments":${link(`${self}/appointments`)}`,
    `"archived_at":${archived}`,
    `"attendees":${link(`${api}/attendees?${ofThisPatient}`)}`,
    `"city":${text(0.8, () => word(CITIES))}`,
    `"concession_type":${relatedTo(0.15, 'concession_types')}`,
    `"country":${text(0.7, () => country)}`,
    `"country_code":"${countryCode}"`,
    `"created_at":"${createdAt(profile, ordinal)}"`,
    `"custom_fields":${dice.next() < 0.25 ? JSON.stringify(customFields(profile, dice)) : null}`,
    `"date_of_birth":${text(0.85, () => birthDate(dice))}`,
    `"deleted_at":null`,
    `"dva_card_number":${text(0.05, () => `NX${dice.digits(6)}`)}`,
    `"email":${text(0.85, () => `${marker.toLowerCase()}${dice.next() < 0.01 ? ' at ' : '@'}example.com`)}`,
    `"emergency_contact":${text(0.3, () => `Contact of ${marker} 0491 570 156`)}`,
    `"first_name":"${firstName}"`,
    `"gender":${sex}`,
    `"gender_identity":${text(0.3, () => word(GENDER_IDENTITIES))}`,
    `"id":"${id}"`,
    `"invoice_default_to":${text(0.1, () => 'Example Insurer & Co.')}`,
    `"invoice_email":${text(0.1, () => 'billing@example.com')}`,
    `"invoice_extra_information":${text(0.1, () => `Claim #${dice.digits(3)}\\r\\nPolicy #2`)}`,
    `"invoices":${link(`${self}/invoices`)}`,
    `"label":"${firstName} ${lastName}"`,
    `"last_name":"${lastName}"`,
    `"latest_booking":${relatedTo(0.7, 'bookings')}`,
    `"links":{"self":"${self}"}`,
    `"medical_alerts":${link(`${self}/medical_alerts`)}`,
    `"medicare":${text(0.4, () => dice.digits(10))}`,
    `"medicare_reference_number":${text(0.4, () => 1 + dice.below(9))}`,
    `"merged_at":${merged ? archived : null}`,
    `"merged_with_patient":${merged ? link(`${api}/patients/${idAt(profile, survivorOf(profile, ordinal))}`) : null}`,
    `"notes":${text(0.3, () => word(NOTES))}`,
    `"occupation":${text(0.4, () => word(OCCUPATIONS))}`,
    `"old_reference_id":${text(0.2, () => `LEG-${String(ordinal).padStart(4, '0')}`)}`,
    `"patient_attachments":${link(`${self}/patient_attachments`)}`,
    `"patient_phone_numbers":${phones && `[${phones}]`}`,
    `"post_code":${text(0.8, () => dice.digits(4))}`,
    `"preferred_first_name":${text(0.15, () => word(NICKNAMES))}`,
    `"pronouns":${dice.next() < 0.2 ? dice.pick(PRONOUNS) : null}`,
    `"receives_cancellation_emails":${dice.next() < 0.9}`,
    `"receives_confirmation_emails":${dice.next() < 0.9}`,
    `"referral_source":${text(0.3, () => dice.pick(REFERRALS))}`,
    `"referring_doctor":${relatedTo(0.15, 'contacts')}`,
    `"relationships":${link(`${api}/relationships?${ofThisPatient}`)}`,
    `"reminder_type":"${dice.pick(REMINDERS)}"`,
    `"sex":${sex}`,
    `"state":${text(0.8, () => dice.pick(STATES))}`,
    `"time_zone":${text(0.3, () => dice.pick(TIME_ZONES))}`,
    `"title":${text(0.5, () => dice.pick(TITLES))}`,
    `"updated_at":"${updated}"`,
  ].join()}}`;
}

// What never was text stays null where other absent values are "".
const NOT_TEXT = new Set([
  'accepted_email_marketing',
  'accepted_privacy_policy',
  'accepted_sms_marketing',
  'custom_fields',
  'patient_phone_numbers',
  'pronouns',
]);
const UNSET_LINKS = new Set(['concession_type', 'latest_booking', 'merged_with_patient', 'referring_doctor']);

/** Writes the absent fields of a patient the account's way: null, "", or no key at all. */
export function styleAbsent(profile, ordinal, patient) {
  const dice = new Dice(mix(profile.seed, ordinal + STYLE_SALT));
  const styled = {};
  for (const [field, value] of Object.entries(patient)) {
    const style = profile.absent === 'mixed' ? dice.pick(ABSENT_STYLES) : profile.absent;
    if (value !== null) styled[field] = value;
    else if (style === 'null') styled[field] = null;
    else if (style === 'empty' && !UNSET_LINKS.has(field)) styled[field] = NOT_TEXT.has(field) ? null : '';
  }
  return styled;
}
