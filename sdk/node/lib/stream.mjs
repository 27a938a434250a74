// One end of a binary-v2 tunnel: what may be sent, what was taken, what is kept for a resumption. No I/O, no clock. Its rules
// are those of docs/protocol/binary-v2-stream.json. An outbox shares one socket among its lanes: control frames leave at
// once, data goes round-robin while the socket has room.

import { DATA_MAX_BYTES, Mux, header, numbersFrame } from "./frames.mjs";

export const WINDOW_START_BYTES = 256 * 1024;
const WINDOW_MAX_BYTES = 4 * 1024 * 1024;
export const PENDING_HIGH_BYTES = 64 * 1024;
const SMALL_BYTES = 1024;
const JOINED_MAX_BYTES = 4096;
const APART_MAX = 64; // small pieces that are kept as they came: each takes a hundred bytes besides its own

/** The other end sent beyond its limit, or acknowledged what was never sent. */
export class FlowViolation extends Error {}

/** Keep a piece; of small ones many are joined, and leave as one frame where they wait. */
export function keep(pieces, piece) {
  const last = pieces.length - 1;
  if (piece.length >= SMALL_BYTES || last + 1 < APART_MAX || pieces[last].length >= JOINED_MAX_BYTES) pieces.push(piece);
  else pieces[last] = Buffer.concat([pieces[last], piece]);
}

export class Outbox {
  constructor(send) {
    this.send = send;
    this.paused = false;
    this.ready = [];
    this.waiting = new Set();
    this.pumping = false;
  }

  offer(lane) {
    if (this.waiting.has(lane)) return;
    this.waiting.add(lane);
    this.ready.push(lane);
    this.pump();
  }

  withdraw(lane) {
    if (this.waiting.delete(lane)) this.ready = this.ready.filter((other) => other !== lane);
  }

  resume() {
    this.paused = false;
    this.pump();
  }

  pump() {
    if (this.pumping) return;
    this.pumping = true;
    while (this.ready.length > 0 && !this.paused) {
      const lane = this.ready.shift();
      this.waiting.delete(lane);
      const parts = lane.take(DATA_MAX_BYTES);
      if (parts === null) continue;
      if (!this.waiting.has(lane)) {
        this.waiting.add(lane);
        this.ready.push(lane);
      }
      this.send(...parts);
    }
    this.pumping = false;
  }
}

/** How much all windows of a device may grow by together. */
export class WindowBudget {
  constructor(bytes) {
    this.left = bytes;
  }

  draw(size) {
    if (size > this.left) return false;
    this.left -= size;
    return true;
  }
}

export class Stream {
  constructor(sink, token, budget, window = WINDOW_START_BYTES) {
    Object.assign(this, { sink, token, budget, window, outbox: null, id: 0, drawn: 0 });
    // sending: [acked, sent) is kept in unacked, then comes pending
    Object.assign(this, { limit: 0, blockedAt: -1, acked: 0, sent: 0, unacked: [], pending: [], pendingBytes: 0 });
    Object.assign(this, { held: false, eofWanted: false, eofSent: false });
    // receiving
    Object.assign(this, { received: 0, told: window, limits: [window], grownAt: 0, stalled: false, eofReceived: false });
  }

  /** All that was written here, and the EOF after it, has been taken by the other end. */
  get delivered() {
    return this.eofSent && this.acked === this.sent;
  }

  get over() {
    return this.eofReceived && this.delivered;
  }

  attach(outbox, id) {
    this.detach();
    this.outbox = outbox;
    this.id = id;
  }

  detach() {
    this.outbox?.withdraw(this);
    this.outbox = null;
  }

  /** The other end has `received`: what came after is sent again, after what came here was acknowledged. */
  resume(received, limit) {
    this.acknowledge(received);
    if (this.eofSent && this.acked < this.sent) {
      this.eofSent = false;
      this.sent--;
    }
    this.pending = [...this.unacked, ...this.pending];
    this.pendingBytes += this.sent - this.acked;
    this.unacked = [];
    this.sent = this.acked;
    this.limit = Math.max(this.limit, limit);
    this.blockedAt = -1;
    const grants = !this.stalled && !this.eofReceived;
    this.tell(Math.max(this.told, grants ? this.received + this.window : this.received));
    this.holdOrRelease();
    this.offer();
  }

