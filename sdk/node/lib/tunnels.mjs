// Tunnels of binary-v2 and sessions of binary-v1: a socket of a relay on one side, a target on the other.

import { performance } from "node:perf_hooks";

import { DialFailure, dialTarget } from "./egress.mjs";
import { Mux, Reason, binaryPrefix, header, number, numbersFrame, reasonFrame } from "./frames.mjs";
import { FlowViolation, PENDING_HIGH_BYTES, Stream, WindowBudget, keep } from "./stream.mjs";

const MAX_TUNNELS = 256;
const WINDOWS_MAX_BYTES = 64 * 1024 * 1024;
const TARGET_HIGH_BYTES = 256 * 1024;
const SESSION_QUEUE_BYTES = 8 * 1024 * 1024;
const FLUSH_MAX_MS = 30_000;
const VIEW_MIN_BYTES = 16 * 1024;
const BLOCKED_MAX_MS = 30_000;

/** All tunnels of a device, whichever socket they are on. */
export class Table {
  constructor(s, allowance, log) {
    Object.assign(this, { s, allowance, log, byToken: new Map(), sessions: 0 });
    this.budget = new WindowBudget(WINDOWS_MAX_BYTES);
  }

  get full() {
    return this.byToken.size + this.sessions >= MAX_TUNNELS;
  }

  stop() {
    for (const tunnel of [...this.byToken.values()]) tunnel.abort();
  }
}

/** Holds that add up: what is held for several reasons is let go when the last one ends. */
class Holds {
  constructor(hold, release) {
    Object.assign(this, { hold, release, reasons: new Set() });
  }

  /** One timer for a reason, however often it is given again. */
  add(reason, forMs = 0) {
    if (forMs > 0 && this.reasons.has(reason)) return;
    this.reasons.add(reason);
    this.hold();
    if (forMs > 0) setTimeout(() => this.drop(reason), forMs);
  }

  drop(reason) {
    if (this.reasons.delete(reason) && this.reasons.size === 0) this.release();
  }
}

/** Bytes of a message, to be kept: a view of a few would keep all that was read from the socket with them. */
function own(data) {
  return data.length < VIEW_MIN_BYTES ? Buffer.from(data) : data;
}

function flushAndClose(target) {
  if (target === null || target.destroyed) return;
  target.end();
  const late = setTimeout(() => target.destroy(), FLUSH_MAX_MS);
  late.unref();
  target.resume(); // what it still says is nobody's
  target.once("end", () => target.destroySoon());
}

export class Tunnel {
  constructor(table, token, socket, id) {
    Object.assign(this, { table, socket, id, target: null, epoch: 0, ended_: false, targetEnded: false, targetGone: false });
    this.stream = new Stream(this, token, table.budget);
    this.cancelled = new AbortController();
    this.source = new Holds(() => this.target?.pause(), () => this.target?.resume());
    this.sink = new Holds(() => this.stream.stall(), () => this.ended_ || this.stream.drained());
    this.movedMs = performance.now();
    table.byToken.set(token, this);
  }

  async start({ host, port, limit }) {
    let target;
    try {
      target = await dialTarget(this.table.s, host, port, this.cancelled.signal);
    } catch (fault) {
      const { reason = Reason.UNREACHABLE, message } = fault instanceof DialFailure ? fault : {};
      this.say(reasonFrame(Mux.REFUSED, this.id, reason, message));
      this.leave();
      return;
    }
    if (this.ended_ || this.socket === null) {
      target.destroy();
      return;
    }
    this.table.log.verbose(`[TCP_OPEN_OK] ${this.id}`);
    this.target = target;
    this.listen(target);
    this.say(numbersFrame(Mux.OPENED, this.id, this.stream.told));
    this.stream.attach(this.socket.outbox, this.id);
    this.stream.onOpened(limit);
  }

  listen(target) {
    target.on("data", (data) => {
      this.stream.write(data);
      this.moved(data.length, this.source);
    });
    target.on("end", () => {
      this.targetEnded = true;
      this.stream.writeEof();
    });
    target.on("drain", () => this.sink.drop("buffer"));
    target.on("error", () => this.lost());
    target.on("close", () => this.lost());
  }

