// The token that the panel works with. An application hands it over in the fragment of the panel's URL
// (/#token=…), which browsers send to no server. It is kept for this tab alone, and survives a reload. Anybody
// can make such a link: where somebody is signed in already, its token is only offered, and used for nothing
// before they have agreed.

const STORED_AS = 'clinisync.token';
const FRAGMENT = /^#token=([A-Za-z0-9_.-]+)$/;

type Listener = () => void;

/** Whom a token is for, by what it says of itself, which nobody has checked; null where it says nothing. */
export function nameOfBearer(token: string): string | null {
  try {
    const payload = (token.split('.')[1] ?? '').replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(payload), (character) => character.charCodeAt(0));
    const claims: unknown = JSON.parse(new TextDecoder().decode(bytes));
    const names = ['name', 'email', 'sub', 'org_id', 'role'].map((claim) => (claims as Record<string, unknown>)[claim]);
    return names.find((name): name is string => typeof name === 'string' && name !== '') ?? null;
  } catch {
    return null;
  }
}

/** Whether there is a token, and which; listeners hear of a new one, of its end, and of one that is offered. */
export class Session {
  #token: string | null;
  #offered: string | null = null;
  #listeners = new Set<Listener>();

  constructor() {
    this.#token = sessionStorage.getItem(STORED_AS);
    this.#takeFragment();
    window.addEventListener('hashchange', this.#takeFragment);
  }

  /** The token, or null while nobody is signed in. */
  token = (): string | null => this.#token;

  /** A token that would take the place of the session's, or null. */
  offered = (): string | null => this.#offered;

  subscribe = (listener: Listener): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  begin(token: string): void {
    sessionStorage.setItem(STORED_AS, token);
    this.#change(token);
  }

  /** Forgets the token that was offered. */
  decline = (): void => this.#change(this.#token);

  /** The server does not accept the token any more, or the user leaves. */
  end = (): void => {
    sessionStorage.removeItem(STORED_AS);
    this.#change(null);
  };

  #takeFragment = (): void => {
    const [, token] = FRAGMENT.exec(location.hash) ?? [];
    if (token === undefined) return;
    // Not to be seen in the address bar, nor found in the history.
    history.replaceState(null, '', location.pathname + location.search);
    if (this.#token === null) this.begin(token);
    else if (token !== this.#token) this.#change(this.#token, token);
  };

  #change(token: string | null, offered: string | null = null): void {
    this.#token = token;
    this.#offered = offered;
    for (const listener of this.#listeners) listener();
  }
}
