// Turns measurements into the tables and the image of docs/PERFORMANCE.md. Knows what the numbers mean,
// not how they came about.

import { writeFile } from 'node:fs/promises';
import { median, spread } from './measure.mjs';
import { plot } from './plot.mjs';

const TABLES = new URL('../tmp_check/results.md', import.meta.url);
const IMAGE = new URL('../tmp_check/growth.svg', import.meta.url);

export function thousands(number) {
  return Math.round(number).toLocaleString('en');
}

function seconds(ms) {
  return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

function megabytes(mb) {
  return `${mb.toFixed(1)} MB`;
}

function milliseconds(ms) {
  return `${ms.toFixed(1)} ms`;
}

/** Minimum, median and maximum of a ratio over the rounds. */
function ratios(values) {
  const [low, middle, high] = spread(values).map((value) => value.toFixed(2));
  return `${low} / **${middle}** / ${high}`;
}

/** A Markdown table, its columns aligned, so that a terminal shows it as well. */
function table(head, rows) {
  const all = [head, head.map(() => '---'), ...rows].map((row) => row.map(String));
  const widths = head.map((_, column) => Math.max(...all.map((row) => row[column].length)));
  return all.map((row) => `| ${row.map((cell, column) => cell.padEnd(widths[column])).join(' | ')} |`).join('\n');
}

function patientsPerSecond(rounds, part, patients) {
  return thousands(median(rounds.map((round) => (patients * 1000) / round[part].ms)));
}

function cpuPerPatient(rounds, part, patients) {
  return `${thousands(median(rounds.map((round) => (round[part].cpuMs * 1000) / patients)))} µs`;
}

function walPerPatient(rounds, part, patients) {
  return `${thousands(median(rounds.map((round) => round[part].wal / patients)))} bytes`;
}

function compareFirst({ patients, rounds }) {
  const rows = [
    ['first', '**clinisync, first sync**'],
    ['script', 'Python script, 100 rows a statement'],
    ['rowByRow', 'Python script, row by row'],
    ['sql', 'PL/pgSQL, pages already in a table'],
    ['copy', '`COPY`, rows already in a file'],
    ['curl', 'curl, pages thrown away'],
  ].map(([part, name]) => {
    const has = (figure) => rounds[0][part][figure] !== undefined;
    return [
      name,
      patientsPerSecond(rounds, part, patients),
      ratios(rounds.map((round) => round[part].ms / round.first.ms)),
      ratios(rounds.map((round) => round.copy.ms / round[part].ms)),
      has('cpuMs') ? cpuPerPatient(rounds, part, patients) : '',
      has('cpuMs') ? ratios(rounds.map((round) => round.copy.cpuMs / round[part].cpuMs)) : '',
      has('wal') ? walPerPatient(rounds, part, patients) : '',
    ];
  });
  const head = [
    `${thousands(patients)} patients`, 'Patients a second', 'Time (first sync = 1)', 'Speed (`COPY` = 1)',
    'CPU time a patient', 'CPU speed (`COPY` = 1)', 'WAL a patient',
  ];
  return table(head, rows);
}

function compareAgain({ patients, rounds }) {
  const rows = [
    ['unchanged', '**clinisync**'],
    ['scriptAgain', 'Python script'],
    ['sqlAgain', 'PL/pgSQL'],
  ].map(([part, name]) => [
    name,
    patientsPerSecond(rounds, part, patients),
    ratios(rounds.map((round) => round[part].ms / round.unchanged.ms)),
    cpuPerPatient(rounds, part, patients),
    walPerPatient(rounds, part, patients),
  ]);
  const head = [
    'The same again, nothing changed', 'Patients a second', 'Time (clinisync = 1)',
    'CPU time a patient', 'WAL a patient',
  ];
  return table(head, rows);
}

function compareChanges({ patients, changed, rounds }) {
  const rows = [
    ['unchanged', 'nothing changed'],
    ['changed', `${thousands(changed)} changed`],
  ].map(([part, name]) => [
    name,
    seconds(median(rounds.map((round) => round[part].ms))),
    ratios(rounds.map((round) => round[part].ms / round.unchanged.ms)),
    cpuPerPatient(rounds, part, patients),
    walPerPatient(rounds, part, patients),
  ]);
  const head = [
    `${thousands(patients)} patients again`, 'Time', 'Ratio (nothing changed = 1)', 'CPU time a patient',
    'WAL a patient',
  ];
  return table(head, rows);
}

// As clinisync.page_size and clinisync.requests_in_flight have it.
const PAGE_SIZE = 100;
const IN_FLIGHT = 4;
const FEWEST_ROUND_TRIPS = 3;

function comparePace({ latencyMs, paces, limit }) {
  const rows = paces.flatMap(({ patients, rounds }) => {
    const pages = Math.ceil(patients / PAGE_SIZE);
    const idealMs = Math.max(FEWEST_ROUND_TRIPS, pages / IN_FLIGHT) * latencyMs;
    return [
      ['first', '**clinisync, first sync**'],
      ['script', 'Python script'],
      ['curl', 'curl, one page after another'],
      ['parallel', 'curl, 16 pages at once'],
    ]
      .filter(([part]) => rounds[0][part] !== undefined)
      .map(([part, name], i) => [
        i === 0 ? thousands(patients) : '',
        name,
        seconds(median(rounds.map((round) => round[part].ms))),
        ratios(rounds.map((round) => round[part].ms / latencyMs)),
        ratios(rounds.map((round) => round[part].ms / idealMs)),
      ]);
  });
  const head = [
    `Patients, at ${latencyMs} ms a request`, 'By', 'Time', 'Round trips', `Ratio (pages / ${IN_FLIGHT} round trips = 1)`,
  ];
  const { patients } = paces.at(-1);
  return (
    `${table(head, rows)}\n\n${thousands(patients)} patients with \`requests_per_minute\` ${limit.perMinute}: ` +
    `${limit.requests} requests in ${seconds(limit.ms)}, ${limit.most} of them in the minute that had most; ` +
    `${limit.refused} were answered 429.`
  );
}

function showGrowth(sizes) {
  const rows = sizes.map(({ patients, first, unchanged, script, copy, workerMb, scriptMb }) => [
    thousands(patients),
    seconds(first.ms),
    `${((first.ms * 1000) / patients).toFixed(0)} µs`,
    seconds(unchanged.ms),
    seconds(script.ms),
    seconds(copy.ms),
    megabytes(workerMb),
    megabytes(scriptMb),
  ]);
  const head = [
    'Patients', 'First sync', 'a patient', 'Unchanged', 'Python script', '`COPY`',
    'Memory of the worker', 'of the script',
  ];
  return `${table(head, rows)}\n\n![Time and memory by the number of patients](growth.svg)`;
}

function drawGrowth(sizes) {
  const line = (name, figure) => ({ name, points: sizes.map((size) => [size.patients, figure(size)]) });
  const formatX = thousands;
  const xLabel = 'patients';
  return plot([
    {
      title: 'Time in seconds',
      xLabel,
      formatX,
      formatY: String,
      lines: [
        line('first sync', ({ first }) => first.ms / 1000),
        line('Python script', ({ script }) => script.ms / 1000),
        line('unchanged', ({ unchanged }) => unchanged.ms / 1000),
        line('COPY', ({ copy }) => copy.ms / 1000),
      ],
    },
    {
      title: 'Memory in MB, at most',
      xLabel,
      formatX,
      formatY: String,
      lines: [
        line('worker', ({ workerMb }) => workerMb),
        line('Python script', ({ scriptMb }) => scriptMb),
      ],
    },
  ]);
}

function compareClinics({ clinics, patients, latencyMs, rounds }, peers) {
  const total = (part) => seconds(median(rounds.map((round) => round[part].ms)));
  const ratio = (part) => ratios(rounds.map((round) => round[part].ms / round.all.ms));
  const own = (part) => seconds(median(rounds.map((round) => round[part].medianMs)));
  const memory = (part) => megabytes(Math.max(...rounds.map((round) => round[part].peakMb)));
  const slowRatio = ratios(rounds.map((round) => round.besideSlow.medianMs / round.all.medianMs));
  const limit = (round) => round.curl.ms + round.copy.ms;
  const oneClinic = (peer) => (peer.first.ms / peers.patients) * clinics * patients;
  return table(
    [
      `${thousands(clinics)} clinics of ${patients} patients at ${latencyMs} ms a request`,
      'Time in all', 'Ratio', 'Median of the runs', 'Ratio', 'Memory of the worker',
    ],
    [
      ['**clinisync, one worker**', total('all'), '1', own('all'), '1', memory('all')],
      [
        'and one more that answers in 20 s: the others', total('besideSlow'), ratio('besideSlow'),
        own('besideSlow'), slowRatio, memory('besideSlow'),
      ],
      ['curl, the same pages in parallel', total('curl'), ratio('curl'), '', '', ''],
      ['`COPY` of the same rows', total('copy'), ratio('copy'), '', '', ''],
      [
        'as many patients of one clinic, at no latency (above)', seconds(median(peers.rounds.map(oneClinic))),
        ratios(rounds.map((round, i) => oneClinic(peers.rounds[i]) / round.all.ms)), '', '', '',
      ],
      [
        'curl and `COPY`, one after the other', seconds(median(rounds.map(limit))),
        ratios(rounds.map((round) => limit(round) / round.all.ms)), '', '', '',
      ],
    ],
  );
}

function comparePgbench({ rounds }) {
  const rows = [
    ['alone', 'alone'],
    ['curl', 'beside curl that fetches pages, and the simulator'],
    ['full', 'beside syncs at full speed'],
    ['largeBatches', '… with `batch_size` 1000'],
    ['oneRun', '… with `max_running_syncs` 1'],
    ['paced', 'beside syncs at 300 ms a request'],
  ].map(([part, name]) => [
    name,
    thousands(median(rounds.map((round) => round[part].tps))),
    ratios(rounds.map((round) => round[part].tps / round.alone.tps)),
    `${median(rounds.map((round) => round[part].latencyMs)).toFixed(2)} ms`,
    rounds[0][part].patientsPerSecond === undefined
      ? ''
      : thousands(median(rounds.map((round) => round[part].patientsPerSecond))),
  ]);
  const head = ['pgbench', 'Transactions a second', 'Ratio (alone = 1)', 'Latency', 'Patients stored a second'];
  return table(head, rows);
}

function showWatching({ watchers, requests, seconds: duration, median: middle, late, latest }) {
  return table(
    [`${watchers} clients that watch a sync`, 'Requests a second', 'Median', '95 %', 'Slowest'],
    [['`sync-logs?limit=1`', thousands(requests / duration), ...[middle, late, latest].map(milliseconds)]],
  );
}

function showMachine({ machine, versions, settings, rounds }) {
  return [
    `Machine: ${machine}.`,
    `Versions: ${versions}.`,
    `The server's settings: ${settings}.`,
    `Ratios are minimum / **median** / maximum of ${rounds} rounds, other figures medians.`,
  ].join('\n\n');
}

/** All results as Markdown. */
export function report({ setting, growth, peers, changes, pace, clinics, pgbench, watching }) {
  const parts = [
    showMachine(setting),
    '### The same patients into the same table',
    compareFirst(peers),
    compareAgain(peers),
    compareChanges(changes),
    '### One clinic at a real pace',
    comparePace(pace),
    '### Growth',
    showGrowth(growth),
    '### Many clinics',
    compareClinics(clinics, peers),
    '### Neighbours',
    comparePgbench(pgbench),
    showWatching(watching),
  ];
  return parts.join('\n\n');
}

/** Writes the tables and the curves to where test/run takes them from. */
export async function writeReport(results) {
  await writeFile(TABLES, `\n${report(results)}\n\n`);
  await writeFile(IMAGE, drawGrowth(results.growth));
}