  lost() {
    if (this.ended_ || (this.targetEnded && this.stream.eofReceived)) return;
    this.targetGone = true;
    this.sink.add("nobody reads");
    this.tellTargetIsGone();
  }

  /** What the target had said, and that it had ended, comes first; where the path is lost, another one. */
  tellTargetIsGone() {
    if (this.socket === null || (this.targetEnded && !this.stream.delivered)) return;
    this.say(reasonFrame(Mux.RESET, this.id, Reason.TARGET_RESET));
    this.abort();
  }

  moved(size, holds) {
    this.movedMs = performance.now();
    const waitMs = this.table.allowance.spend(size);
    if (waitMs > 0) holds.add("allowance", waitMs);
  }

  // the stream's sink

  deliver(data) {
    this.moved(data.length, this.sink);
    if (this.target === null || this.target.destroyed || this.target.writableEnded) return;
    this.target.write(data);
    if (this.target.writableLength > TARGET_HIGH_BYTES) this.sink.add("buffer");
  }

  ended() {
    this.target?.end();
  }

  pauseSource() {
    this.source.add("path");
  }

  resumeSource() {
    this.source.drop("path");
  }

  // frames of the gateway

  receive({ type, body }) {
    if (this.target === null && type !== Mux.RESET && type !== Mux.CLOSE && type !== Mux.DATA) return;
    this.withRules(() => {
      if (type === Mux.DATA) this.stream.onData(own(body));
      else if (type === Mux.WINDOW) this.stream.onWindow(number(body, 0), number(body, 8));
      else if (type === Mux.BLOCKED) this.stream.onBlocked(number(body, 0));
      else if (type === Mux.EOF) this.stream.onEof();
      else if (type === Mux.CLOSE) this.finish();
      else if (type === Mux.RESET && body[0] === Reason.PATH_LOST) this.pathLost();
      else if (type === Mux.RESET) this.abort();
    });
  }

  withRules(action) {
    try {
      action();
      if (!this.ended_ && this.stream.over) this.finish();
      if (!this.ended_ && this.targetGone) this.tellTargetIsGone();
    } catch (fault) {
      if (!(fault instanceof FlowViolation)) throw fault;
      this.table.log.say(`tunnel ended: ${fault.message}`);
      this.say(reasonFrame(Mux.RESET, this.id, Reason.FLOW_VIOLATION));
      this.abort();
    }
  }

  resume(socket, id, received, limit) {
    this.socket?.tunnels.delete(this.id);
    Object.assign(this, { socket, id });
    this.epoch++;
    this.stream.attach(socket.outbox, id);
    this.say(numbersFrame(Mux.RESUMED, id, this.stream.received, this.stream.told));
    this.withRules(() => this.stream.resume(received, limit));
  }

  /** Wait for a resumption, for a while. */
  pathLost() {
    this.socket?.tunnels.delete(this.id);
    this.socket = null;
    this.stream.detach();
    const epoch = ++this.epoch;
    if (this.target === null) {
      this.abort();
      return;
    }
    clearTimeout(this.expiry);
    this.expiry = setTimeout(() => epoch === this.epoch && !this.ended_ && this.abort(), this.table.s.times.resume * 1000);
  }

  reaped() {
    this.say(reasonFrame(Mux.RESET, this.id, Reason.TIMEOUT));
    this.abort();
  }

  /** Over, and not cleanly. */
  abort() {
    this.leave();
    if (this.target !== null && !this.target.destroyed) this.target.resetAndDestroy();
  }

  /** Over, and cleanly: what the target has not read yet still leaves. */
  finish() {
    this.leave();
    flushAndClose(this.target);
  }

  leave() {
    this.ended_ = true;
    this.cancelled.abort();
    this.socket?.tunnels.delete(this.id);
    this.socket = null;
    this.stream.close();
    if (this.table.byToken.get(this.stream.token) === this) this.table.byToken.delete(this.stream.token);
  }

