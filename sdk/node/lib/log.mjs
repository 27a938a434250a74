// Log lines on stderr, as users know them.

const LOGGED_MAX_CHARS = 200;

/** What others wrote, fit for a log: one line, bounded. */
export const printable = (text) => text.slice(0, LOGGED_MAX_CHARS).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");

export class Log {
  constructor(verbose) {
    this.verbose = verbose ? (line) => this.say(line) : () => {};
  }

  say(line) {
    process.stderr.write(`${new Date().toISOString()} ${line}\n`);
  }
}
