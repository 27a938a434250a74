#!/usr/bin/env node
// psx-peer: shares this device's connection through a psx relay until Ctrl-C, with its owner's recorded agreement.

process.env.UV_THREADPOOL_SIZE ??= "64"; // half of them look names up: slow ones must not hold the others up

const { TERMS_TEXT, WITHDRAWN_TEXT, Wrong } = await import("./lib/consent.mjs");
const { Device, Refused, withdraw } = await import("./lib/device.mjs");
const { help, readSettings } = await import("./lib/settings.mjs");
const { holdState } = await import("./lib/state.mjs");

function dryRun(s) {
  const { name, api, connections, protocol, state, relay, limitMbit } = s;
  const plan = { name, api, connections, protocol, state, relay, limitMbit, termsAccepted: s.consent.termsVersion };
  process.stdout.write(`${TERMS_TEXT}${JSON.stringify(plan, null, 2)}\n`);
}

async function main() {
  const s = await readSettings(process.argv.slice(2));
  if (s === null) return void process.stdout.write(`${help()}\n`);
  if (s.dryRun) return dryRun(s);
  if (s.withdraw) {
    await withdraw(s);
    return void process.stdout.write(`${s.name}: withdrawn, nothing of it is shared any more\n`);
  }
  const release = s.randomName ? () => {} : holdState(s.state);
  const device = new Device(s);
  for (const name of ["SIGINT", "SIGTERM"]) process.on(name, () => device.stop());
  try {
    await device.run();
  } finally {
    release();
  }
}

let status = 0;
try {
  await main();
} catch (fault) {
  const refused = fault instanceof Refused;
  const said = fault.withdrawn ? WITHDRAWN_TEXT : `${refused ? "the API refused this device: " : ""}${fault.message}`;
  process.stderr.write(`psx-peer: ${said}\n`);
  status = fault instanceof Wrong || fault.withdrawn ? 2 : 1;
}
process.exit(status);
