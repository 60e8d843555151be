/**
 * The one copy loop: guest bytes of a source into a target image, several windows in flight, zeros found on the way.
 *
 * A window is a run of guest bytes of at most WINDOW bytes whose start and end are multiples of WINDOW (or ends of runs),
 * so that writes cover whole clusters of the target. Reads of windows overlap; writes are started in guest order, so that
 * a new image comes out in that order, unless `outOfOrder`.
 */
import { ImageError } from '../error.js';
import type { ChainExtent, ImageNode } from '../node/image.js';
import { all } from '../node/image.js';
import type { MaybePromise, Range } from '../storage/storage.js';
import type { OperationContext } from './context.js';
import { isZero, zeroRuns } from './zeros.js';

const SECTOR = 512;
const WINDOW = 2 * 1024 * 1024;
/** Compressed writing keeps fewer bytes a window: what is being compressed at once is bounded by windows in flight. */
const PACKED_WINDOW = 512 * 1024;

export type CopyKind = 'data' | 'zero' | 'skip';

/** A run of the source: bytes to copy, zeros, or bytes that the target's backing file already has. */
export interface SourceRun {
  readonly kind: CopyKind;
  readonly length: number;
  /** Fills `into` (of `length` bytes or fewer from the run's start); absent where kind is not `data`. */
  readonly read?: (into: Buffer) => Promise<void>;
}

export interface CopySource {
  readonly size: number;
  run(range: Range): MaybePromise<SourceRun>;
}

export interface CopyOptions {
  /** Windows in flight. */
  readonly parallel: number;
  readonly outOfOrder: boolean;
  /** Zero runs of at least this many bytes are not written as data; 0: all is written. */
  readonly sparse: number;
  /** Ranges that are not written read as zeros in the target already. */
  readonly targetIsZero: boolean;
  readonly compress: boolean;
  /** Told of each sector (by its guest offset) that could not be read: zeros take its place. Absent: errors end the copy. */
  readonly salvage?: ((at: number, error: unknown) => void) | undefined;
}

export interface CopyTotals {
  /** Bytes written as data. */
  written: number;
  /** Bytes that were zeros. */
  zeros: number;
}

