// How time and memory grow with the size of a clinic: of a sync, of one that finds nothing changed, of
// the Python script, and of COPY.

import {
  DATABASE,
  EMPTY,
  SETTLE,
  checksum,
  closeClinic,
  fail,
  measureSync,
  openClinic,
  psql,
} from './measure.mjs';
import { measureCopy, measureScript, saveRows } from './peers.mjs';

/**
 * One measurement for each size, in the order given, by one worker; and one before them that nobody
 * counts, in which the worker starts. The simulator makes each page when it is asked for, whatever the
 * size: it could not keep the pages of the largest, so it is made to forget those of the others.
 */
export async function measureGrowth(simulator, sizes, onSize) {
  const results = [];
  for (const patients of [sizes[0], ...sizes]) {
    onSize(patients);
    const prepare = async (statements) => {
      await openClinic(simulator, 'growing', { patients, warm: false });
      await psql(DATABASE, statements);
    };
    await prepare(EMPTY);
    const first = await measureSync('growing', patients, 'inserted');
    const expected = await checksum();
    await prepare(SETTLE);
    const unchanged = await measureSync('growing', patients, 'unchanged');
    await saveRows();
    await prepare(EMPTY);
    const script = await measureScript(simulator, 'growing', patients);
    if ((await checksum()) !== expected) fail('the script stored something else than the sync');
    await psql(DATABASE, EMPTY);
    const copy = await measureCopy();
    const { pid } = unchanged;
    if (pid !== (results[0]?.pid ?? pid)) fail('another worker took over; see the log of the server');
    const workerMb = Math.max(first.peakMb, unchanged.peakMb);
    results.push({ patients, pid, workerMb, scriptMb: script.peakMb, first, unchanged, script, copy });
    await closeClinic('growing');
  }
  return results.slice(1);
}
