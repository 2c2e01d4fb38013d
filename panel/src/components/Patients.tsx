import { useEffect, useState } from 'react';
import type { Client, Patient } from '../api';
import { formatAge, formatDate, formatExact, formatNumber, plural } from '../format';
import { describeError, useRuns, type Problem } from '../runs';
import { Notice } from './Notice';

const PAGE = 25;
const TYPING_MS = 300;

interface Page {
  patients: Patient[];
  total: number;
  offset: number;
  hasNext: boolean;
}

/** The value, once it has not changed for a while. */
function useSettled(value: string, afterMs: number): string {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), afterMs);
    return () => clearTimeout(timer);
  }, [value, afterMs]);
  return settled;
}

/** A page of patients, asked for anew when what is searched for changes, or `version` does. */
function usePage(client: Client, organization: string, search: string, offset: number, version: unknown) {
  const [page, setPage] = useState<Page | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    let wanted = true;
    client
      .activePatients(organization, { search, offset, limit: PAGE })
      .then(({ patients, pagination }) => {
        if (!wanted) return;
        setPage({ patients, total: pagination.total, offset: pagination.offset, hasNext: pagination.has_next });
        setProblem(null);
      })
      .catch((error: unknown) => {
        if (wanted) setProblem(describeError(error));
      });
    return () => {
      wanted = false;
    };
  }, [client, organization, search, offset, version]);
  return { page, problem };
}

function Row({ patient, now }: { patient: Patient; now: number }) {
  const name = [patient.first_name, patient.last_name].filter(Boolean).join(' ');
  return (
    <tr>
      <th scope="row">{name || '–'}</th>
      <td>{patient.date_of_birth === null ? '–' : formatDate(patient.date_of_birth)}</td>
      <td>{patient.email ?? '–'}</td>
      <td>{patient.phone ?? '–'}</td>
      <td className="figure">{patient.cliniko_patient_id}</td>
      <td>
        {patient.last_synced === null ? (
          '–'
        ) : (
          <time dateTime={patient.last_synced} title={formatExact(patient.last_synced)}>
            {formatAge(patient.last_synced, now)}
          </time>
        )}
      </td>
    </tr>
  );
}

/** The clinic's active patients, searchable by name and e-mail address, a page at a time. */
export function Patients({ client, organization }: { client: Client; organization: string }) {
  const [typed, setTyped] = useState('');
  const [offset, setOffset] = useState(0);
  const search = useSettled(typed.trim(), TYPING_MS);
  const { status } = useRuns(client, organization);
  const { page, problem } = usePage(client, organization, search, offset, status?.last_sync);
  useEffect(() => setOffset(0), [search]);
  const last = page === null ? 0 : page.offset + page.patients.length;
  return (
    <>
      <div className="search">
        <label htmlFor="search">Search by name or e-mail address</label>
        <input id="search" type="search" maxLength={100} value={typed} autoComplete="off" spellCheck={false} onChange={(event) => setTyped(event.target.value)} />
      </div>
      {problem && (
        <Notice tone="bad" title={problem.message}>
          {problem.hint && <p>{problem.hint}</p>}
        </Notice>
      )}
      {page && page.patients.length > 0 && (
        <div className="scroller" role="region" aria-label="List of active patients" tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">Name</th>
                <th scope="col">Born</th>
                <th scope="col">E-mail</th>
                <th scope="col">Phone</th>
                <th scope="col" className="figure">Number in Cliniko</th>
                <th scope="col">Changed here</th>
              </tr>
            </thead>
            <tbody>
              {page.patients.map((patient) => (
                <Row key={patient.cliniko_patient_id} patient={patient} now={client.serverNow()} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {page && (
        <div className="pager">
          <p className="quiet" role="status">
            {page.total === 0
              ? search === ''
                ? 'No active patients yet.'
                : 'Nobody is called like that.'
              : `${formatNumber(page.offset + 1)} to ${formatNumber(last)} of ${plural(page.total, 'active patient')}`}
          </p>
          <div className="actions" hidden={page.total <= PAGE}>
            <button type="button" disabled={page.offset === 0} onClick={() => setOffset(Math.max(0, page.offset - PAGE))}>
              Previous
            </button>
            <button type="button" disabled={!page.hasNext} onClick={() => setOffset(page.offset + PAGE)}>
              Next
            </button>
          </div>
        </div>
      )}
    </>
  );
}
