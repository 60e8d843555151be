/**
 * `--object throttle-group`: limits on the requests of all nodes that name the group. Each limit is a leaky bucket: what
 * passes fills it, the limit drains it, and who finds it over its brim waits until it is down to that.
 */
import type { UserObject } from '../../protocol/commands/common.js';
import { ImageError } from '../error.js';
import { cancelledError } from '../operations/pacer.js';

export type Direction = 'read' | 'write';

const UNITS = ['bps', 'iops'] as const;
const SIDES = ['total', 'read', 'write'] as const;
const MAX_LIMIT = 1e15;
/** Where no burst is given, a tenth of a second's worth may pass at once. */
const SLICES = 10;
/** setTimeout takes at most 2^31-1 ms; longer waits are looked at again. */
const MAX_TIMER_MS = 60_000;

function invalid(text: string): ImageError {
  return new ImageError('invalid', text);
}

function wrongType(name: string, wanted: string): ImageError {
  return invalid(`Invalid parameter type for '${name}', expected: ${wanted}`);
}

/** A property of the group, `limits.NAME` or `x-NAME`, as text from a command line or as JSON. */
function integer(name: string, value: unknown): number {
  const number = typeof value === 'string' && /^[+-]?\d+$/.test(value) ? Number(value) : value;
  if (!Number.isInteger(number)) throw invalid(`Parameter '${name}' expects integer`);
  return number as number;
}

/** The limits by their names (`bps-total-max`), `x-` ones over those in `limits`. */
function limitsOf(object: UserObject): Map<string, number> {
  const known = new Set(['iops-size']);
  for (const unit of UNITS) {
    for (const side of SIDES) {
      for (const suffix of ['', '-max', '-max-length']) known.add(`${unit}-${side}${suffix}`);
    }
  }
  const limits = new Map<string, number>();
  const extra = new Map<string, number>();
  const take = (into: Map<string, number>, name: string, spelled: string, value: unknown) => {
    if (!known.has(name)) throw invalid(`Parameter '${spelled}' is unexpected`);
    into.set(name, integer(spelled, value));
  };
  for (const [key, value] of Object.entries(object)) {
    if (key === 'qom-type' || key === 'id') continue;
    if (key === 'limits') {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrongType(key, 'object');
      for (const [name, limit] of Object.entries(value)) {
        if (typeof limit !== 'number') throw wrongType(`limits.${name}`, 'integer');
        take(limits, name, `limits.${name}`, limit);
      }
    } else if (key.startsWith('limits.')) take(limits, key.slice('limits.'.length), key, value);
    else if (key.startsWith('x-')) take(extra, key.slice('x-'.length), key, value);
    else throw invalid(`Parameter '${key}' is unexpected`);
  }
  return new Map([...limits, ...extra]);
}

class Bucket {
  /** Units (bytes, requests) a second. */
  readonly #rate: number;
  readonly #burst: number;
  readonly #brim: number;
  /** Where bursts last longer than a second, they have a rate of their own. */
  readonly #burstBrim: number | undefined;
  #level = 0;
  #burstLevel = 0;
  #drained = performance.now();

  constructor(rate: number, burst: number, seconds: number) {
    this.#rate = rate;
    this.#burst = burst;
    this.#brim = burst > 0 ? burst * seconds : rate / SLICES;
    this.#burstBrim = seconds > 1 ? burst / SLICES : undefined;
  }

