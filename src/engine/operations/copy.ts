/**
 * The one copy loop: guest bytes of a source into a target image, several windows in flight, zeros found on the way.
 *
 * A window is a run of guest bytes of at most WINDOW bytes whose start and end are multiples of WINDOW (or ends of runs),
 * so that writes cover whole clusters of the target. Reads of windows overlap; writes are started in guest order, so that
 * a new image comes out in that order, unless `outOfOrder`.
 */
import { ImageError, toImageError } from '../error.js';
import type { Extent } from '../node/driver.js';
import type { ChainExtent, ImageNode } from '../node/image.js';
import { all } from '../node/image.js';
import type { MaybePromise, Range } from '../storage/storage.js';
import type { OperationContext } from './context.js';
import type { GuestHash } from './guest-hash.js';
import { isZero, knownRuns, type ZeroRange, zeroRuns } from './zeros.js';

const SECTOR = 512;
/** The reference's buffer: so much of a run of data is one step of its progress. */
const STEP = 2 * 1024 * 1024;
const DONE: Promise<void> = Promise.resolve();
/**
 * Handing a request to another thread costs 50 us and more, so windows are large; and few are in flight, so that they stay
 * in the processor's caches: one is read in this thread while another is written in the thread pool. Twice as much in
 * flight was slower, and so were windows of 1, 2 or 8 MiB.
 */
const WINDOW = 4 * 1024 * 1024;
const IN_FLIGHT = 2;
/** As far as the reference looks ahead: what is wrong is told in its order. */
const SALVAGE_WINDOW = 2 * 1024 * 1024;
/** Compressed writing keeps fewer bytes a window: what is being compressed at once is bounded by windows in flight. */
const PACKED_WINDOW = 512 * 1024;
const PACKED_IN_FLIGHT = 6;

export type CopyKind = 'data' | 'zero' | 'skip';

/** A run of the source: bytes to copy, zeros, or bytes that the target's backing file already has. */
export interface SourceRun {
  readonly kind: CopyKind;
  readonly length: number;
  /** Fills `into` (of `length` bytes or fewer from the run's start); where absent, the run reads as zeros. */
  readonly read?: (into: Buffer) => Promise<void>;
}

export interface CopySource {
  readonly size: number;
  run(range: Range): MaybePromise<SourceRun>;
  /** Fills `into` from offset `at`, whatever kind of run is there: needed where it is to be salvaged. */
  read?(at: number, into: Buffer): Promise<void>;
}

/** What is told of a source that is salvaged, by guest offset: sectors that cannot be read, or that cannot be looked up. */
export interface Salvage {
  /** Zeros take the sector's place. */
  unreadable(at: number, error: unknown): void;
  /** The sector is taken for data. */
  unknown(at: number, error: unknown): void;
}

export interface CopyOptions {
  /** Windows in flight; where absent, what was found to be fast. */
  readonly parallel?: number | undefined;
  readonly outOfOrder: boolean;
  /** Zero runs of at least this many bytes are not written as data; 0: all is written. */
  readonly sparse: number;
  /** Ranges that are not written read as zeros in the target already. */
  readonly targetIsZero: boolean;
  readonly compress: boolean;
  /** True: data is written as it is; only what the source says is zeros becomes zeros. */
  readonly keepData?: boolean;
  /** Absent: errors of the source end the copy. */
  readonly salvage?: Salvage | undefined;
  /** Guest offset to begin at: what is before it is in the target. A multiple of the window, as `checkpoint` tells them. */
  readonly start?: number | undefined;
  /** Told of all guest bytes of the source, copied or not. */
  readonly hash?: GuestHash | undefined;
  readonly checkpoint?: Checkpoint | undefined;
  /**
   * Look up first how much data there is, and tell progress in bytes of that, by pieces as the reference does it; without, all
   * of the guest's bytes count.
   */
  readonly countData?: boolean | undefined;
}

/** Every so often all that has been copied is flushed, and how far that was is told. */
export interface Checkpoint {
  /** Milliseconds. */
  readonly every: number;
  /** Called when the target has all guest bytes before `offset`, flushed, and no write is under way. */
  reached(offset: number): void;
}

export interface CopyTotals {
  /** Bytes written as data. */
  written: number;
  /** Bytes that were zeros. */
  zeros: number;
}

