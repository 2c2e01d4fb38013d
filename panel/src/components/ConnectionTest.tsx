import { useState } from 'react';
import type { Client, Connection } from '../api';
import { formatNumber } from '../format';
import { describeError, type Problem } from '../runs';
import { Notice } from './Notice';

type Test = { step: 'none' | 'asking' } | { step: 'answered'; connection: Connection } | { step: 'refused'; problem: Problem };

function Answer({ connection }: { connection: Connection }) {
  if (!connection.success)
    return (
      <Notice tone="bad" title="Cliniko does not let us in">
        <p>{connection.message}</p>
        <p className="quiet">{connection.error_code}</p>
      </Notice>
    );
  return (
    <Notice tone="good" title={`Connected to ${connection.account?.name ?? 'Cliniko'}`}>
      <p>
        {formatNumber(connection.total_patients)} patients, {formatNumber(connection.active_patients)} of them active.
        Cliniko answered in {formatNumber(connection.latency_ms)} ms
        {connection.role === null ? '.' : `; the key’s user is ${connection.role}.`}
      </p>
    </Notice>
  );
}

/** Asks Cliniko whether the clinic's key works, and says what to do where it does not. Stores nothing. */
export function ConnectionTest({ client, organization }: { client: Client; organization: string }) {
  const [test, setTest] = useState<Test>({ step: 'none' });
  const ask = async () => {
    setTest({ step: 'asking' });
    try {
      setTest({ step: 'answered', connection: await client.testConnection(organization) });
    } catch (error) {
      setTest({ step: 'refused', problem: describeError(error) });
    }
  };
  return (
    <div className="connection">
      <div className="actions">
        <button type="button" disabled={test.step === 'asking'} onClick={() => void ask()}>
          {test.step === 'asking' ? 'Asking Cliniko…' : 'Test the connection'}
        </button>
      </div>
      {test.step === 'answered' && <Answer connection={test.connection} />}
      {test.step === 'refused' && (
        <Notice tone="bad" title={test.problem.message}>
          {test.problem.hint && <p>{test.problem.hint}</p>}
        </Notice>
      )}
    </div>
  );
}
