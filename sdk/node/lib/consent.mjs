// The owner's agreement: what is shared is shown, asked once, and recorded with its version, time and method.

import { createInterface } from "node:readline/promises";

/** A setting that is missing or wrong, or an owner who did not agree: one line, exit status 2. */
export class Wrong extends Error {}

export const TERMS_VERSION = "2026-11";
export const TERMS_TEXT = `Sharing this device's connection:
  - customers' web traffic leaves through your internet connection, and uses your data allowance;
  - you are paid per GB that was carried; the rate is shown when the device registers;
  - your local network, mail ports and private addresses are never reachable through it;
  - you can stop at any time with Ctrl-C (or by stopping the process); open connections end at once.
`;

export const WITHDRAWN_TEXT =
  "consent was withdrawn: nothing is shared until the owner agrees again, on a terminal or by the account's API key";

/** By flag, else as recorded, else by asking once on a terminal. */
export async function obtainConsent(given, kept) {
  const valid = kept && kept.termsVersion === TERMS_VERSION && Number.isSafeInteger(kept.acceptedAt) && kept.method;
  if (given && given !== TERMS_VERSION) throw new Wrong(`these are not the terms: -accept-terms must be ${TERMS_VERSION}`);
  if (valid) return { termsVersion: kept.termsVersion, acceptedAt: kept.acceptedAt, method: String(kept.method) };
  if (given) return { termsVersion: TERMS_VERSION, acceptedAt: Date.now(), method: "flag" };
  if (!process.stdin.isTTY)
    throw new Wrong(`-accept-terms ${TERMS_VERSION} is needed: the owner must agree to share this connection`);
  process.stdout.write(TERMS_TEXT);
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  const answer = await terminal.question("Do you agree? [y/N] ");
  terminal.close();
  if (!["y", "yes"].includes(answer.trim().toLowerCase())) throw new Wrong("not agreed: nothing was shared");
  return { termsVersion: TERMS_VERSION, acceptedAt: Date.now(), method: "terminal" };
}
