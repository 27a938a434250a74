// The device as a whole: one identity, several relay sockets, redials, redirects, and a stop that works.

import { createHash, randomBytes } from "node:crypto";
import http from "node:http";
import https from "node:https";

import { Allowance, allowed } from "./limits.mjs";
import { Log, printable } from "./log.mjs";
import { IDENTITY_INVALID, IDENTITY_REVOKED, RelaySocket } from "./relay.mjs";
import { Wrong } from "./consent.mjs";
import { VERSION } from "./settings.mjs";
import { readState, writeState } from "./state.mjs";
import { Table } from "./tunnels.mjs";

const API_TIMEOUT_MS = 15_000;
const ANSWER_MAX_BYTES = 1024 * 1024;
const BACKOFF_MAX_S = 60;
const ALLOWED_CHECK_S = 20;
const HURRY_S = [0.05, 0.5];

/** The API answered with an error. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(`${status}: ${message}`);
    this.passes = status >= 500 || status === 429 || code === "IDEMPOTENCY_IN_PROGRESS";
    /** The owner took the agreement back: no SDK agrees in an owner's place. */
    this.withdrawn = code === "CONSENT_WITHDRAWN";
  }
}

export class Device {
  constructor(s) {
    this.s = s;
    this.log = new Log(s.verbose);
    this.table = new Table(s, new Allowance(s.limitMbit), this.log);
    this.sockets = new Set();
    this.stopping = new AbortController();
    Object.assign(this, { identity: null, obtaining: null, over: null, relay: null, redirectedMs: null, attempt: null });
  }

  stop() {
    this.stopping.abort();
  }

  /** Share until stopped, while the owner's schedule and charger let. Throws Refused when the API will not have it. */
  async run() {
    while (!this.stopping.signal.aborted) {
      if (!allowed(this.s)) {
        this.log.say("[PAUSED] outside the owner's hours or off the charger");
        await this.until(() => allowed(this.s), this.stopping.signal);
        continue;
      }
      await this.serve();
    }
  }

  async serve() {
    const ending = new AbortController();
    const signal = AbortSignal.any([ending.signal, this.stopping.signal]);
    const lines = Array.from({ length: this.s.connections }, () => this.line(signal));
    const paused = this.until(() => !allowed(this.s), signal);
    try {
      await Promise.race([paused, ...lines]);
    } finally {
      ending.abort();
      this.table.stop();
      for (const socket of this.sockets) socket.stop();
      await Promise.allSettled(lines);
    }
  }

  async until(condition, signal) {
    while (!signal.aborted && !condition()) await pause(ALLOWED_CHECK_S, signal);
  }

  /**
   * One of the parallel sockets. It goes to another relay at once, but in a row to no more than there are: who is sent
   * round waits like others.
   */
  async line(signal) {
    let identity = await this.identify(null, signal);
    let hurried = false;
    let failures = 0;
    let hops = 0;
    while (!signal.aborted) {
      const url = this.relay ?? identity.relay;
      const began = performance.now();
      const socket = new RelaySocket(this, identity, url);
      this.sockets.add(socket);
      const code = await socket.run();
      this.sockets.delete(socket);
      if (signal.aborted) return;
      failures = socket.connected ? 0 : failures + 1;
      if (!socket.stands) {
        this.log.say("relay not reached");
        this.moveOn(identity, url);
      }
      if (performance.now() - began > this.s.times.redial_max * 1000) hops = 0;
      hops++;
      if ((this.relay ?? identity.relay) !== url && Math.max(hops, failures) <= identity.relays.length) continue;
      hops = 0;
      if (code === IDENTITY_INVALID || code === IDENTITY_REVOKED) identity = await this.identify(identity, signal);
      hurried = this.table.byToken.size > 0 && !hurried;
      await pause(this.redialIn(hurried, failures), signal);
    }
  }

  /** Hurried while tunnels wait to be resumed, but never twice in a row; full jitter; longer while no relay answers. */
  redialIn(hurried, failures) {
    const { redial_min: min, redial_max: max } = this.s.times;
    const low = hurried ? HURRY_S[0] : min;
    let high = hurried ? HURRY_S[1] : max;
    if (failures > 1) high = Math.max(high, Math.min(BACKOFF_MAX_S, max * 2 ** Math.min(failures - 1, 10)));
    return low + Math.random() * Math.max(0, high - low);
  }