  say(frame) {
    this.socket?.outbox.send(frame);
  }
}

export class Session {
  constructor(table, socket, id) {
    Object.assign(this, { table, socket, id, target: null, early: [], earlyBytes: 0, over: false, pending: [], waiting: 0 });
    this.prefix = binaryPrefix(id);
    this.telling = false;
    this.cancelled = new AbortController();
    this.source = new Holds(() => this.target?.pause(), () => this.target?.resume());
    this.blocked = null;
    this.movedMs = performance.now();
    table.sessions++;
  }

  async start(host, port) {
    const began = performance.now();
    let target;
    try {
      target = await dialTarget(this.table.s, host, port, this.cancelled.signal);
    } catch (fault) {
      const { word = "unknown", message = "" } = fault instanceof DialFailure ? fault : {};
      if (!this.over) this.socket.openFailed(this.id, word, message, performance.now() - began);
      this.end();
      return;
    }
    if (this.over) {
      target.destroy();
      return;
    }
    this.table.log.verbose(`[TCP_OPEN_OK] ${this.id.replace(/[^ -~]/g, "?")}`);
    this.target = target;
    this.socket.text("tunnel_connected", { sessionId: this.id });
    for (const data of this.early) target.write(data);
    this.early = [];
    target.on("data", (data) => {
      keep(this.pending, data);
      this.waiting += data.length;
      this.moved(data.length, this.source);
      if (this.waiting > PENDING_HIGH_BYTES) this.source.add("path");
      this.socket.outbox.offer(this);
    });
    target.on("drain", () => this.unblock());
    target.on("end", () => this.targetClosed());
    target.on("error", () => this.targetClosed());
    target.on("close", () => this.targetClosed());
  }

  /** The next part of a frame for the relay; after the last bytes the end is told. */
  take(maxBytes) {
    if (this.pending.length > 0) {
      let chunk = this.pending.shift();
      if (chunk.length > maxBytes) {
        this.pending.unshift(chunk.subarray(maxBytes));
        chunk = chunk.subarray(0, maxBytes);
      }
      this.waiting -= chunk.length;
      if (this.waiting <= PENDING_HIGH_BYTES) this.source.drop("path");
      return [this.prefix, chunk];
    }
    if (!this.telling) return null;
    this.telling = false;
    return [this.socket.textFrame("tunnel_closed", { sessionId: this.id })];
  }

  moved(size, holds) {
    this.movedMs = performance.now();
    const waitMs = this.table.allowance.spend(size);
    if (waitMs > 0) holds.add("allowance", waitMs);
  }

  toTarget(data) {
    this.moved(data.length, this.socket.reading);
    if (this.target === null) {
      this.early.push(own(data));
      this.earlyBytes += data.length;
      if (this.earlyBytes > SESSION_QUEUE_BYTES) this.close();
      return;
    }
    if (this.target.destroyed || this.target.writableEnded) return;
    this.target.write(own(data));
    if (this.target.writableLength > TARGET_HIGH_BYTES && this.blocked === null) {
      this.socket.reading.add(this); // v1 has no other way to slow the relay down
      this.blocked = setTimeout(() => this.abort(), BLOCKED_MAX_MS);
    }
  }

  unblock() {
    clearTimeout(this.blocked);
    this.blocked = null;
    this.socket.reading.drop(this);
  }

  /** The target ended: the relay is told, after the last bytes. */
  targetClosed() {
    if (this.over) return;
    this.telling = true;
    this.end();
    this.socket.outbox.offer(this);
    this.target.destroySoon();
  }

  /** The relay ended the session: what was written still leaves. */
  close() {
    this.end();
    flushAndClose(this.target);
  }

  abort() {
    if (this.over) return;
    this.telling = true;
    this.end();
    this.socket.outbox.offer(this);
    this.target?.resetAndDestroy();
  }

  end() {
    if (this.over) return;
    this.over = true;
    this.cancelled.abort();
    this.unblock();
    if (this.socket.sessions.get(this.id) === this) this.socket.sessions.delete(this.id);
    this.table.sessions--;
  }
}

export { Holds, header };
