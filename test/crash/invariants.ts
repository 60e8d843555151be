/**
 * What must hold in every state that a crash can leave: the image opens, the checker reports no corruption (leaks are
 * allowed), and each sector of the guest's content is what it was before a write or what the write made it. What was
 * written before a flush that completed must be there.
 */
import type { CheckResult } from '../../src/engine/node/driver.js';
import type { CrashLog } from './recorder.js';
import { type CrashState, prefixStates, type SampleOptions, type Snapshot, sampledStates } from './replay.js';

const SECTOR = 512;

export interface Found {
  readonly result: CheckResult;
  readonly lines: readonly string[];
}

/** An image opened on a crash state. */
export interface OpenedImage {
  /** Guest size in bytes. */
  readonly size: number;
  read(at: number, length: number): Promise<Uint8Array>;
  check?(): Promise<Found>;
  close(): Promise<void>;
}

/**
 * The guest's view over time: for each sector its possible contents, in order, each with the moments at which its write
 * was issued and at which a flush that covers it completed.
 */
export class GuestHistory {
  readonly #log: CrashLog;
  readonly size: number;
  readonly #initial: Uint8Array;
  readonly #current: Uint8Array;
  readonly #versions = new Map<number, Version[]>();
  #unflushed: Version[] = [];

  constructor(log: CrashLog, initial: Uint8Array) {
    this.#log = log;
    this.size = initial.length;
    this.#initial = initial.slice();
    this.#current = initial.slice();
  }

  /** The content that the guest sees when all is done. */
  get current(): Uint8Array {
    return this.#current;
  }

  /** Runs a guest write of `data` at `at` and remembers what it makes possible. Undefined data: any bytes of `length`. */
  async write(at: number, data: Uint8Array, run: () => Promise<unknown>): Promise<void> {
    const made = this.#begin(at, at + data.length, (from, to) => {
      this.#current.set(data.subarray(from - at, to - at), from);
      const sector = from - (from % SECTOR);
      return this.#current.slice(sector, Math.min(sector + SECTOR, this.size));
    });
    await run();
    for (const version of made) version.done = this.#log.tick();
    this.#unflushed.push(...made);
  }

  /** Runs a guest flush; what had been written before is durable once it has completed. */
  async flush(run: () => Promise<unknown>): Promise<void> {
    const covered = this.#unflushed;
    this.#unflushed = [];
    await run();
    const time = this.#log.tick();
    for (const version of covered) version.durable = time;
  }

  #begin(at: number, end: number, make: (from: number, to: number) => Uint8Array): Version[] {
    const issued = this.#log.tick();
    const made: Version[] = [];
    for (let from = at; from < end; ) {
      const sector = Math.floor(from / SECTOR);
      const to = Math.min(end, (sector + 1) * SECTOR);
      const version: Version = { content: make(from, to), issued, done: Infinity, durable: Infinity };
      const list = this.#versions.get(sector);
      if (list === undefined) this.#versions.set(sector, [version]);
      else list.push(version);
      made.push(version);
      from = to;
    }
    return made;
  }

  /** The first sector whose content at that moment cannot be; undefined where all is well. */
  violation(time: number, content: Uint8Array): string | undefined {
    for (let at = 0; at < this.size; at += SECTOR) {
      const found = content.subarray(at, Math.min(at + SECTOR, this.size));
      const versions = this.#versions.get(at / SECTOR) ?? [];
      let newest = -1;
      for (const [index, version] of versions.entries()) if (version.durable <= time) newest = index;
      const base = newest < 0 ? this.#initial.subarray(at, at + found.length) : versions[newest]!.content;
      if (equal(found, base)) continue;
      const later = versions.filter((version, index) => index > newest && version.issued <= time);
      if (later.some((version) => equal(found, version.content))) continue;
      return `guest sector at ${at} is ${sketch(found)}: neither ${newest < 0 ? 'old' : 'flushed'} ${sketch(base)}${later.map((version) => ` nor new ${sketch(version.content)}`).join('')}`;
    }
    return undefined;
  }
}

interface Version {
  readonly content: Uint8Array;
  readonly issued: number;
  done: number;
  durable: number;
}

function equal(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.compare(one, other) === 0;
}

function sketch(bytes: Uint8Array): string {
  return `${Buffer.from(bytes.subarray(0, 8)).toString('hex')}..${Buffer.from(bytes.subarray(-4)).toString('hex')}`;
}

export interface Expectation {
  /** Opens the image in a state, writable where opening would repair something first. */
  open(state: CrashState): Promise<OpenedImage>;
  /** The guest content over time; absent where only the metadata is looked at. */
  readonly history?: GuestHistory;
  /** The guest size that there may be too, smaller: before the image is grown. */
  readonly oldSize?: number;
  /** False at moments when no image need be there yet (`create`); one that opens must be sound all the same. */
  mustOpen?(state: CrashState): boolean;
  /** A bound on corruptions; 0 unless the image was corrupt before. */
  corruptions?(state: CrashState): number;
}

/** A state that breaks an invariant, with where and how; undefined where it holds. */
export async function violationOf(state: CrashState, expected: Expectation): Promise<string | undefined> {
  let image: OpenedImage;
  try {
    image = await expected.open(state);
  } catch (error) {
    if (expected.mustOpen?.(state) === false) return undefined;
    return `${state.label}: the image does not open: ${messageOf(error)}`;
  }
  try {
    if (image.check !== undefined) {
      const { result, lines } = await image.check();
      const allowed = expected.corruptions?.(state) ?? 0;
      if (result.corruptions > allowed || result.checkErrors > 0) {
        return `${state.label}: ${result.corruptions} corruptions, ${result.checkErrors} check errors: ${lines.filter((line) => !line.startsWith('Leaked')).join('; ')}`;
      }
    }
    if (expected.history !== undefined && expected.mustOpen?.(state) !== false) {
      const { history, oldSize } = expected;
      if (image.size !== history.size && image.size !== oldSize) {
        return `${state.label}: guest size is ${image.size}`;
      }
      // what an image that has not grown yet lacks, a guest has not written
      const content = new Uint8Array(history.size);
      content.set(await image.read(0, image.size));
      const broken = history.violation(state.time, content);
      if (broken !== undefined) return `${state.label}: ${broken}`;
    }
    return undefined;
  } catch (error) {
    return `${state.label}: reading fails: ${messageOf(error)}`;
  } finally {
    await image.close();
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** How many sampled states a test makes: IMGD_CRASH_SAMPLES, or the given number. */
export function sampleCount(standard: number): number {
  const asked = Number(process.env.IMGD_CRASH_SAMPLES);
  return Number.isSafeInteger(asked) && asked > 0 ? asked : standard;
}

export interface CrashVerdict {
  readonly states: number;
  /** The first violations, with the log where there are any. */
  readonly violations: readonly string[];
}

/** Looks at every prefix of the log and at samples of reorderings; stops after a few violations. */
export async function verifyCrashes(
  log: CrashLog,
  start: Snapshot,
  expected: Expectation,
  options: SampleOptions,
): Promise<CrashVerdict> {
  const violations: string[] = [];
  let states = 0;
  for (const kind of [prefixStates(log, start), sampledStates(log, start, options)]) {
    for (const state of kind) {
      states += 1;
      const broken = await violationOf(state, expected);
      if (broken !== undefined) violations.push(broken);
      if (violations.length >= 3) return { states, violations: [...violations, ...log.describe()] };
    }
  }
  return { states, violations: violations.length > 0 ? [...violations, ...log.describe()] : violations };
}