  /** Only elsewhere, to relays that the API named, once a while; other sockets follow the first one. A pinned relay is kept. */
  mayFollow(identity, url, target) {
    if (target === "" || target === url || this.s.relay) return false;
    if (target === this.relay) return true;
    const recent = this.redirectedMs !== null && performance.now() - this.redirectedMs < this.s.times.redirect * 1000;
    if (recent || !identity.relays.includes(target)) return false;
    this.redirectedMs = performance.now();
    this.relay = target;
    this.log.say(`moving to relay ${printable(target)}`);
    return true;
  }

  /** A relay goes away or is not reached: every socket tries the next one that the API named. */
  moveOn(identity, url) {
    const { relays } = identity;
    if (this.s.relay || (this.relay ?? identity.relay) !== url || relays.length < 2) return;
    this.relay = relays[(relays.indexOf(url) + 1) % relays.length];
    this.redirectedMs = performance.now();
    this.log.say(`moving on to relay ${printable(this.relay)}`);
  }

  /** Another identity than the stale one, fetched once for everybody, however long the API takes. */
  async identify(stale, signal) {
    for (let waitS = 1; ; waitS = Math.min(2 * waitS, BACKOFF_MAX_S)) {
      if (this.identity !== null && this.identity.token !== stale?.token) return this.identity;
      if (this.over !== null) throw this.over; // the API's last word: no other socket asks again
      this.obtaining ??= this.obtain(stale, signal).finally(() => (this.obtaining = null));
      try {
        this.identity = await this.obtaining;
        return this.identity;
      } catch (fault) {
        if (signal.aborted) return this.identity;
        if (fault instanceof Refused && !fault.passes) throw (this.over = fault);
        this.log.say(`API: ${fault instanceof Refused ? fault.message : `not reached (${fault.code ?? fault.name})`}`);
      }
      await pause(2 * waitS * Math.random(), signal); // full jitter
    }
  }

  async obtain(stale, signal) {
    const { s } = this;
    let kept = stale ?? (s.randomName ? {} : readState(s.state));
    if (stale === null && kept.name !== undefined && kept.name !== s.name) kept = {};
    try {
      return await this.obtainWith(kept, signal);
    } catch (fault) {
      const withdrawn = kept.deviceId ?? kept.withdrawn; // kept so that the next start asks again, and tells the API
      if (fault instanceof Refused && !fault.passes) this.attempt = null; // another registration is another attempt
      if (fault instanceof Refused && fault.withdrawn && !s.randomName) writeState(s.state, { name: s.name, withdrawn });
      else if (fault instanceof Refused && !fault.passes && !s.randomName) this.forgetAttempt();
      throw fault;
    }
  }

  async obtainWith({ deviceId, refreshToken, withdrawn }, signal) {
    const { s } = this;
    if (deviceId && refreshToken) {
      try {
        const path = `/v1/peer/agents/${encodeURIComponent(deviceId)}/refresh`;
        return this.keep(deviceId, refreshToken, await callApi(s, path, { refreshToken }, signal));
      } catch (fault) {
        if (!(fault instanceof Refused) || fault.passes || fault.withdrawn) throw fault;
      }
    }
    if (withdrawn && s.key && s.consent.method !== "flag") {
      // a person agreed anew: what is sent along with a registration does not count
      const path = `/v1/peer/my-devices/${encodeURIComponent(withdrawn)}/consent`;
      await callApi(s, path, s.consent, signal, { "X-API-Key": s.key });
    }
    const body = {
      name: s.name, type: "node", connectionMethod: "relay", sdkVersion: `node-${VERSION}`, consent: s.consent,
      ownerTokens: true, ...(s.key && { apiKey: s.key }), ...(s.wallet && { walletAddress: s.wallet }),
    };
    const once = { "Idempotency-Key": this.attemptKey(body) };
    const answer = await callApi(s, "/v1/peer/agents/register", body, signal, once);
    if (!answer.token || !answer.deviceId) throw new Error("answer not understood");
    return this.keep(String(answer.deviceId), "", answer);
  }

