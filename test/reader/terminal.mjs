// A terminal with a login shell in it, and somebody who types: one line at a time, each after the prompt for
// it. The shell and psql get prompts that can be told from what programs print.

import { spawn, execFileSync } from 'node:child_process';

// The shell's prompt has the status of the last command; psql's has none.
const PROMPT = /\x1e(\d+|psql)\x1e\$ $/;
const CONTINUED = /\x1f$/;
const CONFIRMATION = /\[Y\/n\] $/;
const POLL_MS = 20;

export const PSQLRC = `\\set PROMPT1 '%036psql%036$ '\n\\set PROMPT2 '%037'\n`;

export class Terminal {
  /** Opens a terminal in which a command, such as "su -l reader", starts a shell. */
  static async open(command) {
    const terminal = new Terminal(command);
    await terminal.#until(/\$ $/, 30_000);
    const prompts = `PROMPT_COMMAND='printf "\\036%s\\036" $?' PS1='$ ' PS2=$'\\x1f'`;
    await terminal.type(` stty rows 1000 cols 300; ${prompts}`);
    terminal.device = (await terminal.type('tty')).output.trim();
    return terminal;
  }

  constructor(command) {
    this.printed = '';
    this.all = '';
    // a pseudo-terminal between us and the command
    this.process = spawn('script', ['--quiet', '--flush', '--return', '--command', command, '/dev/null'], {
      env: { ...process.env, TERM: 'dumb' },
    });
    for (const stream of [this.process.stdout, this.process.stderr])
      stream.setEncoding('utf8').on('data', (text) => {
        this.printed += text;
        this.all += text;
        this.onPrinted?.();
      });
    this.ended = new Promise((resolve) => this.process.once('close', resolve));
    this.ended.then(() => {
      this.over = true;
      this.onPrinted?.();
    });
  }

  /** Waits until what was printed since the last line matches. */
  async #until(pattern, ms) {
    const deadline = Date.now() + ms;
    while (!pattern.test(this.printed)) {
      if (this.over) throw new Error(`the terminal was closed:\n${this.printed}`);
      const left = deadline - Date.now();
      if (left <= 0) throw new Error(`nothing more came in ${ms / 1000} s:\n${this.printed}`);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.onPrinted = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** Waits until the program in front reads without echoing, as it does for a password. */
  async #untilSilent(ms) {
    for (const deadline = Date.now() + ms; Date.now() < deadline; ) {
      const settings = execFileSync('stty', ['-F', this.device, '-a'], { encoding: 'utf8' });
      // an editor of lines does not echo either, but reads character by character
      if (/(^|\s)-echo\s/.test(settings) && /(^|\s)icanon\s/.test(settings)) return;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    throw new Error('nothing asks for a secret');
  }

  /**
   * Types a line and waits for the next prompt. secret: what to type when the line asks for one without
   * showing it. until: stop with Ctrl-C once this was printed. Questions of apt-get get a Y.
   * Returns { output, status, more }: more is whether the command is not yet complete.
   */
  async type(line, { secret, until, ms = 1_200_000 } = {}) {
    this.printed = '';
    this.process.stdin.write(`${line}\n`);
    if (secret !== undefined) {
      await this.#untilSilent(30_000);
      this.process.stdin.write(`${secret}\n`);
    }
    if (until) {
      await this.#until(until, ms);
      this.process.stdin.write('\x03');
    }
    for (;;) {
      await this.#until(new RegExp([PROMPT, CONTINUED, CONFIRMATION].map((one) => one.source).join('|')), ms);
      if (!CONFIRMATION.test(this.printed)) break;
      this.printed += '\n';
      this.process.stdin.write('Y\n');
    }
    const [, status] = this.printed.match(PROMPT) ?? [];
    const output = this.printed
      .replace(PROMPT, '')
      .replace(CONTINUED, '')
      .replaceAll('\r', '')
      .replace(/^[^\n]*\n/, ''); // the line's echo
    return { output, status, more: status === undefined, isPsql: status === 'psql' };
  }

  async close() {
    this.process.stdin.end();
    this.process.kill('SIGHUP');
    await this.ended;
  }
}

