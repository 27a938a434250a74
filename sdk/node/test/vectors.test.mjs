// The JSON vectors of docs/protocol.

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import test from "node:test";

import { OwnNetworks, canonicalPair, egressVerdict } from "../lib/egress.mjs";
import {
  Malformed, Mux, number, numbersFrame, parseBinary, parseMux, parseOpen, parseText, reasonFrame,
  maskedMessage,
} from "../lib/frames.mjs";
import { Allowance, onCharger, openAt, parseSchedule } from "../lib/limits.mjs";
import { TIMES } from "../lib/settings.mjs";
import { FlowViolation, Outbox, Stream, WindowBudget } from "../lib/stream.mjs";

const load = (name) => JSON.parse(readFileSync(new URL(`../../../docs/protocol/${name}`, import.meta.url)));
const hex = (text) => Buffer.from(text ?? "", "hex");

const STEPS = {
  attach: (s, given, outbox) => s.attach(outbox, given.tunnel),
  detach: (s) => s.detach(),
  write: (s, given) => s.write(hex(given.hex)),
  eof: (s) => s.writeEof(),
  opened: (s, given) => s.onOpened(given.limit),
  data: (s, given) => s.onData(hex(given.hex)),
  peer_eof: (s) => s.onEof(),
  window: (s, given) => s.onWindow(given.received, given.limit),
  blocked: (s, given) => s.onBlocked(given.limit),
  resume: (s, given) => s.resume(given.received, given.limit),
  stall: (s) => s.stall(),
  drained: (s) => s.drained(),
};

for (const script of load("binary-v2-stream.json").scripts) {
  test(`stream: ${script.name}`, () => {
    let sent = [];
    let got = [];
    const outbox = new Outbox((head, payload) => sent.push(Buffer.concat([head, payload ?? hex("")]).toString("hex")));
    const sink = { deliver: (data) => got.push(data), ended() {}, pauseSource() {}, resumeSource() {} };
    const stream = new Stream(sink, "", new WindowBudget(1 << 20), script.window);
    for (const given of script.steps) {
      sent = [];
      got = [];
      if (given.violates) {
        assert.throws(() => STEPS[given.do](stream, given, outbox), FlowViolation);
        return;
      }
      STEPS[given.do](stream, given, outbox);
      assert.deepEqual(sent, given.sends, JSON.stringify(given));
      assert.equal(Buffer.concat(got).toString("hex"), given.delivers ?? "");
      assert.equal(stream.over, given.over ?? false);
    }
  });
}

const v2 = load("binary-v2.json");
for (const row of v2.frames) {
  test(`frame: ${row.name}`, () => {
    const raw = hex(row.hex);
    const { type, tunnel, body } = parseMux(raw);
    assert.equal(tunnel, row.tunnel);
    assert.equal(type, Mux[row.type]);
    if (type === Mux.OPEN) {
      const { token, limit, host, port } = parseOpen(body);
      assert.deepEqual({ token, limit, host, port }, { token: row.token, limit: row.limit, host: row.host, port: row.port });
    } else if (type === Mux.WINDOW || type === Mux.RESUMED) {
      assert.deepEqual(numbersFrame(type, tunnel, row.received, row.limit), raw);
      assert.equal(number(body, 8), row.limit);
    } else if (type === Mux.REFUSED || type === Mux.RESET) {
      assert.deepEqual(reasonFrame(type, tunnel, row.reason, row.detail), raw);
    }
  });
}
for (const row of v2.malformed) {
  test(`malformed: ${row.name}`, () => {
    assert.throws(() => {
      const frame = parseMux(hex(row.hex));
      if (frame.type === Mux.OPEN) parseOpen(frame.body);
    }, Malformed);
  });
}
test("types that nobody knows are ignored", () => {
  for (const row of v2.ignored) assert.equal(parseMux(hex(row.hex)), null);
});

