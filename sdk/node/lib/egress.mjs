// Where traffic may go: never into private networks, never to mail ports. The address that is judged is the one that is
// dialled; IPv4 inside IPv6 is unwrapped. Verdicts: docs/protocol/egress.json.

import { lookup } from "node:dns/promises";
import net from "node:net";
import { networkInterfaces } from "node:os";
import { performance } from "node:perf_hooks";

import { Reason } from "./frames.mjs";

const MAIL_PORTS = new Set([25, 465, 587, 2525]);
const ADDRESSES_TRIED = 4;
const LOOKUPS_MAX = 256; // a lookup goes on when its tunnel is gone: a flood of names must not pile up
const OWN_FRESH_MS = 10_000; // a device that changes networks loses its sockets anyway
const OWN_TOLD_MAX = 16;
const SPECIAL_4 = [
  ["0.0.0.0", 8], ["10.0.0.0", 8], ["100.64.0.0", 10], ["127.0.0.0", 8], ["168.63.129.16", 32], ["169.254.0.0", 16],
  ["172.16.0.0", 12], ["192.0.0.0", 24], ["192.0.2.0", 24], ["192.168.0.0", 16], ["198.18.0.0", 15], ["198.51.100.0", 24],
  ["203.0.113.0", 24], ["224.0.0.0", 3],
].map(([address, bits]) => [numberOf4(address), bits]);
const SPECIAL_6 = [["2001::", 23], ["2001:db8::", 32], ["3fff::", 20]].map(([address, bits]) => [numberOf6(address), bits]);

function numberOf4(text) {
  return text.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

/** The 128 bits of a valid IPv6 literal without a zone. */
function numberOf6(text) {
  let plain = text;
  const dotted = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text);
  if (dotted) {
    const low = numberOf4(dotted[2]);
    plain = `${dotted[1]}${(low >>> 16).toString(16)}:${(low & 0xffff).toString(16)}`;
  }
  const [left, right] = plain.split("::");
  const head = left ? left.split(":") : [];
  const tail = right ? right.split(":") : [];
  const zeros = plain.includes("::") ? Array(8 - head.length - tail.length).fill("0") : [];
  return [...head, ...zeros, ...tail].reduce((sum, part) => (sum << 16n) | BigInt(`0x${part}`), 0n);
}

const isPublic4 = (number) =>
  !SPECIAL_4.some(([prefix, bits]) => Math.floor(number / 2 ** (32 - bits)) === Math.floor(prefix / 2 ** (32 - bits)));

/** The IPv4 address, as a number, that an IPv6 one embeds; null when it embeds none. */
function embedded(number) {
  const top = (bits) => number >> BigInt(128 - bits);
  if (top(96) === 0xffffn || top(96) === 0n || top(96) === numberOf6("64:ff9b::") >> 32n) return Number(number & 0xffffffffn);
  return top(16) === 0x2002n ? Number((number >> 80n) & 0xffffffffn) : null;
}

function isPublic6(number) {
  const inside = embedded(number);
  if (inside !== null) return isPublic4(inside);
  if (number >> 125n !== 1n) return false;
  return !SPECIAL_6.some(([prefix, bits]) => number >> BigInt(128 - bits) === prefix >> BigInt(128 - bits));
}

/** An address as [its size in bits, its number], and the IPv4 one that it embeds. */
function forms(address) {
  if (net.isIPv4(address)) return [[32, BigInt(numberOf4(address))]];
  const number = numberOf6(address);
  const inside = embedded(number);
  return inside === null ? [[128, number]] : [[128, number], [32, BigInt(inside)]];
}

/**
 * What is a device's own for having an address: with an interface's prefix, or without one as others see it. Of IPv6 never
 * less than the /64; an interface that claims too much is set wrong. Null for what is no address.
 */
export function ownNetwork(text, prefix) {
  const plain = text.split("%")[0];
  if (net.isIP(plain) === 0) return null;
  const [whole, inside] = forms(plain);
  const mapped = inside !== undefined && whole[1] >> 32n === 0xffffn;
  const [size, number] = mapped ? inside : whole;
  const [least, alone] = size === 32 ? [8, 32] : [32, 64];
  const bits = !mapped && prefix >= least ? Math.min(prefix, alone) : alone;
  return { size, shift: BigInt(size - bits), number: number >> BigInt(size - bits) };
}

/** The owner's although they are public: networks of this machine's interfaces, and where relays see it. */
export class OwnNetworks {
  constructor(interfaces = networkInterfaces) {
    Object.assign(this, { interfaces, seenAt: [], read: [], readMs: -Infinity });
  }