  /** Seconds until something may pass. */
  wait(): number {
    const now = performance.now();
    const passed = (now - this.#drained) / 1000;
    this.#drained = now;
    this.#level = Math.max(0, this.#level - passed * this.#rate);
    this.#burstLevel = Math.max(0, this.#burstLevel - passed * this.#burst);
    const wait = (this.#level - this.#brim) / this.#rate;
    const burst = this.#burstBrim === undefined ? 0 : (this.#burstLevel - this.#burstBrim) / this.#burst;
    return Math.max(0, wait, burst);
  }

  fill(units: number): void {
    this.#level += units;
    this.#burstLevel += units;
  }

  /** As `fill`, but nobody has to wait for it later: a full bucket stays as it is. */
  fillToBrim(units: number): void {
    this.#level = Math.max(this.#level, Math.min(this.#level + units, this.#brim));
    const brim = this.#burstBrim ?? Number.POSITIVE_INFINITY;
    this.#burstLevel = Math.max(this.#burstLevel, Math.min(this.#burstLevel + units, brim));
  }
}

export class ThrottleGroup {
  readonly #bytes: Record<Direction, Bucket[]> = { read: [], write: [] };
  readonly #requests: Record<Direction, Bucket[]> = { read: [], write: [] };
  /** Bytes that count as one request; 0: all do. */
  readonly #requestSize: number;
  readonly #signal: AbortSignal | undefined;
  #lifted = 0;
  /** Those that wait, to be woken when the limits are lifted. */
  readonly #sleepers = new Set<() => void>();
  /** Requests pass in the order in which they came. */
  readonly #last: Record<Direction, Promise<void>> = { read: Promise.resolve(), write: Promise.resolve() };

  /** @param signal ends the waiting, where the group is of one operation. */
  constructor(object: UserObject, signal?: AbortSignal) {
    const limits = limitsOf(object);
    const limit = (name: string) => limits.get(name) ?? 0;
    this.#signal = signal;
    this.#requestSize = limit('iops-size');
    for (const unit of UNITS) {
      for (const suffix of ['', '-max']) {
        const sides = limit(`${unit}-read${suffix}`) !== 0 || limit(`${unit}-write${suffix}`) !== 0;
        if (sides && limit(`${unit}-total${suffix}`) !== 0) {
          throw invalid('bps/iops/max total values and read/write values cannot be used at the same time');
        }
      }
    }
    if (this.#requestSize !== 0 && !SIDES.some((side) => limit(`iops-${side}`) !== 0)) {
      throw invalid('iops size requires an iops value to be set');
    }
    for (const unit of UNITS) {
      for (const side of SIDES) {
        const bucket = this.#bucket(
          limit(`${unit}-${side}`),
          limit(`${unit}-${side}-max`),
          limits.get(`${unit}-${side}-max-length`) ?? 1,
        );
        if (bucket === undefined) continue;
        const buckets = unit === 'bps' ? this.#bytes : this.#requests;
        if (side !== 'write') buckets.read.push(bucket);
        if (side !== 'read') buckets.write.push(bucket);
      }
    }
  }

  #bucket(rate: number, burst: number, seconds: number): Bucket | undefined {
    if (rate < 0 || burst < 0 || rate > MAX_LIMIT || burst > MAX_LIMIT) {
      throw invalid(`bps/iops/max values must be within [0, ${MAX_LIMIT}]`);
    }
    if (seconds === 0) throw invalid('the burst length cannot be 0');
    // Below zero it is very long: the reference's is unsigned.
    const long = seconds > 1 || seconds < 0;
    if (long && burst === 0) throw invalid('burst length set without burst rate');
    if (burst !== 0 && (seconds < 0 || burst > MAX_LIMIT / seconds))
      throw invalid('burst length too high for this burst rate');
    if (burst !== 0 && rate === 0) throw invalid('bps_max/iops_max require corresponding bps/iops values');
    if (burst !== 0 && burst < rate) throw invalid('bps_max/iops_max cannot be lower than bps/iops');
    return rate === 0 ? undefined : new Bucket(rate, burst, seconds);
  }

  /** Resolves when a request may go on; rejects where its operation is cancelled. */
  pass(direction: Direction, bytes: number): Promise<void> {
    if (this.#lifted > 0) {
      this.#count(direction, bytes);
      return Promise.resolve();
    }
    const passed = this.#last[direction].then(() => this.#pass(direction, bytes));
    this.#last[direction] = passed.catch(() => {});
    return passed;
  }

  async #pass(direction: Direction, bytes: number): Promise<void> {
    const all = [...this.#bytes[direction], ...this.#requests[direction]];
    while (this.#lifted === 0) {
      const seconds = Math.max(0, ...all.map((bucket) => bucket.wait()));
      if (seconds === 0) break;
      await this.#sleep(seconds * 1000);
    }
    this.#count(direction, bytes);
  }

  #count(direction: Direction, bytes: number): void {
    const fill = this.#lifted > 0 ? 'fillToBrim' : 'fill';
    for (const bucket of this.#bytes[direction]) bucket[fill](bytes);
    const size = this.#requestSize;
    for (const bucket of this.#requests[direction]) {
      bucket[fill](size > 0 && bytes > size ? bytes / size : 1);
    }
  }

  /**
   * Nobody waits until what this returns is called, as in QEMU while a node is drained: who waits for the end of requests
   * must not wait for the limits, and a request that was begun must not fail because of them.
   */
  lift(): () => void {
    this.#lifted++;
    for (const wake of [...this.#sleepers]) wake();
    let over = false;
    return () => {
      if (!over) this.#lifted--;
      over = true;
    };
  }

  #sleep(ms: number): Promise<void> {
    const signal = this.#signal;
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) return reject(cancelledError(signal));
      const end = () => {
        clearTimeout(timer);
        this.#sleepers.delete(wake);
        signal?.removeEventListener('abort', stop);
      };
      const wake = () => {
        end();
        resolve();
      };
      const stop = () => {
        end();
        reject(cancelledError(signal!));
      };
      const timer = setTimeout(wake, Math.min(Math.ceil(ms), MAX_TIMER_MS));
      this.#sleepers.add(wake);
      signal?.addEventListener('abort', stop, { once: true });
    });
  }
}

/** The throttle groups among a request's objects, by id. */
export function throttleGroups(
  objects: readonly UserObject[] | undefined,
  signal: AbortSignal,
): ReadonlyMap<string, ThrottleGroup> | undefined {
  const groups = objects?.filter((object) => object['qom-type'] === 'throttle-group') ?? [];
  if (groups.length === 0) return undefined;
  return new Map(groups.map((object) => [object.id, new ThrottleGroup(object, signal)]));
}
