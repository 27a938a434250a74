// What the owner allows: how fast, and when.

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";

const BURST_S = 0.25;

/** A token bucket over both directions of all tunnels; without a rate it never asks to wait. */
export class Allowance {
  constructor(megabits, now = () => performance.now() / 1000) {
    this.rate = megabits === null ? null : (megabits * 1e6) / 8;
    this.left = (this.rate ?? 0) * BURST_S;
    this.now = now;
    this.at = now();
  }

  /** Take what was just carried; answers for how many milliseconds nothing more should be. */
  spend(size) {
    if (this.rate === null) return 0;
    const now = this.now();
    this.left = Math.min(this.rate * BURST_S, this.left + (now - this.at) * this.rate) - size;
    this.at = now;
    return Math.max(0, (-this.left / this.rate) * 1000);
  }
}

/** Minutes of the day, over midnight when the span ends before it begins; null for what is no span. */
export function parseSchedule(text) {
  const found = /^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)$/.exec(text);
  if (found === null) return null;
  const [a, b, c, d] = found.slice(1).map(Number);
  return { from: a * 60 + b, to: c * 60 + d };
}

export function openAt(schedule, when) {
  const minute = when.getHours() * 60 + when.getMinutes();
  const { from, to } = schedule;
  return from < to ? from <= minute && minute < to : minute >= from || minute < to;
}

/** Whether the machine has mains power; null where the platform does not say (Linux does). */
export function onCharger(folder = "/sys/class/power_supply") {
  let online = [];
  let batteries = [];
  try {
    const read = (name, file) => {
      try {
        return [readFileSync(join(folder, name, file), "utf8").trim()];
      } catch {
        return [];
      }
    };
    const names = readdirSync(folder);
    online = names.flatMap((name) => read(name, "online"));
    batteries = names.filter((name) => name.startsWith("BAT")).flatMap((name) => read(name, "status"));
  } catch {
    return null;
  }
  if (online.length > 0) return online.includes("1");
  return batteries.length > 0 ? !batteries.includes("Discharging") : null;
}

export function allowed(s, when = new Date()) {
  if (s.onlyCharging && onCharger() === false) return false;
  return s.schedule === null || openAt(s.schedule, when);
}
