/**
 * Which states a crash can leave. At a moment t of the log every request falls in one of three groups: not yet issued;
 * durable (completed before a flush of its file was issued that itself had completed by t); or in flight, which a disk may
 * hold or not, each on its own. Requests that overlap are applied in the order in which they were issued. Truncates of
 * one file keep their order, as file systems journal them: where one is missing, all later ones are.
 */
import { PagedStorage } from './paged.js';
import { seeded } from './random.js';
import type { CrashLog, LogEntry } from './recorder.js';

const SECTOR = 512;

/** The files' content when recording began. */
export type Snapshot = ReadonlyMap<string, PagedStorage>;

export interface CrashState {
  /** Says which state this is, so that a failure can be found again. */
  readonly label: string;
  /** The moment of the crash, in the log's time. */
  readonly time: number;
  /** Each file as the crash left it. Belongs to the receiver: it may be written. */
  readonly files: Map<string, PagedStorage>;
}

export interface SampleOptions {
  readonly seed: number;
  /** How many states at most. */
  readonly samples: number;
  /** Writes and zeroes may be done in part, in sectors of 512 bytes. */
  readonly torn?: boolean;
}

type Files = Map<string, PagedStorage>;

function fork(files: Snapshot): Files {
  return new Map([...files].map(([name, storage]) => [name, storage.fork()]));
}

/** Applies a request; `keep` decides for each sector of it where it is torn. */
function apply(files: Files, entry: LogEntry, keep?: () => boolean): void {
  const { file, request } = entry;
  let storage = files.get(file);
  if (storage === undefined) {
    storage = new PagedStorage(file);
    files.set(file, storage);
  }
  switch (request.kind) {
    case 'flush':
      return;
    case 'truncate':
      storage.resize(request.size);
      return;
    case 'write':
      for (const { at, data } of request.edges) if (keep?.() !== false) storage.put(at, data);
      if (keep === undefined) storage.put(request.at, request.data);
      else {
        for (const [from, to] of sectors(request.at, request.data.length)) {
          if (keep()) storage.put(from, request.data.subarray(from - request.at, to - request.at));
        }
      }
      return;
    case 'zero': {
      for (const { at, data } of request.edges) if (keep?.() !== false) storage.put(at, data);
      const end = request.at + request.length;
      if (request.length === 0) return;
      if (end > storage.size) storage.resize(end);
      // a zero of gigabytes is a change of the host's extents, which is not torn by sectors
      if (keep === undefined || request.length > 1024 * SECTOR) storage.clear(request.at, request.length);
      else
        for (const [from, to] of sectors(request.at, request.length))
          if (keep()) storage.clear(from, to - from);
      return;
    }
    case 'discard':
      storage.clear(request.at, request.length);
      return;
  }
}

function* sectors(at: number, length: number): Generator<[from: number, to: number]> {
  const end = at + length;
  for (let from = at; from < end; ) {
    const to = Math.min(end, from - (from % SECTOR) + SECTOR);
    yield [from, to];
    from = to;
  }
}

/** For each entry the moment from which on it is durable. */
function durableFrom(log: CrashLog): number[] {
  const flushes = log.entries.filter(
    (entry) => entry.request.kind === 'flush' && Number.isFinite(entry.completed),
  );
  return log.entries.map((entry) => {
    let time = Number.POSITIVE_INFINITY;
    for (const flush of flushes) {
      if (flush.file === entry.file && flush.issued > entry.completed && flush.completed < time) {
        time = flush.completed;
      }
    }
    return time;
  });
}

/** Every prefix of the log in the order of issue, at the latest moment at which the disk may be in that state. */
export function* prefixStates(log: CrashLog, start: Snapshot): Generator<CrashState> {
  const files = fork(start);
  for (let count = 0; count <= log.entries.length; count++) {
    if (count > 0) {
      const entry = log.entries[count - 1]!;
      apply(files, entry);
      // a flush changes nothing on the disk: the state after it is the one before it, later
      if (log.entries[count]?.request.kind === 'flush') continue;
    }
    const next = log.entries[count];
    yield {
      label: `prefix ${count}`,
      time: next === undefined ? log.time : next.issued - 1,
      files: fork(files),
    };
  }
}