  close() {
    this.detach();
    this.budget.left += this.drawn;
    this.drawn = 0;
    this.eofWanted = true;
    this.pending = [];
    this.unacked = [];
  }

  write(data) {
    if (this.eofWanted) return;
    keep(this.pending, data);
    this.pendingBytes += data.length;
    this.offer();
    this.holdOrRelease();
  }

  writeEof() {
    if (this.eofWanted) return;
    this.eofWanted = true;
    this.offer();
  }

  stall() {
    this.stalled = true;
  }

  drained() {
    this.stalled = false;
    this.grant();
  }

  onOpened(limit) {
    this.limit = Math.max(this.limit, limit);
    this.offer();
  }

  onData(data) {
    if (data.length === 0 || this.eofReceived || this.received + data.length > this.told)
      throw new FlowViolation("data beyond the limit, after EOF, or none");
    this.received += data.length;
    this.sink.deliver(data);
    if (!this.stalled) this.grant();
  }

  onEof() {
    if (this.eofReceived) throw new FlowViolation("second EOF");
    this.eofReceived = true;
    this.received++;
    this.tell(Math.max(this.told, this.received));
    this.sink.ended();
  }

  onWindow(received, limit) {
    this.acknowledge(received);
    if (limit > this.limit) {
      this.limit = limit;
      if (this.pending.length > 0) this.offer();
    }
  }

  /** Doubles the window when the sender filled one of the limits it was last told and the sink keeps up. */
  onBlocked(limit) {
    if (this.stalled || this.eofReceived || this.window >= WINDOW_MAX_BYTES) return;
    if (!this.limits.includes(limit) || this.received < limit || limit <= this.grownAt) return;
    if (!this.budget.draw(this.window)) return;
    this.grownAt = limit;
    this.drawn += this.window;
    this.window *= 2;
    this.tell(this.received + this.window);
  }

  /** The next [header, payload] that credit allows, or null. */
  take(maxBytes) {
    if (this.outbox === null) return null;
    if (this.pending.length === 0) {
      if (!this.eofWanted || this.eofSent) return null;
      this.eofSent = true;
      this.sent++;
      return [header(Mux.EOF, this.id)];
    }
    const credit = Math.min(this.limit - this.sent, this.acked + WINDOW_MAX_BYTES - this.sent, maxBytes);
    if (credit <= 0) {
      if (this.blockedAt !== this.limit) {
        this.blockedAt = this.limit;
        this.outbox.send(numbersFrame(Mux.BLOCKED, this.id, this.limit));
      }
      return null;
    }
    let chunk = this.pending[0];
    if (chunk.length > credit) {
      this.pending[0] = chunk.subarray(credit);
      chunk = chunk.subarray(0, credit);
    } else {
      this.pending.shift();
    }
    this.sent += chunk.length;
    this.pendingBytes -= chunk.length;
    keep(this.unacked, chunk);
    this.holdOrRelease();
    return [header(Mux.DATA, this.id), chunk];
  }

  offer() {
    this.outbox?.offer(this);
  }

  holdOrRelease() {
    const full = this.pendingBytes > PENDING_HIGH_BYTES;
    if (full === this.held) return;
    this.held = full;
    if (full) this.sink.pauseSource();
    else this.sink.resumeSource();
  }

  acknowledge(received) {
    if (received > this.sent) throw new FlowViolation("acknowledges what was not sent");
    if (received <= this.acked) return;
    let gone = received - this.acked;
    this.acked = received;
    while (gone > 0 && this.unacked.length > 0) {
      const size = this.unacked[0].length;
      if (size <= gone) {
        gone -= size;
        this.unacked.shift();
      } else {
        this.unacked[0] = this.unacked[0].subarray(gone);
        gone = 0;
      }
    }
  }

  /** Tell of new room when it is worth a frame. */
  grant() {
    const limit = this.received + this.window;
    if (!this.eofReceived && limit - this.told >= Math.floor(this.window / 2)) this.tell(limit);
  }

  /** What cannot be told now is told by `resume`. */
  tell(limit) {
    if (this.outbox === null) return;
    if (limit > this.told) {
      this.told = limit;
      this.limits = [limit, ...this.limits.slice(0, 3)];
    }
    this.outbox.send(numbersFrame(Mux.WINDOW, this.id, this.received, limit));
  }
}
