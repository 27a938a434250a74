// One socket to a relay: upgrade, device_info, heartbeats, and its tunnels. The relay chooses binary-v1 or binary-v2.

import { performance } from "node:perf_hooks";

import { WebSocket } from "ws";

import {
  Malformed, Mux, PROTOCOL_V2, Reason, TOKEN_BYTES, header, maskedMessage, number, parseBinary, parseMux, parseOpen, parseText,
  reasonFrame,
} from "./frames.mjs";
import { printable } from "./log.mjs";
import { VERSION } from "./settings.mjs";
import { Outbox } from "./stream.mjs";
import { Holds, Session, Tunnel } from "./tunnels.mjs";

const MESSAGE_MAX_BYTES = 4 * 1024 * 1024 + 512;
const CONNECT_TIMEOUT_MS = 15_000;
const WRITE_HIGH_BYTES = 256 * 1024;
const UNSENT_MAX_BYTES = 32 * 1024 * 1024;
const UNSENT_MAX_FRAMES = 16 * 1024; // a relay that asks and asks but never reads is left
const GOODBYE_MS = 1000;
const LOST = 1006;
export const IDENTITY_INVALID = 4001;
export const IDENTITY_REVOKED = 4002;
const REDIRECTED = 4100;

export class RelaySocket {
  constructor(device, identity, url) {
    Object.assign(this, { device, identity, url, s: device.s, log: device.log, table: device.table });
    Object.assign(this, { ws: null, wire: null, leaving: null, v2: false, stands: false, connected: false, unsent: 0, code: null });
    this.tunnels = new Map();
    this.sessions = new Map();
    this.outbox = new Outbox((head, payload) => this.sendFrame(head, payload));
    this.reading = new Holds(() => this.ws?.pause(), () => this.ws?.resume());
    const now = performance.now() / 1000;
    Object.assign(this, { heard: now, beat: now, wall: Date.now() / 1000 });
  }

  /** Serve until the socket ends; answers with the close code. */
  run() {
    const { s } = this;
    const ws = new WebSocket(this.url, [`token.${this.identity.token}`], {
      perMessageDeflate: false, maxPayload: MESSAGE_MAX_BYTES, handshakeTimeout: CONNECT_TIMEOUT_MS, ca: s.ca,
      localAddress: s.bind, followRedirects: false, autoPong: false,
    });
    this.ws = ws;
    ws.on("upgrade", (response) => (this.wire = response.socket));
    ws.on("open", () => this.opened());
    ws.on("message", (data, isBinary) => this.message(data, isBinary));
    ws.on("ping", (data) => {
      this.hear();
      this.queue((sent) => ws.pong(data, true, sent));
    });
    ws.on("unexpected-response", (request, response) => {
      if (response.statusCode === 401) this.code = IDENTITY_INVALID;
      request.destroy();
      ws.terminate();
    });
    return new Promise((resolve) => {
      ws.on("error", () => {}); // "close" follows
      ws.on("close", (code) => {
        clearInterval(this.ticking);
        this.code ??= code;
        this.leaveTunnels();
        resolve(this.code);
      });
    });
  }

  opened() {
    const { s } = this;
    this.stands = true;
    this.text("device_info", {
      country: s.country, carrier: "", currentIp: "auto", protocol: s.protocol, supportsRelayRedirect: !s.relay,
      sdkVersion: `node-${VERSION}`, osVersion: process.platform,
    });
    this.hear();
    const every = Math.min(s.times.tick, s.times.heartbeat);
    this.ticking = setInterval(() => this.tick(every), every * 1000);
  }

  hear() {
    this.heard = performance.now() / 1000;
  }

  /** A tick that comes late by the wall clock means that the device slept: the path then has `wake` to prove itself. */
  tick(every) {
    const { times } = this.s;
    const streams = this.v2 && this.tunnels.size > 0;
    const deadAfter = streams ? times.streams_dead : times.dead;
    const now = performance.now() / 1000;
    const wall = Date.now() / 1000;
    const slept = wall - this.wall - every > times.wake;
    this.wall = wall;
    if (slept) this.heard = now - Math.max(0, deadAfter - times.wake);
    const silent = now - this.heard;
    if (silent > deadAfter && this.reading.reasons.size === 0) {
      this.log.say("relay is silent: dialling again");
      this.lose();
      return;
    }
    if (streams && silent >= times.tick) this.sendFrame(header(Mux.PING, 0), Buffer.alloc(8));
    if (this.connected && (slept || now - this.beat >= times.heartbeat - every / 2)) {
      this.beat = now;
      this.text("heartbeat", {});
    }
    const oldest = performance.now() - times.idle * 1000;
    for (const tunnel of [...this.tunnels.values()]) if (tunnel.movedMs < oldest) tunnel.reaped();
    for (const session of [...this.sessions.values()]) if (session.movedMs < oldest) session.abort();
  }

  lose() {
    this.code ??= LOST;
    this.ws.terminate();
  }

  /** Close with a code, and leave the relay a moment to read it. */
  finish(code, reason) {
    if (this.code !== null) return;
    this.code = code;
    this.ws.resume();
    this.ws.close(code, reason);
    setTimeout(() => this.ws.terminate(), GOODBYE_MS).unref();
  }

  stop() {
    for (const session of [...this.sessions.values()]) session.abort();
    if (this.ws?.readyState === WebSocket.OPEN) this.finish(1000, "stopped by its owner");
    else this.lose();
  }

  leaveTunnels() {
    for (const tunnel of [...this.tunnels.values()]) tunnel.pathLost();
    for (const session of [...this.sessions.values()]) session.abort();
  }

