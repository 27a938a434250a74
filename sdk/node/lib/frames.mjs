// Frames of binary-v1 and binary-v2: bytes in, values out (docs/protocol, shared/wire). Offsets and limits are at most
// 2^53-1 here: no tunnel carries that much, and a larger limit means no more.

import { randomFillSync } from "node:crypto";

export const PROTOCOL_V1 = "binary-v1";
export const PROTOCOL_V2 = "binary-v2";
export const DATA_MAX_BYTES = 64 * 1024;
export const TEXT_MAX_BYTES = 1024 * 1024;
export const TOKEN_BYTES = 16;
const TEXT_MAX_BRACKETS = 256;
const HEADER_BYTES = 5;
const OPEN_BYTES = TOKEN_BYTES + 8 + 2 + 1;
const HOST_MAX_BYTES = 253;
const DETAIL_MAX_BYTES = 128;
const WS_FINAL_BINARY = 0x82;
const WS_MASKED = 0x80;
const keys = new Uint32Array(1024);
let keysUsed = keys.length;
const SAFE = BigInt(Number.MAX_SAFE_INTEGER);

export const Mux = {
  OPEN: 0x10, OPENED: 0x11, REFUSED: 0x12, DATA: 0x13, WINDOW: 0x14, EOF: 0x15, RESET: 0x16, PING: 0x17, PONG: 0x18,
  GOAWAY: 0x19, RESUME: 0x1a, RESUMED: 0x1b, BLOCKED: 0x1c, CLOSE: 0x1d,
};
export const Reason = {
  CONNECTION_REFUSED: 1, DNS_FAILED: 2, TIMEOUT: 3, UNREACHABLE: 4, EGRESS_POLICY: 5, TARGET_RESET: 6, PATH_LOST: 17,
  FLOW_VIOLATION: 18, TOO_MANY_TUNNELS: 19, UNKNOWN_TUNNEL: 21,
};
/** The least and the most bytes of a body. */
const BODY_BYTES = new Map([
  [Mux.OPEN, [OPEN_BYTES, OPEN_BYTES + HOST_MAX_BYTES]], [Mux.OPENED, [8, 8]], [Mux.REFUSED, [1, 1 + DETAIL_MAX_BYTES]],
  [Mux.DATA, [0, DATA_MAX_BYTES]], [Mux.WINDOW, [16, 16]], [Mux.EOF, [0, 0]], [Mux.RESET, [1, 1]], [Mux.PING, [8, 8]],
  [Mux.PONG, [8, 8]], [Mux.GOAWAY, [8, 8]], [Mux.RESUME, [TOKEN_BYTES + 16, TOKEN_BYTES + 16]], [Mux.RESUMED, [16, 16]],
  [Mux.BLOCKED, [8, 8]], [Mux.CLOSE, [0, 0]],
]);

/** A frame that is not of the protocol: the socket is closed. */
export class Malformed extends Error {}

/** {type, tunnel, body}; null for a type that nobody knows. */
export function parseMux(data) {
  if (data.length < HEADER_BYTES) throw new Malformed("frame too short");
  const bounds = BODY_BYTES.get(data[0]);
  if (bounds === undefined) return null;
  const body = data.subarray(HEADER_BYTES);
  if (body.length < bounds[0] || body.length > bounds[1]) throw new Malformed("frame of a wrong length");
  return { type: data[0], tunnel: data.readUInt32BE(1), body };
}

export function number(body, at) {
  const found = body.readBigUInt64BE(at);
  return Number(found > SAFE ? SAFE : found);
}

export function header(type, tunnel, room = 0) {
  const frame = Buffer.allocUnsafe(HEADER_BYTES + room);
  frame[0] = type;
  frame.writeUInt32BE(tunnel, 1);
  return frame;
}

/**
 * A client's WebSocket message of two parts, masked (RFC 6455 section 5), as one buffer: `ws` masks byte by byte, which costs
 * more than all the rest of a device. The masked bytes stand at a multiple of four.
 */
