import { useEffect, type ReactNode } from 'react';
import type { Client, Organization } from '../api';
import { useRuns } from '../runs';
import { ConnectionProblem } from './ConnectionProblem';
import { ConnectionTest } from './ConnectionTest';
import { FailedPatients } from './FailedPatients';
import { LiveActivityLog } from './LiveActivityLog';
import { Notice } from './Notice';
import { Patients } from './Patients';
import { RunHistory } from './RunHistory';
import { SyncButton } from './SyncButton';
import { Totals } from './Totals';

interface DashboardProps {
  client: Client;
  organization: Organization;
  /** The server does not accept the token any more. */
  onSignedOut: () => void;
}

interface CardProps {
  id: string;
  title: string;
  size?: 'wide' | 'tall';
  children: ReactNode;
}

function Card({ id, title, size, children }: CardProps) {
  return (
    <section className={size ? `card ${size}` : 'card'} aria-labelledby={id}>
      <h2 id={id}>{title}</h2>
      {children}
    </section>
  );
}

/** Everything about one clinic. */
export function Dashboard({ client, organization, onSignedOut }: DashboardProps) {
  const id = organization.organization_id;
  const { problem } = useRuns(client, id);
  useEffect(() => {
    if (problem?.kind === 'signed-out') onSignedOut();
  }, [problem, onSignedOut]);
  const parts = { client, organization: id };
  return (
    <main>
      <ConnectionProblem {...parts} />
      {!organization.connected && (
        <Notice tone="bad" title="This clinic is not connected">
          <p>An administrator has to pass its API key to cliniko_connect().</p>
        </Notice>
      )}
      {!organization.sync_enabled && (
        <Notice tone="plain" title="Syncs of this clinic are switched off">
          <p>An administrator can switch them on with cliniko_set_sync_enabled().</p>
        </Notice>
      )}
      <div className="cards">
        <Card id="totals-title" title="Patients" size="wide">
          <Totals {...parts} />
        </Card>
        <Card id="sync-title" title="Sync">
          <SyncButton {...parts} />
        </Card>
        <Card id="activity-title" title="Live activity" size="tall">
          <LiveActivityLog {...parts} />
        </Card>
        <Card id="connection-title" title="Connection to Cliniko">
          <ConnectionTest {...parts} />
        </Card>
        <FailedPatients {...parts} />
        <Card id="history-title" title="History" size="wide">
          <RunHistory {...parts} />
        </Card>
        <Card id="patients-title" title="Active patients" size="wide">
          <Patients {...parts} />
        </Card>
      </div>
    </main>
  );
}