test("a masked message is what a server reads", () => {
  const unmasked = (frame) => {
    const short = frame[1] & 0x7f;
    const [at, size] =
      short < 126 ? [2, short] : short === 126 ? [4, frame.readUInt16BE(2)] : [10, Number(frame.readBigUInt64BE(2))];
    const body = frame.subarray(at + 4).map((byte, i) => byte ^ frame[at + (i & 3)]);
    assert.deepEqual([frame[0], frame[1] & 0x80, body.length], [0x82, 0x80, size]);
    return Buffer.from(body);
  };
  for (const size of [0, 1, 119, 120, 121, 122, 123, 65_529, 65_530, 65_531, 65_532, 200_003]) {
    const [head, payload] = [Buffer.from([1, 2, 3, 4, 5]), Buffer.alloc(size, "psx-")];
    const frame = maskedMessage(head, payload);
    assert.deepEqual(unmasked(frame), Buffer.concat([head, payload]), `${size}`);
    assert.notDeepEqual(maskedMessage(head, payload), frame, "a key of its own for each");
  }
});

test("frames of v1", () => {
  const v1 = load("binary-v1.json");
  for (const row of v1.frames) {
    const { close, id, payload } = parseBinary(hex(row.hex));
    assert.deepEqual([close, id, payload.toString("hex")], [row.type === "close", row.sessionId, row.payloadHex]);
  }
  for (const row of v1.malformed) assert.throws(() => parseBinary(hex(row.hex)), Malformed, row.name);
  for (const text of v1.malformedTexts) assert.throws(() => parseText(Buffer.from(text)), Malformed, text);
  for (const row of v1.texts) assert.deepEqual(parseText(Buffer.from(row.json)).payload, row.payload ?? {}, row.name);
});

test("verdicts on addresses", () => {
  for (const { address, port, verdict } of load("egress.json").addresses)
    assert.equal(egressVerdict(address, port) ?? "allowed", verdict, `${address}:${port}`);
  for (const { of, address, verdict } of load("egress.json").own) {
    const onLink = of.includes("/");
    const own = new OwnNetworks(() => (onLink ? { lan: [{ address: of.split("/")[0], cidr: of }] } : {}));
    if (!onLink) own.told(of);
    assert.equal(egressVerdict(address, 443, new Set(), own.networks()) ?? "allowed", verdict, `${address} of ${of}`);
  }
  assert.equal(egressVerdict("fe80::1%eth0", 443), "private_address");
  assert.equal(egressVerdict("0x7f000001", 443), "not_an_address");
  assert.equal(egressVerdict("0:0:0:0:0:0:0:1", 80, new Set([canonicalPair("[::1]:80")])), null);
});

test("waits and chargers", () => {
  const { waits, chargers } = load("device.json");
  assert.deepEqual(TIMES, waits);
  for (const { name, supplies, charging } of chargers) {
    const folder = mkdtempSync(join(tmpdir(), "psx-"));
    for (const [path, text] of Object.entries(supplies)) {
      mkdirSync(join(folder, dirname(path)), { recursive: true });
      writeFileSync(join(folder, path), `${text}\n`);
    }
    assert.equal(onCharger(folder), charging, name);
    rmSync(folder, { recursive: true });
  }
});

test("hours of the day", () => {
  const at = (hour, minute) => new Date(2026, 0, 1, hour, minute);
  const night = parseSchedule("22:00-06:30");
  assert.deepEqual([at(23, 0), at(6, 29), at(6, 30), at(12, 0)].map((when) => openAt(night, when)), [true, true, false, false]);
  assert.equal(openAt(parseSchedule("00:00-00:00"), at(3, 3)), true);
  for (const text of ["24:00-01:00", "1:00-2:00", "08:00", "08:00-17:60", "x"]) assert.equal(parseSchedule(text), null);
});

test("an allowance", () => {
  let now = 0;
  const allowance = new Allowance(8, () => now); // 1 MB/s, a quarter of which may burst
  assert.equal(allowance.spend(250_000), 0);
  assert.equal(allowance.spend(500_000), 500);
  now = 10;
  assert.equal(allowance.spend(250_000), 0);
});