export function maskedMessage(head, payload) {
  if (keysUsed === keys.length) {
    randomFillSync(keys);
    keysUsed = 0;
  }
  const key = keys[keysUsed++];
  const size = head.length + payload.length;
  const lengthBytes = size < 126 ? 0 : size < 65_536 ? 2 : 8;
  const start = lengthBytes === 2 ? 8 : 16;
  const room = Buffer.from(new ArrayBuffer(start + size + (-size & 3)));
  const frame = room.subarray(start - 6 - lengthBytes, start + size);
  frame[0] = WS_FINAL_BINARY;
  frame[1] = WS_MASKED | (lengthBytes === 0 ? size : lengthBytes === 2 ? 126 : 127);
  if (lengthBytes === 2) frame.writeUInt16BE(size, 2);
  if (lengthBytes === 8) frame.writeUIntBE(size, 4, 6);
  room.set(head, start);
  room.set(payload, start + head.length);
  const words = new Uint32Array(room.buffer, start - 4);
  words[0] = key;
  for (let i = 1; i < words.length; i++) words[i] ^= key;
  return frame;
}

export function numbersFrame(type, tunnel, ...numbers) {
  const frame = header(type, tunnel, numbers.length * 8);
  numbers.forEach((value, i) => frame.writeBigUInt64BE(BigInt(value), HEADER_BYTES + i * 8));
  return frame;
}

export function reasonFrame(type, tunnel, reason, detail = "") {
  let raw = Buffer.from(detail);
  while (raw.length > DETAIL_MAX_BYTES) {
    let end = DETAIL_MAX_BYTES;
    while ((raw[end] & 0xc0) === 0x80) end--; // between letters
    raw = raw.subarray(0, end);
  }
  return Buffer.concat([header(type, tunnel), Buffer.from([reason]), raw]);
}

function utf8(raw) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw);
  } catch {
    throw new Malformed("not UTF-8");
  }
}

/** {token, limit, host, port} of OPEN. */
export function parseOpen(body) {
  const raw = body.subarray(OPEN_BYTES);
  const size = body[OPEN_BYTES - 1];
  const port = body.readUInt16BE(TOKEN_BYTES + 8);
  if (raw.length !== size || size === 0 || size > HOST_MAX_BYTES || port === 0) throw new Malformed("OPEN names no target");
  return { token: body.toString("hex", 0, TOKEN_BYTES), limit: number(body, TOKEN_BYTES), host: utf8(raw), port };
}

/** {close, id, payload} of a frame of v1. */
export function parseBinary(data) {
  const end = 2 + (data[1] ?? 0);
  if (data.length < 3 || data[1] === 0 || data.length < end || (data[0] !== 1 && data[0] !== 3))
    throw new Malformed("not a frame of binary-v1");
  return { close: data[0] === 3, id: utf8(data.subarray(2, end)), payload: data.subarray(end) };
}

/** What stands before the bytes of a session of v1. */
export function binaryPrefix(id) {
  const raw = Buffer.from(id);
  if (raw.length === 0 || raw.length > 255) throw new Malformed("session id too long");
  return Buffer.concat([Buffer.from([1, raw.length]), raw]);
}

/** {type, payload} of a text frame; a payload that is no object counts as empty. */
export function parseText(raw) {
  if (raw.length > TEXT_MAX_BYTES) throw new Malformed("text frame too long");
  let brackets = 0;
  for (const byte of raw) if (byte === 0x5b || byte === 0x7b) brackets++;
  if (brackets > TEXT_MAX_BRACKETS) throw new Malformed("text frame too deep");
  let message;
  try {
    message = JSON.parse(raw.toString());
  } catch {
    throw new Malformed("not JSON");
  }
  if (message === null || typeof message !== "object" || typeof message.type !== "string") throw new Malformed("no type");
  const payload = message.payload;
  const given = payload !== null && typeof payload === "object" && !Array.isArray(payload) ? payload : {};
  return { type: message.type, payload: given, text: (name) => (typeof given[name] === "string" ? given[name] : "") };
}