/** What an extent holds; undefined where it is no data. In this thread where the host has it at hand. */
export function dataRun(extent: Extent, length: number): SourceRun | undefined {
  if (extent.kind === 'packed') return { kind: 'data', length, read: (into) => extent.read(into) };
  if (extent.kind !== 'data') return undefined;
  const { storage, at } = extent;
  const read = (into: Buffer) => (storage.readNow?.(at, into) === true ? DONE : storage.read(at, into));
  return { kind: 'data', length, read };
}

/** The same run, of an image that is traced. */
export function toldRun(run: SourceRun, at: number, image: ImageNode): SourceRun {
  const own = run.read;
  if (own === undefined) return run;
  const read = (into: Buffer) => {
    image.readsPast?.(at, into.byteLength);
    return own(into);
  };
  return { ...run, read };
}

/** A chain's extents as a copy source. With `aboveBacking`, only the top layer is copied. */
export function imageSource(image: ImageNode, aboveBacking: boolean, backedSize: number): CopySource {
  const plainRun = (found: ChainExtent): SourceRun => {
    const { extent, length } = found;
    const refused = image.unreadable(found);
    if (refused !== undefined) return { kind: 'data', length, read: () => Promise.reject(refused) };
    return (extent && dataRun(extent, length)) ?? { kind: 'zero', length };
  };
  const toRun =
    image.readsPast === undefined
      ? plainRun
      : (found: ChainExtent, at: number) => toldRun(plainRun(found), at, image);
  const read = async (at: number, into: Buffer) => {
    const found = await Promise.resolve()
      .then(() => image.status({ at, length: into.byteLength }))
      .catch(() => undefined);
    const refused = found && image.unreadable(found);
    if (refused !== undefined) throw refused;
    await image.read(at, into);
  };
  if (!aboveBacking) {
    return {
      size: image.size,
      read,
      run(range) {
        const found = image.status(range);
        // Where somebody may be writing, bytes may move until they are read.
        const stay = !image.writable;
        const run = (answer: ChainExtent): SourceRun =>
          stay || answer.kind === 'zero' || answer.kind === 'none'
            ? toRun(answer, range.at)
            : { kind: 'data', length: answer.length, read: (into) => image.read(range.at, into) };
        return found instanceof Promise ? found.then(run) : run(found);
      },
    };
  }
  return {
    size: image.size,
    read,
    async run(range) {
      // What lies past the target's backing file reads as zeros there too: nothing to hide.
      const past = range.at >= backedSize;
      const length = past ? range.length : Math.min(range.length, backedSize - range.at);
      const extent = await image.format.map({ at: range.at, length });
      // Where the source has nothing below it, or its backing file has ended, it reads as zeros whatever the target's has.
      const below = Math.min(extent.length, (image.backing?.size ?? 0) - range.at);
      if (extent.kind === 'backing' && below > 0) {
        return { kind: 'skip', length: below, read: (into) => image.read(range.at, into) };
      }
      if (extent.kind === 'zero' || extent.kind === 'backing') {
        return { kind: past ? 'skip' : 'zero', length: extent.length };
      }
      return toRun({ kind: extent.kind, length: extent.length, depth: 0, layer: image, extent }, range.at);
    },
  };
}

/** Several sources one after another. */
export function concatenated(sources: readonly CopySource[]): CopySource {
  if (sources.length === 1) return sources[0]!;
  const starts: number[] = [];
  let size = 0;
  for (const source of sources) {
    starts.push(size);
    size += source.size;
  }
  const indexAt = (at: number): number => {
    let index = starts.length - 1;
    while (starts[index]! > at) index--;
    return index;
  };
  return {
    size,
    run(range) {
      const index = indexAt(range.at);
      const source = sources[index]!;
      const at = range.at - starts[index]!;
      return source.run({ at, length: Math.min(range.length, source.size - at) });
    },
    async read(at, into) {
      for (let done = 0; done < into.byteLength; ) {
        const index = indexAt(at + done);
        const source = sources[index]!;
        const start = at + done - starts[index]!;
        const part = into.subarray(done, done + source.size - start);
        await source.read!(start, part);
        done += part.byteLength;
      }
    },
  };
}