/** States between flushes: of the requests in flight at a moment, some are on the disk and some are not. */
export function* sampledStates(
  log: CrashLog,
  start: Snapshot,
  options: SampleOptions,
): Generator<CrashState> {
  const random = seeded(options.seed);
  const durable = durableFrom(log);
  const windows = flushWindows(log);
  let made = 0;

  // First the states that find a wrong order soonest: just before a flush completes, one request alone, or all but one.
  const sharp: { time: number; index: number; alone: boolean }[] = [];
  for (const time of windows) {
    for (const index of inFlight(log, durable, time)) {
      sharp.push({ time, index, alone: true }, { time, index, alone: false });
    }
  }
  shuffle(sharp, random);
  const builder = new StateBuilder(log, start, durable);
  for (const { time, index, alone } of sharp.slice(0, Math.ceil(options.samples / 2))) {
    made += 1;
    yield builder.build(
      time,
      (at) => (at === index) === alone,
      `${alone ? 'only' : 'all but'} #${index} @${time}`,
    );
  }

  for (; made < options.samples; made++) {
    const time = 1 + Math.floor(random() * log.time);
    const share = [0.03, 0.2, 0.5, 0.8, 0.97][Math.floor(random() * 5)]!;
    const torn = options.torn === true && random() < 0.5;
    yield builder.build(
      time,
      () => random() < share,
      `sample ${made} @${time}`,
      torn ? () => random() < 0.5 : undefined,
    );
  }
}

function flushWindows(log: CrashLog): number[] {
  const times = log.entries
    .filter((entry) => entry.request.kind === 'flush' && Number.isFinite(entry.completed))
    .map((entry) => entry.completed - 1);
  return [...new Set([...times, log.time])];
}

function inFlight(log: CrashLog, durable: readonly number[], time: number): number[] {
  const found: number[] = [];
  for (const [index, entry] of log.entries.entries()) {
    if (entry.issued <= time && durable[index]! > time && entry.request.kind !== 'flush') found.push(index);
  }
  return found;
}

function shuffle<T>(list: T[], random: () => number): void {
  for (let last = list.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [list[last], list[other]] = [list[other]!, list[last]!];
  }
}

/** Applies what is durable and what was chosen; keeps bases for the beginnings of the log that many states share. */
class StateBuilder {
  readonly #log: CrashLog;
  readonly #durable: readonly number[];
  /** After the first n entries, for some n. */
  readonly #bases = new Map<number, Files>();

  constructor(log: CrashLog, start: Snapshot, durable: readonly number[]) {
    this.#log = log;
    this.#durable = durable;
    this.#bases.set(0, fork(start));
  }

  build(time: number, choose: (index: number) => boolean, label: string, keep?: () => boolean): CrashState {
    const { entries } = this.#log;
    let settled = 0;
    while (settled < entries.length && entries[settled]!.issued <= time && this.#isSettled(settled, time))
      settled++;
    const files = fork(this.#base(settled));
    const barred = this.#barredTruncates(time, choose);
    for (let index = settled; index < entries.length; index++) {
      const entry = entries[index]!;
      if (entry.issued > time) break;
      if (this.#durable[index]! <= time) apply(files, entry);
      else if (entry.request.kind === 'truncate') {
        if (!barred.has(index)) apply(files, entry);
      } else if (choose(index)) apply(files, entry, keep);
    }
    return { label, time, files };
  }

  /** Truncates that are not done: those not chosen, and all after one of these, but never one before a durable one. */
  #barredTruncates(time: number, choose: (index: number) => boolean): Set<number> {
    const { entries } = this.#log;
    const barred = new Set<number>();
    const lastDurable = new Map<string, number>();
    for (const [index, entry] of entries.entries()) {
      if (entry.request.kind === 'truncate' && this.#durable[index]! <= time)
        lastDurable.set(entry.file, index);
    }
    const stopped = new Set<string>();
    for (const [index, entry] of entries.entries()) {
      if (entry.issued > time || entry.request.kind !== 'truncate') continue;
      if (index <= (lastDurable.get(entry.file) ?? -1)) continue;
      if (stopped.has(entry.file) || !choose(index)) {
        stopped.add(entry.file);
        barred.add(index);
      }
    }
    return barred;
  }

  #isSettled(index: number, time: number): boolean {
    return this.#durable[index]! <= time || this.#log.entries[index]!.request.kind === 'flush';
  }

  #base(count: number): Files {
    const known = this.#bases.get(count);
    if (known !== undefined) return known;
    let from = 0;
    for (const other of this.#bases.keys()) if (other <= count && other > from) from = other;
    const files = fork(this.#bases.get(from)!);
    for (let index = from; index < count; index++) apply(files, this.#log.entries[index]!);
    this.#bases.set(count, files);
    return files;
  }
}