  /**
   * What names a registration until it is answered, also over a restart: whoever lost the answer gets it again, and a device
   * without an API key is known by it as the one that began.
   */
  attemptKey(body) {
    const { name, state, consent, randomName } = this.s;
    const read = randomName ? {} : readState(state);
    const kept = read.name === undefined || read.name === name ? read : {};
    this.attempt ??= kept.attempt ?? randomBytes(16).toString("hex");
    if (!randomName && kept.attempt !== this.attempt) writeState(state, { ...kept, name, consent, attempt: this.attempt });
    return createHash("sha256").update(`${this.attempt}\n${JSON.stringify(body)}`).digest("hex");
  }

  forgetAttempt() {
    const { attempt, ...kept } = readState(this.s.state);
    if (attempt !== undefined && kept.name === this.s.name) writeState(this.s.state, kept);
  }

  keep(deviceId, before, answer) {
    const { s } = this;
    this.attempt = null;
    const identity = {
      deviceId, token: String(answer.token), refreshToken: String(answer.refreshToken || before),
      relay: s.relay || String(answer.relay), relays: (answer.relays ?? []).map(String),
    };
    const { name, consent } = s;
    if (!s.randomName) writeState(s.state, { name, deviceId, refreshToken: identity.refreshToken, consent });
    const [id, relay, rate] = [deviceId, identity.relay, answer.earningsPerGB ?? "?"].map((told) => printable(String(told)));
    this.log.say(`[REGISTERED] device=${id} relay=${relay} sockets=${s.connections} usdcPerGB=${rate}`);
    return identity;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, seconds * 1000);
    signal.addEventListener("abort", done);
  });
}

/** Take the agreement back, by the owner's key or by the device's own token. */
export async function withdraw(s) {
  const kept = readState(s.state);
  const { name, deviceId, refreshToken } = kept;
  if (!deviceId || !refreshToken || name !== s.name) throw new Wrong(`${s.state} holds no registered device of this name`);
  const signal = AbortSignal.timeout(2 * API_TIMEOUT_MS);
  const id = encodeURIComponent(deviceId);
  let [path, caller] = [`/v1/peer/my-devices/${id}/consent`, { "X-API-Key": s.key }];
  if (!s.key) {
    const fresh = await callApi(s, `/v1/peer/agents/${id}/refresh`, { refreshToken, purpose: "owner" }, signal);
    // the one that was shown is spent, whatever becomes of the order
    writeState(s.state, { ...kept, refreshToken: String(fresh.refreshToken || refreshToken) });
    [path, caller] = [`/v1/peer/agents/${id}/consent`, { Authorization: `Bearer ${fresh.token}` }];
  }
  await callApi(s, path, {}, signal, caller, "DELETE");
  writeState(s.state, { name, withdrawn: deviceId });
}

/** One JSON call, with a header for who calls; without one the answer must hold a token. */
function callApi(s, path, body, stopping, caller, method = "POST") {
  const url = new URL(s.api + path);
  const raw = JSON.stringify(body);
  const headers = {
    "Content-Type": "application/json", "Content-Length": Buffer.byteLength(raw), ...caller,
  };
  const signal = AbortSignal.any([AbortSignal.timeout(API_TIMEOUT_MS), stopping]);
  const options = { method, headers, ca: s.ca, localAddress: s.bind, signal, agent: false };
  return new Promise((resolve, reject) => {
    const request = (url.protocol === "https:" ? https : http).request(url, options, (response) => {
      const parts = [];
      let size = 0;
      response.on("data", (part) => {
        size += part.length;
        if (size > ANSWER_MAX_BYTES) request.destroy(new Error("answer too long"));
        parts.push(part);
      });
      response.on("error", reject);
      response.on("end", () => {
        let answer = {};
        try {
          answer = JSON.parse(Buffer.concat(parts).toString()) ?? {};
        } catch {
          // told by what is missing
        }
        const { code, message } = answer;
        if (response.statusCode !== 200) reject(new Refused(response.statusCode, code, printable(String(message ?? ""))));
        else if (!answer.token && !caller) reject(new Error("answer not understood"));
        else resolve(answer);
      });
    });
    request.on("error", reject);
    request.end(raw);
  });
}