/** The same source, where what cannot be looked up is narrowed down to single sectors and taken for data. */
function salvaged(source: CopySource, { unknown }: Salvage): CopySource {
  return {
    size: source.size,
    read: (at, into) => source.read!(at, into),
    async run({ at, length }) {
      for (let asked = length; ; ) {
        try {
          return await source.run({ at, length: asked });
        } catch (error) {
          if (asked <= SECTOR) {
            unknown(at, error);
            return { kind: 'data', length: asked, read: (into) => source.read!(at, into) };
          }
          asked = Math.max(SECTOR, Math.floor(asked / 2 / SECTOR) * SECTOR);
        }
      }
    },
  };
}

/** A window that was planned: what is read into its buffer, piece by piece. */
interface Window {
  readonly at: number;
  readonly length: number;
  readonly pieces: readonly WindowPiece[];
}

interface WindowPiece {
  /** In the window. */
  readonly offset: number;
  readonly run: SourceRun;
  /** Bytes of the same run that were in windows before. */
  readonly before: number;
  /** The run goes on in the next window. */
  readonly cut: boolean;
}

/** One unit of a compressed target, between compression and storing. */
interface PackedUnit {
  readonly at: number;
  readonly bytes: Buffer;
  readonly zero: boolean;
  /** Undefined where compression does not pay. */
  stored: Uint8Array | undefined;
}

class Copy {
  readonly totals: CopyTotals = { written: 0, zeros: 0 };
  readonly #source: CopySource;
  readonly #target: ImageNode;
  readonly #options: CopyOptions;
  readonly #context: OperationContext;
  readonly #window: number;
  /** What the target allocates at once: nothing smaller stays unallocated in it anyway. */
  readonly #unit: number;
  /** Zeros are looked for in blocks of this. */
  readonly #block: number;
  #position = 0;
  #done = 0;
  #total: number;
  /** The run that the last window ended in, and how much of it is planned. */
  #cut: { readonly end: number; readonly planned: number } | undefined;
  #planning: Promise<unknown> = Promise.resolve();
  #sequence = 0;
  #turn = 0;
  readonly #waiting = new Map<number, () => void>();
  #failure: unknown;
  #failed = false;
  /** Windows that are planned and not yet written. */
  #open = 0;
  #allWritten: (() => void) | undefined;
  #lastCheckpoint = Date.now();