/** A chain's extents as a copy source. With `aboveBacking`, only the top layer is copied. */
export function imageSource(image: ImageNode, aboveBacking: boolean, backedSize: number): CopySource {
  const toRun = (found: ChainExtent): SourceRun => {
    const { extent, length } = found;
    const refused = image.unreadable(found);
    if (refused !== undefined) return { kind: 'data', length, read: () => Promise.reject(refused) };
    if (extent?.kind === 'data')
      return { kind: 'data', length, read: (into) => extent.storage.read(extent.at, into) };
    if (extent?.kind === 'packed') return { kind: 'data', length, read: (into) => extent.read(into) };
    return { kind: 'zero', length };
  };
  if (!aboveBacking) {
    return {
      size: image.size,
      run(range) {
        const found = image.status(range);
        return found instanceof Promise ? found.then(toRun) : toRun(found);
      },
    };
  }
  return {
    size: image.size,
    async run(range) {
      // What lies past the target's backing file reads as zeros there too: nothing to hide.
      const past = range.at >= backedSize;
      const length = past ? range.length : Math.min(range.length, backedSize - range.at);
      const extent = await image.format.map({ at: range.at, length });
      if (extent.kind === 'backing') return { kind: 'skip', length: extent.length };
      if (extent.kind === 'zero') return { kind: past ? 'skip' : 'zero', length: extent.length };
      return toRun({ kind: extent.kind, length: extent.length, depth: 0, layer: image, extent });
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
  return {
    size,
    run(range) {
      let index = starts.length - 1;
      while (starts[index]! > range.at) index--;
      const source = sources[index]!;
      const at = range.at - starts[index]!;
      return source.run({ at, length: Math.min(range.length, source.size - at) });
    },
  };
}

/** A window that was planned: what is read into its buffer, piece by piece. */
interface Window {
  readonly at: number;
  readonly length: number;
  readonly pieces: readonly { readonly offset: number; readonly run: SourceRun }[];
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
  /** Zero runs are looked for in blocks of this: nothing smaller stays unallocated in the target anyway. */
  readonly #block: number;
  #position = 0;
  #done = 0;
  #planning: Promise<unknown> = Promise.resolve();
  #sequence = 0;
  #turn = 0;
  readonly #waiting = new Map<number, () => void>();
  #failure: unknown;
  #failed = false;

  constructor(source: CopySource, target: ImageNode, options: CopyOptions, context: OperationContext) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.#context = context;
    const unit = options.compress ? target.format.pack!.unit : target.format.unit;
    this.#window = Math.max(unit, options.compress ? PACKED_WINDOW : WINDOW);
    this.#block = Math.max(512, unit, 2 ** Math.floor(Math.log2(Math.max(1, options.sparse))));
  }

  async run(): Promise<CopyTotals> {
    this.#report();
    await all(Array.from({ length: this.#options.parallel }, () => this.#worker()));
    if (this.#failed) throw this.#failure;
    return this.totals;
  }

  #fail(error: unknown): void {
    if (!this.#failed) {
      this.#failed = true;
      this.#failure = error;
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
      const at = this.#position;
      const asked = this.#source.run({ at, length: size - at });
      const run = asked instanceof Promise ? await asked : asked;
      if (run.kind === 'data' || (run.kind === 'zero' && this.#options.sparse === 0))
        return this.#planWindow(at, run);
      if (run.kind === 'zero') {
        // Zeros up to the next window boundary that hold no whole block of the target belong to a window of data.
        const whole = this.#wholeBlocks(at, run.length);
        if (whole < run.length && whole === 0) return this.#planWindow(at, run);
        await this.#zeros(at, whole);
        this.#position = at + whole;
        this.totals.zeros += whole;
        this.#finished(whole);
      } else {
        this.#position = at + run.length;
        this.#finished(run.length);
      }
      if (this.#context.signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
    }
    return [undefined, 0];
  }

  /** How much of a zero run at `at` ends on a block boundary (or the image's end). */
  #wholeBlocks(at: number, length: number): number {
    const end = at + length;
    if (end >= this.#source.size) return length;
    if (at % this.#block !== 0) return 0;
    return Math.max(0, end - (end % this.#block) - at);
  }

  async #planWindow(at: number, first: SourceRun): Promise<[Window, number]> {
    const stop = Math.min(this.#source.size, at - (at % this.#window) + this.#window);
    const pieces: { offset: number; run: SourceRun }[] = [];
    let position = at;
    let run = first;
    for (;;) {
      const length = Math.min(run.length, stop - position);
      pieces.push({ offset: position - at, run: length === run.length ? run : { ...run, length } });
      position += length;
      if (position >= stop) break;
      const asked = this.#source.run({ at: position, length: stop - position });
      run = asked instanceof Promise ? await asked : asked;
      if (run.kind === 'skip') break;
    }
    this.#position = position;
    return [{ at, length: position - at, pieces }, this.#sequence++];
  }

  async #read(window: Window, buffer: Buffer): Promise<void> {
    const reads: Promise<void>[] = [];
    for (const { offset, run } of window.pieces) {
      const part = buffer.subarray(offset, offset + run.length);
      if (run.read === undefined) part.fill(0);
      else {
        const reading = run.read(part);
        reads.push(
          this.#options.salvage === undefined
            ? reading.catch((error) => {
                throw readError(error, window.at + offset);
              })
            : reading.catch(() => this.#salvage(window.at + offset, part)),
        );
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
        const run = await this.#source.run({ at: at + done, length: sector.byteLength });
        if (run.read === undefined) sector.fill(0);
        else await run.read(sector);
      } catch (error) {
        sector.fill(0);
        this.#options.salvage!(at + done, error);
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
    await this.#target.zero({ at, length }, { unmap: true });
  }

  async #write(window: Window, buffer: Buffer): Promise<void> {
    const { at, length } = window;
    if (this.#options.sparse === 0) {
      this.totals.written += length;
      return this.#target.write(at, buffer.subarray(0, length));
    }
    const known = window.pieces
      .filter(({ run }) => run.kind === 'zero')
      .map(({ offset, run }) => ({ start: offset, end: offset + run.length }));
    const runs = zeroRuns(buffer, length, at, this.#block, this.#options.sparse, known);
    const work: Promise<void>[] = [];
    for (const run of runs) {
      const bytes = run.end - run.start;
      if (run.zero) {
        this.totals.zeros += bytes;
        if (!this.#options.targetIsZero) work.push(this.#zeros(at + run.start, bytes));
      } else {
        this.totals.written += bytes;
        work.push(this.#target.write(at + run.start, buffer.subarray(run.start, run.end)));
      }
    }
    if (work.length === 1) await work[0];
    else await all(work);
  }

  /** Compresses all units of a window at once, on the thread pool. */
  async #compress(window: Window, buffer: Buffer): Promise<PackedUnit[]> {
    const pack = this.#target.format.pack!;
    const units: PackedUnit[] = [];
    const work: Promise<void>[] = [];
    for (let offset = 0; offset < window.length; offset += pack.unit) {
      let bytes = buffer.subarray(offset, Math.min(window.length, offset + pack.unit));
      const zero = this.#options.sparse !== 0 && isZero(bytes, 0, bytes.byteLength);
      if (!zero && bytes.byteLength < pack.unit) {
        // The image's last, incomplete unit is stored whole.
        bytes = Buffer.concat([bytes, Buffer.alloc(pack.unit - bytes.byteLength)]);
      }
      const unit: PackedUnit = { at: window.at + offset, bytes, zero, stored: undefined };
      units.push(unit);
      if (!zero) {
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
      if (stored === undefined) await this.#target.write(at, bytes.subarray(0, length));
      else await this.#target.writePacked(at, stored);
    }
  }

  #finished(bytes: number): void {
    this.#done += bytes;
    this.#report();
  }

  #report(): void {
    this.#context.progress({
      phase: 'copy',
      done: this.#done,
      total: this.#source.size,
      written: this.totals.written,
      zeros: this.totals.zeros,
    });
  }
}

function readError(error: unknown, at: number): ImageError {
  const cause = error instanceof ImageError ? error : undefined;
  return new ImageError(
    cause?.kind ?? 'io',
    `error while reading at byte ${at}: ${cause?.message ?? String(error)}`,
    { ...cause?.context, offset: at, operation: 'read' },
    error,
  );
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