  // frames in

  message(data, isBinary) {
    if (this.code !== null) return;
    this.hear();
    try {
      if (!isBinary) this.onText(parseText(data));
      else if (this.v2) this.onFrame(parseMux(data));
      else this.onBinary(parseBinary(data));
    } catch (fault) {
      if (!(fault instanceof Malformed)) throw fault;
      this.finish(1002, fault.message);
    }
  }

  onText({ type, payload, text }) {
    const id = text("sessionId");
    switch (type) {
      case "connected":
        this.s.own.told(text("ip"));
        this.v2 = text("protocol") === PROTOCOL_V2 && this.s.protocol === PROTOCOL_V2;
        this.connected = true;
        this.log.say(`[CONNECTED] device=${printable(text("deviceId"))}`);
        break;
      case "heartbeat_ack":
        this.log.verbose("[ACK]");
        break;
      case "error":
        this.log.say(`relay says: ${printable(text("message"))}`);
        break;
      case "relay_redirect":
        if (this.device.mayFollow(this.identity, this.url, text("relay"))) this.finish(REDIRECTED, "redirect followed");
        break;
      case "rotate_ip_request": // this peer shares a connection and does not command it
        this.text("rotation_complete", { requestId: text("requestId"), success: false, error: "not_supported" });
        break;
      case "tunnel_connect":
        this.openSession(id, text("host"), payload.port);
        break;
      case "tunnel_data":
        this.sessions.get(id)?.toTarget(legacyBytes(text("data")));
        break;
      case "tunnel_close":
        this.sessions.get(id)?.close();
        break;
    }
  }

  onBinary({ close, id, payload }) {
    const session = this.sessions.get(id);
    if (close) session?.close();
    else session?.toTarget(payload);
  }

  openSession(id, host, port) {
    if (Buffer.byteLength(id) > 255) throw new Malformed("session id too long");
    if (id === "" || this.sessions.has(id)) return;
    if (this.table.full) {
      this.openFailed(id, "unknown", "too many tunnels", 0);
      return;
    }
    this.log.verbose(`[TUNNEL_CONNECT] ${printable(host)}:${Number(port)}`);
    const session = new Session(this.table, this, id);
    this.sessions.set(id, session);
    session.start(host, Number.isInteger(port) ? port : 0);
  }

  openFailed(sessionId, reason, detail, tookMs) {
    this.text("tunnel_open_failed", { sessionId, reason, detail, durationMs: Math.round(tookMs) });
  }

  onFrame(frame) {
    if (frame === null) return;
    const { type, tunnel: id, body } = frame;
    const tunnel = this.tunnels.get(id);
    const starts = type === Mux.OPEN || type === Mux.RESUME;
    if (tunnel !== undefined && starts) throw new Malformed("tunnel id is in use");
    if (tunnel !== undefined) tunnel.receive(frame);
    else if (type === Mux.OPEN) this.open(id, parseOpen(body));
    else if (type === Mux.RESUME) this.resume(id, body);
    else if (type === Mux.PING) this.sendFrame(header(Mux.PONG, 0), body);
    else if (type === Mux.GOAWAY) this.leaving ??= setTimeout(() => this.goAway(), body.readUInt32BE(0)).unref();
  }

  open(id, given) {
    this.log.verbose(`[TUNNEL_CONNECT] ${printable(given.host)}:${given.port}`);
    if (this.table.full || this.table.byToken.has(given.token)) {
      this.sendFrame(reasonFrame(Mux.REFUSED, id, Reason.TOO_MANY_TUNNELS));
      return;
    }
    const tunnel = new Tunnel(this.table, given.token, this, id);
    this.tunnels.set(id, tunnel);
    tunnel.start(given);
  }

  resume(id, body) {
    const tunnel = this.table.byToken.get(body.toString("hex", 0, TOKEN_BYTES));
    if (tunnel === undefined) {
      this.sendFrame(reasonFrame(Mux.REFUSED, id, Reason.UNKNOWN_TUNNEL));
      return;
    }
    this.tunnels.set(id, tunnel);
    tunnel.resume(this, id, number(body, TOKEN_BYTES), number(body, TOKEN_BYTES + 8));
  }

  goAway() {
    if (this.code !== null) return;
    this.device.moveOn(this.identity, this.url);
    this.finish(REDIRECTED, "relay goes away");
  }

  // frames out

  textFrame(type, payload) {
    return JSON.stringify({ type, payload });
  }

  text(type, payload) {
    this.sendFrame(this.textFrame(type, payload));
  }

  sendFrame(head, payload) {
    if (payload === undefined) this.queue((sent) => this.ws.send(head, { mask: true }, sent));
    else this.queue((sent) => this.wire.write(maskedMessage(head, payload), sent));
    if (this.ws.bufferedAmount > WRITE_HIGH_BYTES) this.outbox.paused = true;
  }

  /** Hand something to the socket, and count what has not left yet. */
  queue(send) {
    const { ws } = this;
    if (ws.readyState !== WebSocket.OPEN) return;
    if (ws.bufferedAmount > UNSENT_MAX_BYTES || this.unsent > UNSENT_MAX_FRAMES) {
      this.lose();
      return;
    }
    this.unsent++;
    send(() => {
      this.unsent--;
      if (this.outbox.paused && ws.bufferedAmount <= WRITE_HIGH_BYTES / 2) this.outbox.resume();
    });
  }
}

function legacyBytes(text) {
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text) || text.length % 4 !== 0) throw new Malformed("tunnel_data is not base64");
  return Buffer.from(text, "base64");
}