  constructor(source: CopySource, target: ImageNode, options: CopyOptions, context: OperationContext) {
    this.#source = options.salvage === undefined ? source : salvaged(source, options.salvage);
    this.#target = target;
    this.#options = options;
    this.#context = context;
    const { compress, salvage } = options;
    const unit = compress ? target.format.pack!.unit : target.format.unit;
    this.#window = Math.max(unit, compress ? PACKED_WINDOW : salvage === undefined ? WINDOW : SALVAGE_WINDOW);
    this.#unit = Math.max(SECTOR, unit);
    this.#block = Math.max(this.#unit, 2 ** Math.floor(Math.log2(Math.max(1, options.sparse))));
    this.#position = options.start ?? 0;
    this.#done = this.#position;
    this.#total = source.size;
    // A hash is of all: what was copied before is read again for it.
    if (this.#position > 0) options.hash?.skipped(0, this.#position, source.read!);
  }

  async run(): Promise<CopyTotals> {
    const { salvage, compress, countData } = this.#options;
    const parallel = this.#options.parallel ?? (compress ? PACKED_IN_FLIGHT : IN_FLIGHT);
    if (countData === true) await this.#countData();
    else {
      this.#report();
      if (salvage !== undefined) await this.#survey(() => {});
    }
    // A source that fails is read in order, and its failures are told in order.
    await all(Array.from({ length: salvage === undefined ? parallel : 1 }, () => this.#worker()));
    if (this.#failed) throw this.#failure;
    return this.totals;
  }

  /** Looks everything up once before anything is copied, as the reference does: what is wrong there is told first. */
  async #survey(see: (at: number, run: SourceRun) => void): Promise<void> {
    const { size } = this.#source;
    for (let at = 0; at < size; ) {
      if (this.#context.signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
      const pause = this.#context.pace(0);
      if (pause !== undefined) await pause;
      const asked = this.#run({ at, length: size - at });
      const run = asked instanceof Promise ? await asked : asked;
      see(at, run);
      at += run.length;
    }
  }

  async #countData(): Promise<void> {
    const start = this.#position;
    let [done, total] = [0, 0];
    await this.#survey((at, run) => {
      if (!this.#counts(run)) return;
      total += run.length;
      done += Math.min(Math.max(0, start - at), run.length);
    });
    this.#done = done;
    this.#total = total;
    if (done > 0) this.#report();
  }

  /** Whether a run is work, where data alone is. */
  #counts({ kind }: SourceRun): boolean {
    return kind === 'data' || (kind === 'zero' && this.#options.sparse === 0);
  }

  #fail(error: unknown): void {
    if (!this.#failed) {
      this.#failed = true;
      this.#failure = error;
      this.#options.hash?.abandon(error);
      this.#allWritten?.();
    }
    for (const wake of this.#waiting.values()) wake();
    this.#waiting.clear();
  }

  async #worker(): Promise<void> {
    const buffer = Buffer.allocUnsafeSlow(this.#window);
    try {
      while (!this.#failed) {
        if (this.#context.signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
        const planned = this.#next();
        const [window, sequence] = await planned;
        if (window === undefined) return;
        const pause = this.#context.pace(window.length);
        if (pause !== undefined) await pause;
        await this.#read(window, buffer);
        // Before it is written, which may change the buffer (encryption).
        await this.#options.hash?.data(window.at, buffer.subarray(0, window.length));
        const units = this.#options.compress ? await this.#compress(window, buffer) : undefined;
        if (!this.#options.outOfOrder) await this.#myTurn(sequence);
        if (this.#failed) return;
        if (units !== undefined) {
          // Compressed units are packed one behind the other: each window is stored whole before the next.
          await this.#writeUnits(units);
          this.#passTurn(sequence);
        } else {
          const writing = this.#write(window, buffer);
          // Allocation happens as the write starts: the next window may start its own now.
          this.#passTurn(sequence);
          await writing;
        }
        this.#finished(window.length);
        if (--this.#open === 0) this.#allWritten?.();
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  /** The next window with data, planned one after another; zeros and skipped runs before it are dealt with here. */
  #next(): Promise<[Window | undefined, number]> {
    const planned = this.#planning.then(() => this.#plan());
    this.#planning = planned.catch(() => {});
    return planned;
  }

  async #plan(): Promise<[Window | undefined, number]> {
    const { size } = this.#source;
    while (this.#position < size && !this.#failed) {
      if (this.#options.checkpoint !== undefined) await this.#checkpoint(this.#options.checkpoint);
      const at = this.#position;
      const asked = this.#run({ at, length: size - at });
      const run = asked instanceof Promise ? await asked : asked;
      if (run.kind === 'data' || (run.kind === 'zero' && this.#options.sparse === 0))
        return this.#planWindow(at, run);
      if (run.kind === 'zero') {
        // Zeros up to the next window boundary that hold no whole unit of the target belong to a window of data.
        const whole = this.#wholeUnits(at, run.length);
        if (whole < run.length && whole === 0) return this.#planWindow(at, run);
        await this.#zeros(at, whole);
        this.#options.hash?.zeros(at, whole);
        this.#position = at + whole;
        this.totals.zeros += whole;
        this.#finished(whole);
      } else {
        const whole = this.#wholeSkipped(at, run.length);
        if (whole === 0) return this.#planWindow(at, run);
        this.#options.hash?.skipped(at, whole, this.#source.read!);
        this.#position = at + whole;
        this.#finished(whole);
      }
      if (this.#context.signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
    }
    return [undefined, 0];
  }

  /** Between two windows, at a boundary that a resumed copy can begin at; waits until nothing is being written. */
  async #checkpoint({ every, reached }: Checkpoint): Promise<void> {
    const offset = this.#position;
    if (Date.now() - this.#lastCheckpoint < every || offset === 0 || offset % this.#window !== 0) return;
    if (this.#open > 0 && !this.#failed) {
      await new Promise<void>((written) => {
        this.#allWritten = written;
      });
      this.#allWritten = undefined;
    }
    if (this.#failed) return;
    await this.#target.flush();
    reached(offset);
    this.#lastCheckpoint = Date.now();
  }

  #run(range: Range): MaybePromise<SourceRun> {
    const told = (error: unknown): never => {
      throw failed('status', range.at, error);
    };
    try {
      const asked = this.#source.run(range);
      return asked instanceof Promise ? asked.catch(told) : asked;
    } catch (error) {
      return told(error);
    }
  }

  /** The same write, whose failure tells the place. */
  #put(at: number, writing: Promise<void>): Promise<void> {
    return writing.catch((error: unknown) => {
      throw failed('write', at, error);
    });
  }

  /** How much of a zero run at `at` ends where one of the target's units does (or at the image's end). */
  #wholeUnits(at: number, length: number): number {
    const end = at + length;
    if (end >= this.#source.size) return length;
    if (at % this.#unit !== 0) return 0;
    return Math.max(0, end - (end % this.#unit) - at);
  }

  /** How much of a run that need not be copied can be left out: compressed units are written whole or not at all. */
  #wholeSkipped(at: number, length: number): number {
    if (!this.#options.compress) return length;
    const { unit } = this.#target.format.pack!;
    const end = at + length;
    if (at % unit !== 0) return 0;
    return end >= this.#source.size ? length : length - (end % unit);
  }

  async #planWindow(at: number, first: SourceRun): Promise<[Window, number]> {
    const { size } = this.#source;
    const stop = Math.min(size, at - (at % this.#window) + this.#window);
    // Whether a run goes on behind the window matters to progress alone.
    const look = this.#options.countData === true ? Math.min(size, stop + SECTOR) : stop;
    const pieces: WindowPiece[] = [];
    let position = at;
    let run = first;
    for (;;) {
      const length = Math.min(run.length, stop - position);
      const cut = length < run.length;
      const before = this.#cut?.end === position ? this.#cut.planned : 0;
      pieces.push({ offset: position - at, run: cut ? { ...run, length } : run, before, cut });
      position += length;
      this.#cut = cut ? { end: position, planned: before + length } : undefined;
      if (position >= stop) break;
      const asked = this.#run({ at: position, length: look - position });
      run = asked instanceof Promise ? await asked : asked;
      if (run.kind === 'skip' && this.#wholeSkipped(position, run.length) > 0) break;
    }
    this.#position = position;
    this.#open++;
    // Windows end in any order: data is counted as they are handed out, in guest order, as the reference does.
    if (this.#options.countData === true) this.#countPieces(pieces);
    return [{ at, length: position - at, pieces }, this.#sequence++];
  }

  async #read(window: Window, buffer: Buffer): Promise<void> {
    const reads: Promise<void>[] = [];
    for (const { offset, run } of window.pieces) {
      const part = buffer.subarray(offset, offset + run.length);
      if (run.read === undefined) part.fill(0);
      else {
        const reading = run.read(part);
        if (this.#options.salvage !== undefined) {
          // One after another, so that what cannot be read is told in guest order.
          await reading.catch(() => this.#salvage(window.at + offset, part));
        } else {
          reads.push(
            reading.catch((error) => {
              throw failed('read', window.at + offset, error);
            }),
          );
        }
      }
    }
    if (reads.length === 1) await reads[0];
    else await all(reads);
  }

  /** Reads a failed piece again sector by sector; sectors that cannot be read become zeros. */
  async #salvage(at: number, part: Buffer): Promise<void> {
    for (let done = 0; done < part.byteLength; done += SECTOR) {
      const sector = part.subarray(done, Math.min(part.byteLength, done + SECTOR));
      try {
        await this.#source.read!(at + done, sector);
      } catch (error) {
        sector.fill(0);
        this.#options.salvage!.unreadable(at + done, error);
      }
    }
  }

  #myTurn(sequence: number): Promise<void> | undefined {
    if (this.#turn === sequence || this.#failed) return undefined;
    return new Promise((resolve) => this.#waiting.set(sequence, resolve));
  }

  #passTurn(sequence: number): void {
    if (this.#options.outOfOrder) return;
    this.#turn = sequence + 1;
    const wake = this.#waiting.get(this.#turn);
    this.#waiting.delete(this.#turn);
    wake?.();
  }

  async #zeros(at: number, length: number): Promise<void> {
    if (this.#options.targetIsZero || length === 0) return;
    await this.#put(at, this.#target.zero({ at, length }, { unmap: true }));
  }

  async #write(window: Window, buffer: Buffer): Promise<void> {
    const { at, length } = window;
    if (this.#options.sparse === 0) {
      this.totals.written += length;
      return this.#put(at, this.#target.write(at, buffer.subarray(0, length)));
    }
    const zeros = this.#zeroPieces(window, buffer);
    const runs = knownRuns(length, at, this.#unit, zeros);
    const work: Promise<void>[] = [];
    for (const run of runs) {
      const bytes = run.end - run.start;
      if (run.zero) {
        this.totals.zeros += bytes;
        if (!this.#options.targetIsZero) work.push(this.#zeros(at + run.start, bytes));
      } else {
        this.totals.written += bytes;
        const start = at + run.start;
        work.push(this.#put(start, this.#target.write(start, buffer.subarray(run.start, run.end))));
      }
    }
    if (work.length === 1) await work[0];
    else await all(work);
  }

  /** Zeros in the buffer: what the source says is, exactly; those within its data in blocks. */
  #zeroPieces({ at, pieces }: Window, buffer: Buffer): readonly ZeroRange[] {
    const zeros: ZeroRange[] = [];
    const put = (start: number, end: number) => {
      const last = zeros.at(-1);
      if (last?.end === start) zeros[zeros.length - 1] = { start: last.start, end };
      else zeros.push({ start, end });
    };
    for (const { offset, run } of pieces) {
      if (run.kind === 'zero') put(offset, offset + run.length);
      else if (this.#options.keepData !== true) {
        const part = buffer.subarray(offset, offset + run.length);
        for (const found of zeroRuns(part, run.length, at + offset, this.#block, this.#options.sparse)) {
          if (found.zero) put(offset + found.start, offset + found.end);
        }
      }
    }
    return zeros;
  }

  /** Compresses all units of a window at once, on the thread pool. */
  async #compress(window: Window, buffer: Buffer): Promise<PackedUnit[]> {
    const pack = this.#target.format.pack!;
    const units: PackedUnit[] = [];
    const work: Promise<void>[] = [];
    for (let offset = 0; offset < window.length; offset += pack.unit) {
      let bytes = buffer.subarray(offset, Math.min(window.length, offset + pack.unit));
      const zero = this.#options.sparse !== 0 && isZero(bytes, 0, bytes.byteLength);
      const short = bytes.byteLength < pack.unit;
      // The end of a source inside a unit of a larger target: the rest of that unit stays as it is.
      const kept = short && window.at + offset + bytes.byteLength < this.#target.size;
      if (!zero && short && !kept) {
        // The image's last, incomplete unit is stored whole.
        bytes = Buffer.concat([bytes, Buffer.alloc(pack.unit - bytes.byteLength)]);
      }
      const unit: PackedUnit = { at: window.at + offset, bytes, zero, stored: undefined };
      units.push(unit);
      if (!zero && !kept) {
        work.push(
          pack.compress(bytes).then((stored) => {
            unit.stored = stored;
          }),
        );
      }
    }
    await all(work);
    return units;
  }

  async #writeUnits(units: readonly PackedUnit[]): Promise<void> {
    for (const { at, bytes, zero, stored } of units) {
      const length = Math.min(bytes.byteLength, this.#target.size - at);
      if (zero) {
        this.totals.zeros += length;
        await this.#zeros(at, length);
        continue;
      }
      this.totals.written += length;
      if (stored === undefined) await this.#put(at, this.#target.write(at, bytes.subarray(0, length)));
      else await this.#put(at, this.#target.writePacked(at, stored));
    }
  }

  #finished(bytes: number): void {
    if (this.#options.countData === true) return;
    this.#done += bytes;
    this.#report();
  }

  #countPieces(pieces: readonly WindowPiece[]): void {
    const step = this.#options.compress ? this.#target.format.pack!.unit : STEP;
    for (const { run, before, cut } of pieces) {
      if (!this.#counts(run)) continue;
      for (let done = 0; done < run.length; ) {
        const bytes = Math.min(run.length - done, step - ((before + done) % step));
        done += bytes;
        this.#done += bytes;
        if ((before + done) % step === 0 || (done === run.length && !cut)) this.#report();
      }
    }
  }

  #report(): void {
    this.#context.progress({
      phase: 'copy',
      done: this.#done,
      total: this.#total,
      written: this.totals.written,
      zeros: this.totals.zeros,
    });
  }
}

const FAILED = {
  read: 'error while reading at byte',
  status: 'error while reading block status at offset',
  write: 'error while writing at byte',
} as const;

function failed(operation: keyof typeof FAILED, at: number, error: unknown): ImageError {
  const cause = toImageError(error);
  const text = `${FAILED[operation]} ${at}: ${cause.message}`;
  return new ImageError(cause.kind, text, { ...cause.context, offset: at, operation }, error);
}

/** Copies the whole source into the target, from guest offset 0. The caller flushes. */
export function copy(
  source: CopySource,
  target: ImageNode,
  options: CopyOptions,
  context: OperationContext,
): Promise<CopyTotals> {
  return new Copy(source, target, options, context).run();
}
