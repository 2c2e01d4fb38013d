import { useCallback, useEffect, useMemo, useRef, useState, useSyncExternalStore } from 'react';
import { createClient, type Client, type Organization } from './api';
import { ClinicChooser, nameOf } from './components/ClinicChooser';
import { Dashboard } from './components/Dashboard';
import { Notice } from './components/Notice';
import { ReplaceSession } from './components/ReplaceSession';
import { SignIn } from './components/SignIn';
import { describeError, type Problem } from './runs';
import type { Session } from './session';

const PARAMETER = 'clinic';

/** The clinic that the address names, so that a reload and a bookmark show the same. */
function useChosenClinic(): [string | null, (organization: string) => void] {
  const [chosen, setChosen] = useState(() => new URLSearchParams(location.search).get(PARAMETER));
  const choose = useCallback((organization: string) => {
    history.replaceState(null, '', `?${new URLSearchParams({ [PARAMETER]: organization })}`);
    setChosen(organization);
  }, []);
  return [chosen, choose];
}

/** The clinics that the token allows. */
function useOrganizations(client: Client, onSignedOut: () => void) {
  const [organizations, setOrganizations] = useState<Organization[] | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const load = useCallback(async () => {
    setProblem(null);
    try {
      setOrganizations((await client.listOrganizations()).organizations);
    } catch (error) {
      const described = describeError(error);
      if (described.kind === 'signed-out') onSignedOut();
      else setProblem(described);
    }
  }, [client, onSignedOut]);
  useEffect(() => {
    void load();
  }, [load]);
  return { organizations, problem, load };
}

function Clinics({ client, onSignedOut }: { client: Client; onSignedOut: () => void }) {
  const { organizations, problem, load } = useOrganizations(client, onSignedOut);
  const [chosen, choose] = useChosenClinic();
  const clinic = organizations?.find(({ organization_id }) => organization_id === chosen) ?? organizations?.[0];
  useEffect(() => {
    document.title = clinic ? `${nameOf(clinic)} – Patient sync` : 'Patient sync';
  }, [clinic]);
  return (
    <>
      <header>
        <h1>Patient sync</h1>
        {organizations && clinic && (
          <ClinicChooser organizations={organizations} chosen={clinic.organization_id} onChoose={choose} />
        )}
        <button type="button" className="subtle" onClick={onSignedOut}>
          Sign out
        </button>
      </header>
      {clinic ? (
        <Dashboard key={clinic.organization_id} client={client} organization={clinic} onSignedOut={onSignedOut} />
      ) : (
        <main>
          {problem ? (
            <Notice
              tone="bad"
              title={problem.message}
              actions={
                <button type="button" onClick={() => void load()}>
                  Try again
                </button>
              }
            >
              {problem.hint && <p>{problem.hint}</p>}
            </Notice>
          ) : organizations ? (
            <Notice tone="plain" title="There is no clinic that you may see">
              <p>An administrator connects one with cliniko_connect().</p>
            </Notice>
          ) : (
            <p className="quiet">Loading…</p>
          )}
        </main>
      )}
    </>
  );
}

export function App({ session }: { session: Session }) {
  const token = useSyncExternalStore(session.subscribe, session.token);
  const offered = useSyncExternalStore(session.subscribe, session.offered);
  const wasSignedIn = useRef(token !== null);
  if (token !== null) wasSignedIn.current = true;
  // A new token is a new client, so that nothing of the last one's is shown to whoever comes next.
  const client = useMemo(() => (token === null ? null : createClient({ token: session.token })), [token, session]);
  if (client === null) return <SignIn ended={wasSignedIn.current} onToken={(entered) => session.begin(entered)} />;
  return (
    <>
      <Clinics key={token} client={client} onSignedOut={session.end} />
      {offered !== null && (
        <ReplaceSession key={offered} offered={offered} onAgree={() => session.begin(offered)} onDecline={session.decline} />
      )}
    </>
  );
}
