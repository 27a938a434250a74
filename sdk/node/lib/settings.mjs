// What the owner of a device can set: flags, each of which also reads a variable. The same in every SDK.

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { homedir, hostname } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

import { TERMS_VERSION, Wrong, obtainConsent } from "./consent.mjs";
import { OwnNetworks, canonicalPair } from "./egress.mjs";
import { onCharger, parseSchedule } from "./limits.mjs";
import { readState } from "./state.mjs";

export const VERSION = "0.1.0";
const MAX_SOCKETS = 8;

/** Waits in seconds; `dead` and one `tick` make the 45 s within which a dead path is noticed. Only a lab may shorten them. */
export const TIMES = {
  redial_min: 5, redial_max: 7, heartbeat: 30, dead: 40, streams_dead: 15, tick: 5, wake: 10, idle: 960, redirect: 60,
  resume: 20, dial: 8,
};

const FLAGS = [
  ["api", "PSX_API", "", "API base URL"],
  ["key", "API_KEY", "", "API key; others can read a command line, so rather use the variable or -key-file"],
  ["key-file", "", "", "file that holds the API key"],
  ["name", "AGENT_NAME", "", "stable name of this device"],
  ["country", "COUNTRY", "US", "country; the API decides by the address"],
  ["connections", "WS_CONNECTIONS", "4", "relay sockets, 1-8"],
  ["wallet", "WALLET", "", "payout wallet"],
  ["state", "PEER_STATE_FILE", join(homedir(), ".psx-peer-state.json"), "identity file"],
  ["relay", "RELAY_URL", "", "pin a relay; else the API chooses"],
  ["bind", "PEER_BIND", "", "local address of all connections"],
  ["ca-file", "PSX_CA_FILE", "", "trust these certificates instead of the system's"],
  ["limit-mbit", "PSX_LIMIT_MBIT", "", "at most so many Mbit/s, both directions together"],
  ["schedule", "PSX_SCHEDULE", "", "share only at these hours, HH:MM-HH:MM, local time"],
  ["accept-terms", "PSX_ACCEPT_TERMS", "", `agree to version ${TERMS_VERSION} of the terms`],
];
const SWITCHES = [
  ["only-charging", "PSX_ONLY_CHARGING", "share only on mains power"],
  ["random-name", "", "be a new device at every start"],
  ["withdraw", "", "take the agreement back: what runs ends within seconds"],
  ["verbose", "VERBOSE", "log tunnels"],
  ["dry-run", "", "show what would be done, and do nothing"],
  ["help", "", "show this"],
];

const truth = (text) => ["true", "1", "yes"].includes(text ?? "");

export function help() {
  const line = (name, variable, what) => `  -${name}\n        ${what}${variable ? ` [${variable}]` : ""}`;
  return [
    "psx-peer: share this device's internet connection and earn USDC. Flags, and the variables they read:",
    ...FLAGS.map(([name, variable, , what]) => line(name, variable, what)),
    ...SWITCHES.map(([name, variable, what]) => line(name, variable, what)),
  ].join("\n");
}

/** Settings, all checked but for the owner's agreement; null when help was wanted. */
function parse(args) {
  const options = {};
  for (const [name] of FLAGS) options[name] = { type: "string" };
  for (const [name] of SWITCHES) options[name] = { type: "boolean" };
  let values;
  try {
    const double = args.map((arg) => (/^-[a-z][a-z-]/.test(arg) ? `-${arg}` : arg)); // one dash is as good as two
    ({ values } = parseArgs({ args: double, options, strict: true, allowPositionals: false }));
  } catch (fault) {
    throw new Wrong(fault.message.split("\n")[0]);
  }
  const given = {};
  for (const [name, variable, otherwise] of FLAGS)
    given[name] = values[name] ?? ((variable && process.env[variable]) || otherwise);
  for (const [name, variable] of SWITCHES) given[name] = values[name] ?? truth(variable && process.env[variable]);
  return given;
}

/** Everything that a run needs. Asks on a terminal when nobody agreed yet. */
export async function readSettings(args) {
  const given = parse(args);
  if (given.help) return null;
  const lab = process.env.PSX_STAGE === "local";
  const s = {
    api: given.api.replace(/\/+$/, ""),
    key: given["key-file"] ? readKey(given["key-file"]) : given.key,
    country: given.country,
    wallet: given.wallet,
    state: given.state,
    relay: given.relay,
    bind: given.bind || undefined,
    ca: given["ca-file"] ? readCertificates(given["ca-file"]) : undefined,
    connections: Number(given.connections),
    limitMbit: given["limit-mbit"] ? Number(given["limit-mbit"]) : null,
    schedule: given.schedule ? parseSchedule(given.schedule) : null,
    onlyCharging: given["only-charging"],
    randomName: given["random-name"],
    verbose: given.verbose,
    dryRun: given["dry-run"],
    withdraw: given.withdraw,
    protocol: process.env.PSX_PROTOCOL === "binary-v1" ? "binary-v1" : "binary-v2",
    labAllow: new Set(lab ? (process.env.PSX_EGRESS_LAB_ALLOW ?? "").split(",").filter(Boolean).map(canonicalPair) : []),
    own: new OwnNetworks(),
    times: lab ? labTimes(process.env.PSX_LAB_TIMES ?? "") : { ...TIMES },
  };
  check(s, given, lab);
  const kept = s.randomName ? {} : readState(s.state);
  const fresh = `${hostname()}-${randomBytes(4).toString("hex")}`;
  s.name = s.randomName ? fresh : given.name || (typeof kept.name === "string" && kept.name) || fresh;
  s.consent = s.dryRun || s.withdraw ? { termsVersion: given["accept-terms"] } : await obtainConsent(given["accept-terms"], kept.consent);
  return s;
}

function check(s, given, lab) {
  if (!s.api) throw new Wrong("-api is missing: the API's base URL");
  if (!s.api.startsWith("https://") && !lab)
    throw new Wrong("-api must begin with https://: the API key would travel in the clear");
  if (!s.key && !s.wallet && !s.withdraw) throw new Wrong("no API key: set API_KEY or -key-file (or give -wallet alone)");
  if (!/^\d+$/.test(given.connections) || s.connections < 1 || s.connections > MAX_SOCKETS)
    throw new Wrong("-connections must be 1 to 8");
  if (s.limitMbit !== null && !(s.limitMbit > 0 && s.limitMbit < 1e6))
    throw new Wrong("-limit-mbit must be a number above 0");
  if (given.schedule && s.schedule === null) throw new Wrong("a schedule is HH:MM-HH:MM");
  if (s.onlyCharging && onCharger() === null)
    throw new Wrong("-only-charging: this machine does not say whether it is on mains power");
}

function readKey(path) {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (fault) {
    throw new Wrong(`-key-file: ${fault.code}`);
  }
}

function readCertificates(path) {
  try {
    return readFileSync(path);
  } catch (fault) {
    throw new Wrong(`-ca-file: ${fault.code}`);
  }
}

function labTimes(text) {
  const times = { ...TIMES };
  for (const entry of text.split(",")) {
    const [name, value] = entry.split("=");
    if (name in times) times[name] = Number(value);
  }
  return times;
}
