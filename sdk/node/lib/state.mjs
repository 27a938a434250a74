// What a device keeps between starts, in a file that only its owner can read; the same file for every SDK.

import { randomBytes } from "node:crypto";
import { closeSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";

const STATE_MAX_BYTES = 64 * 1024;

/** What was kept; empty when there is nothing that can be read. */
export function readState(path) {
  try {
    if (statSync(path).size > STATE_MAX_BYTES) return {};
    const state = JSON.parse(readFileSync(path, "utf8"));
    return state !== null && typeof state === "object" && !Array.isArray(state) ? state : {};
  } catch {
    return {};
  }
}

/** Keep it: whole or not at all, readable by the owner alone. */
export function writeState(path, state) {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const part = `${path}.${randomBytes(4).toString("hex")}.part`;
  writeFileSync(part, JSON.stringify(state), { mode: 0o600, flag: "wx" });
  renameSync(part, path);
}

/** Say that this process uses the state file; answers how to let go of it. Throws when another instance has it. */
export function holdState(path) {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const lock = `${path}.lock`;
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      const file = openSync(lock, "wx", 0o600);
      writeFileSync(file, String(process.pid));
      closeSync(file);
      return () => rmSync(lock, { force: true });
    } catch (fault) {
      if (fault.code !== "EEXIST") throw fault;
      if (holderRuns(lock)) break;
      rmSync(lock, { force: true });
    }
  }
  throw new Error(`another instance uses ${path}: give each one its own name and state file`);
}

function holderRuns(lock) {
  try {
    const holder = Number(readFileSync(lock, "utf8"));
    if (!Number.isSafeInteger(holder) || holder <= 0 || holder === process.pid) return false; // a container started anew
    process.kill(holder, 0);
    return true;
  } catch (fault) {
    return fault.code === "EPERM";
  }
}
