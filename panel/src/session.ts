// The token that the panel works with. An application hands it over in the fragment of the panel's URL
// (/#token=…), which browsers send to no server. It is kept for this tab alone, and survives a reload.

const STORED_AS = 'clinisync.token';
const FRAGMENT = /^#token=([A-Za-z0-9_.-]+)$/;

type Listener = () => void;

/** Whether there is a token, and which; listeners hear of a new one, and of its end. */
export class Session {
  #token: string | null;
  #listeners = new Set<Listener>();

  constructor() {
    this.#token = sessionStorage.getItem(STORED_AS);
    this.#takeFragment();
    window.addEventListener('hashchange', this.#takeFragment);
  }

  /** The token, or null while nobody is signed in. */
  token = (): string | null => this.#token;

  subscribe = (listener: Listener): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  begin(token: string): void {
    sessionStorage.setItem(STORED_AS, token);
    this.#change(token);
  }

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
    this.begin(token);
  };

  #change(token: string | null): void {
    this.#token = token;
    for (const listener of this.#listeners) listener();
  }
}
