// What a run is doing, in a sentence, by what the database says of it and nothing else.

import type { Log } from './api';
import { formatNumber, formatSpan, plural } from './format';

export interface Step {
  text: string;
  tone: 'plain' | 'good' | 'bad';
}

export function describeKind({ operation_type }: Log): string {
  return operation_type === 'incremental_patients' ? 'Changes' : 'All patients';
}

/** Why a run waits, as the middle of a sentence. */
export function describeWait({ metadata }: Log): string {
  switch (metadata.waiting_for) {
    case "Cliniko's request limit":
      return 'Cliniko’s request limit is reached';
    case 'the limit of clinisync.requests_per_minute':
      return 'the limit of requests a minute is reached';
    case 'Cliniko to answer again':
      return 'Cliniko does not answer at the moment';
    case 'the database':
      return 'the database is busy';
    default:
      return 'the run has to wait';
  }
}

function describeEnd(log: Log): Step {
  const { metadata, records_success, records_failed } = log;
  if (log.status === 'failed') {
    if (metadata.error_type === 'SYNC_CANCELLED')
      return { text: `Cancelled; ${plural(records_success, 'patient')} had been stored`, tone: 'plain' };
    return { text: `Failed: ${log.error_details ?? metadata.errors[0] ?? 'no reason was given'}`, tone: 'bad' };
  }
  const took = formatSpan(metadata.duration_ms ?? 0);
  const failed = records_failed > 0 ? `, ${formatNumber(records_failed)} could not be stored` : '';
  return { text: `Completed: ${plural(records_success, 'patient')} in ${took}${failed}`, tone: failed ? 'bad' : 'good' };
}

/** A sentence without a number that changes from look to look: for the activity log, and to be read out. */
export function describeStep(log: Log): Step {
  const { metadata } = log;
  if (log.status !== 'running') return describeEnd(log);
  const found = metadata.patients_found;
  const text: Record<string, string> = {
    queued: 'Waiting for its turn',
    connecting: 'Connecting to Cliniko',
    fetching: found === undefined ? 'Fetching patients from Cliniko' : `Found ${plural(found, 'patient')} in Cliniko`,
    storing: `Storing ${plural(found ?? 0, 'patient')}`,
    waiting: `Waiting: ${describeWait(log)}`,
    reconciling: 'Checking who no longer exists in Cliniko',
  };
  return { text: text[metadata.step] ?? 'Syncing', tone: 'plain' };
}