  /** A relay says from where it sees this device; the newest are kept, because each socket may leave by another one. */
  told(text) {
    const network = ownNetwork(text);
    if (network === null) return;
    const others = this.seenAt.filter((n) => n.size !== network.size || n.shift !== network.shift || n.number !== network.number);
    this.seenAt = [...others, network].slice(-OWN_TOLD_MAX);
  }

  networks() {
    const now = performance.now();
    if (now - this.readMs > OWN_FRESH_MS) {
      const found = Object.values(this.interfaces()).flat();
      this.read = found.map(({ address, cidr }) => ownNetwork(address, cidr ? Number(cidr.split("/")[1]) : undefined)).filter(Boolean);
      this.readMs = now;
    }
    return [...this.seenAt, ...this.read];
  }
}

const canonical = (address) =>
  net.isIPv4(address) ? address : net.isIPv6(address) ? `${numberOf6(address).toString(16)}/6` : address;

/** "address:port" in the one form that two spellings of it share. */
export function canonicalPair(text) {
  const at = text.lastIndexOf(":");
  return `${canonical(text.slice(0, at).replace(/^\[|\]$/g, ""))}:${text.slice(at + 1)}`;
}

/** The verdict on an address and a port; null allows them. `own`: the device's own networks. */
export function egressVerdict(address, port, labAllow = new Set(), own = []) {
  if (!Number.isInteger(port) || port < 1 || port > 65535) return "blocked_port";
  if (net.isIP(address) === 0) return "not_an_address";
  if (address.includes("%")) return "private_address";
  if (labAllow.size > 0 && labAllow.has(`${canonical(address)}:${port}`)) return null;
  if (MAIL_PORTS.has(port)) return "blocked_port";
  const open = net.isIPv4(address) ? isPublic4(numberOf4(address)) : isPublic6(numberOf6(address));
  if (!open) return "private_address";
  const found = forms(address);
  const isOwn = own.some((n) => found.some(([size, number]) => size === n.size && number >> n.shift === n.number));
  return isOwn ? "own_network" : null;
}

/** Why a target was not reached, in the words of both protocols. */
export class DialFailure extends Error {
  constructor(reason, word, detail) {
    super(detail);
    this.reason = reason;
    this.word = word;
  }
}

const policy = (verdict) => new DialFailure(Reason.EGRESS_POLICY, "connection_refused", `egress policy: ${verdict}`);
const late = () => new DialFailure(Reason.TIMEOUT, "timeout", "dial timed out");

let lookingUp = 0;

async function addresses(host) {
  if (net.isIP(host) !== 0) return [host];
  if (lookingUp < LOOKUPS_MAX && /^[\w.-]{1,253}$/.test(host)) {
    lookingUp++;
    try {
      const found = await lookup(host, { all: true });
      if (found.length > 0) return [...new Set(found.map((entry) => entry.address))];
    } catch {
      // told below
    } finally {
      lookingUp--;
    }
  }
  throw new DialFailure(Reason.DNS_FAILED, "dns_failed", "name not found");
}

function connect(s, address, port, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(late());
    const socket = net.connect({ host: address, port, localAddress: s.bind, allowHalfOpen: true, noDelay: true });
    const stop = () => {
      socket.destroy();
      reject(late());
    };
    signal.addEventListener("abort", stop, { once: true });
    socket.once("connect", () => {
      signal.removeEventListener("abort", stop);
      socket.removeAllListeners("error");
      resolve(socket);
    });
    socket.once("error", (fault) => {
      signal.removeEventListener("abort", stop);
      const refused = fault.code === "ECONNREFUSED";
      reject(
        refused
          ? new DialFailure(Reason.CONNECTION_REFUSED, "connection_refused", "refused")
          : new DialFailure(Reason.UNREACHABLE, "unknown", fault.code ?? "unreachable"),
      );
    });
  });
}

/** A connected socket. Every address that a name has must be allowed, and what is dialled is a literal. */
export async function dialTarget(s, host, port, cancelled) {
  if (egressVerdict("1.1.1.1", port) === "blocked_port" && s.labAllow.size === 0) throw policy("blocked_port");
  const signal = AbortSignal.any([AbortSignal.timeout(s.times.dial * 1000), cancelled]);
  const gone = new Promise((_, reject) => signal.addEventListener("abort", () => reject(late()), { once: true }));
  gone.catch(() => {});
  const found = await Promise.race([addresses(host), gone]);
  const own = s.own.networks();
  for (const address of found) {
    const verdict = egressVerdict(address, port, s.labAllow, own);
    if (verdict !== null) throw policy(verdict);
  }
  let failure;
  for (const address of found.slice(0, ADDRESSES_TRIED)) {
    try {
      return await connect(s, address, port, signal);
    } catch (fault) {
      failure = fault;
    }
  }
  throw failure;
}
