/**
 * The copying half of a rebase: where an image has nothing of its own, it gets what its old backing file reads there as far as
 * the new one reads differently. Several windows are in flight; what both say are zeros, and what lies in layers that both
 * share, is not looked at.
 */
import { ImageError } from '../error.js';
import { depthOf, mapAbove } from '../node/chain.js';
import type { PackFacet } from '../node/driver.js';
import { all, type ImageNode } from '../node/image.js';
import type { Range } from '../storage/storage.js';
import type { OperationContext } from './context.js';
import type { CopyTotals } from './copy.js';
import { isZero } from './zeros.js';

const WINDOW = 2 * 1024 * 1024;
/** One is read and compared in this thread while the other is written in the thread pool; more leave the caches. */
const PARALLEL = 2;

export interface RebaseJob {
  readonly top: ImageNode;
  /** The old backing file: undefined for none. Ends where it ends, zeros follow. */
  readonly from: ImageNode | undefined;
  /** The new one; may be a layer of the old one's chain. */
  readonly to: ImageNode | undefined;
  readonly compress: boolean;
}

/** A run of guest bytes, all seen alike. */
interface Run {
  readonly length: number;
  /** The image has nothing of its own there. */
  readonly open: boolean;
  /** And the two backing files may read differently: at least one has data. */
  readonly differs: boolean;
  readonly old: boolean;
  readonly fresh: boolean;
}

/** Runs next to each other in which the image has nothing of its own. */
interface Window {
  readonly at: number;
  readonly length: number;
  /** False: the old backing file reads zeros there. */
  readonly old: boolean;
  /** False: the new one does. */
  readonly fresh: boolean;
  /** Writes start in guest order, so that a new image is laid out in it: when the window before has begun its own. */
  readonly previous: Promise<void>;
  begun(): void;
}

class Rebase {
  readonly totals: CopyTotals = { written: 0, zeros: 0 };
  readonly #job: RebaseJob;
  readonly #context: OperationContext;
  /** Bytes that are compared, and copied, as one. */
  readonly #unit: number;
  readonly #window: number;
  /** The new backing file is a layer of the old chain: only what is above it can differ. */
  readonly #shared: boolean;
  #position = 0;
  #done = 0;
  #planning: Promise<unknown> = Promise.resolve();
  #begun: Promise<void> = Promise.resolve();
  #failed = false;

  constructor(job: RebaseJob, context: OperationContext) {
    this.#job = job;
    this.#context = context;
    const { top, compress } = job;
    this.#unit = Math.max(512, compress ? top.format.pack!.unit : top.format.unit);
    this.#window = Math.max(WINDOW, this.#unit);
    this.#shared = isShared(job);
  }

  async run(): Promise<CopyTotals> {
    await all(Array.from({ length: PARALLEL }, () => this.#worker()));
    return this.totals;
  }

  async #worker(): Promise<void> {
    try {
      let buffers: [Buffer, Buffer] | undefined;
      while (!this.#failed) {
        const window = await this.#next();
        if (window === undefined) return;
        try {
          const pause = this.#context.pace(window.length);
          if (pause !== undefined) await pause;
          buffers ??= [Buffer.allocUnsafeSlow(this.#window), Buffer.allocUnsafeSlow(this.#window)];
          await this.#copy(window, buffers);
        } finally {
          window.begun();
        }
        this.#finished(window.length);
      }
    } catch (error) {
      this.#failed = true;
      throw error;
    }
  }

  /** Windows are planned one after another. */
  #next(): Promise<Window | undefined> {
    const planned = this.#planning.then(() => this.#plan());
    this.#planning = planned.catch(() => {});
    return planned;
  }

  async #plan(): Promise<Window | undefined> {
    const { top } = this.#job;
    while (this.#position < top.size && !this.#failed) {
      if (this.#context.signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
      const at = this.#position;
      const run = await look(this.#job, this.#shared, at, top.size - at);
      const { length } = run;
      if (!run.differs) {
        // A unit in which something else follows is compared as a whole.
        const partial = run.open && at + length < top.size ? (at + length) % this.#unit : 0;
        if (partial < length) {
          this.#position = at + length - partial;
          this.#finished(length - partial);
          continue;
        }
      }
      return this.#gather(at, run);
    }
    return undefined;
  }

  /**
   * The run and those that follow it and differ too, cut where windows end, and stretched to the end of the last unit:
   * whatever it is that changes within a unit, the unit is read as a whole.
   */
  async #gather(at: number, first: Run): Promise<Window> {
    const { top } = this.#job;
    const stop = Math.min(top.size, at - (at % this.#window) + this.#window);
    let { old, fresh } = first;
    let end = Math.min(stop, at + first.length);
    while (end < stop) {
      const next = await look(this.#job, this.#shared, end, stop - end);
      if (!next.differs) break;
      end += next.length;
      old ||= next.old;
      fresh ||= next.fresh;
    }
    const whole = Math.min(stop, Math.ceil(end / this.#unit) * this.#unit);
    if (whole > end) {
      old = true;
      fresh = true;
      // Only as far as the image has nothing of its own: with compression its units are smaller than these.
      const own = await top.format.map({ at: end, length: whole - end });
      if (own.kind === 'backing') end += own.length;
    }
    this.#position = end;
    const previous = this.#begun;
    let begun = () => {};
    this.#begun = new Promise<void>((resolve) => {
      begun = resolve;
    });
    return { at, length: end - at, old, fresh, previous, begun };
  }

  async #copy(
    { at, length, old, fresh, previous, begun }: Window,
    buffers: readonly [Buffer, Buffer],
  ): Promise<void> {
    const { from, to } = this.#job;
    const before = buffers[0].subarray(0, length);
    const after = buffers[1].subarray(0, length);
    const reads: Promise<void>[] = [];
    if (old) reads.push(fill(from, at, before).catch(rethrow('old')));
    else before.fill(0);
    // Zeros are told by looking at the other side alone.
    if (fresh) reads.push(fill(to, at, after).catch(rethrow('new')));
    await all(reads);
    const runs = differences(before, fresh ? after : undefined, at, this.#unit, from?.size ?? 0);
    const units = this.#job.compress ? await this.#compress(runs) : undefined;
    await previous;
    if (this.#failed) return;
    if (units !== undefined) {
      // Compressed units are packed one behind the other: each window is stored whole before the next.
      for (const unit of units) await this.#writing(() => this.#store(unit), unit.at);
    } else {
      const work = runs.map((run) => this.#writing(() => this.#store(run), run.at));
      // Places are found as the writes start: the next window may start its own now.
      begun();
      await all(work);
    }
  }

  async #writing(work: () => Promise<void>, at: number): Promise<void> {
    try {
      await work();
    } catch (error) {
      const cause = error instanceof ImageError ? error : undefined;
      const text = `Error while writing to COW image: ${cause?.message ?? String(error)}`;
      throw new ImageError(cause?.kind ?? 'io', text, { ...cause?.context, offset: at }, error);
    }
  }

  #store({ at, bytes, zero, stored }: Piece): Promise<void> {
    const { top } = this.#job;
    if (zero) {
      this.totals.zeros += bytes.length;
      return top.zero({ at, length: bytes.length });
    }
    this.totals.written += bytes.length;
    return stored === undefined ? top.write(at, bytes) : top.writePacked(at, stored);
  }

  /** Whole units compressed; parts of one, and what does not shrink, stay as they are. */
  async #compress(runs: readonly Piece[]): Promise<Piece[]> {
    const { top } = this.#job;
    const pack = top.format.pack!;
    const work: (Piece | Promise<Piece>)[] = [];
    for (const run of runs) {
      if (run.zero) {
        work.push(run);
        continue;
      }
      for (let offset = 0; offset < run.bytes.length; ) {
        const at = run.at + offset;
        const bytes = run.bytes.subarray(offset, offset + pack.unit - (at % pack.unit));
        offset += bytes.length;
        const piece: Piece = { at, bytes, zero: false };
        const last = at + bytes.length === top.size;
        const whole = at % pack.unit === 0 && (bytes.length === pack.unit || last);
        work.push(whole ? compressed(pack, piece) : piece);
      }
    }
    return Promise.all(work);
  }

  #finished(bytes: number): void {
    this.#done += bytes;
    this.#context.progress({
      phase: 'compare',
      done: this.#done,
      total: this.#job.top.size,
      written: this.totals.written,
      zeros: this.totals.zeros,
    });
  }
}

/** The first run of the range in which the image has something of its own throughout, or nothing. */
async function look({ top, from, to }: RebaseJob, shared: boolean, at: number, most: number): Promise<Run> {
  const own = await top.format.map({ at, length: most });
  const open = own.kind === 'backing';
  let { length } = own;
  let differs = open && from !== to;
  if (differs && shared) {
    const between =
      at < from!.size ? await mapAbove(from!, to!, { at, length: within(from, at, length) }) : undefined;
    length = between?.length ?? length;
    // Past the end of the old backing file zeros are read, which the new one need not have.
    differs = between?.kind !== 'backing';
  }
  if (!differs) return { length, open, differs, old: false, fresh: false };
  const before = await contentOf(from, at, length);
  const after = await contentOf(to, at, before.length);
  const [old, fresh] = [before.data, after.data];
  return { length: after.length, open, differs: old || fresh, old, fresh };
}

/** The new backing file is a layer of the old chain. */
function isShared({ from, to }: RebaseJob): boolean {
  return from !== undefined && to !== undefined && depthOf(from, to) >= 0;
}

/** All that may have to be copied, without a look at bytes. */
export async function* mayDiffer(job: RebaseJob): AsyncGenerator<Range> {
  const shared = isShared(job);
  const { size } = job.top;
  for (let at = 0; at < size; ) {
    const { length, differs } = await look(job, shared, at, size - at);
    if (differs) yield { at, length };
    at += length;
  }
}

/** A run of bytes for the image. */
interface Piece {
  readonly at: number;
  readonly bytes: Buffer;
  /** All zeros, and to be said so. */
  readonly zero: boolean;
  readonly stored?: Uint8Array | undefined;
}

/**
 * The runs of whole units in which `before` differs from `after` (undefined: zeros). Zeros are written as the old backing file
 * has them, as data; only past its end, `oldSize`, they are the image's own.
 */
function differences(
  before: Buffer,
  after: Buffer | undefined,
  at: number,
  unit: number,
  oldSize: number,
): Piece[] {
  const runs: Piece[] = [];
  for (let offset = 0; offset < before.length; ) {
    const start = offset;
    offset = Math.min(before.length, offset + unit - ((at + offset) % unit));
    const same =
      after === undefined
        ? isZero(before, start, offset)
        : before.compare(after, start, offset, start, offset) === 0;
    if (same) continue;
    const zero = at + start >= oldSize;
    const last = runs.at(-1);
    const joins = last !== undefined && last.zero === zero && last.at + last.bytes.length === at + start;
    const from = joins ? last.at - at : start;
    if (joins) runs.pop();
    runs.push({ at: at + from, bytes: before.subarray(from, offset), zero });
  }
  return runs;
}

async function compressed(pack: PackFacet, piece: Piece): Promise<Piece> {
  const { bytes } = piece;
  const missing = pack.unit - bytes.length;
  // The image's last, incomplete unit is stored whole.
  const unit = missing === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(missing)]);
  return { ...piece, stored: await pack.compress(unit) };
}

function within(image: ImageNode | undefined, at: number, length: number): number {
  return Math.min(length, (image?.size ?? 0) - at);
}

/** Whether the first run of the range holds data; past the end of the image there are zeros. */
async function contentOf(
  image: ImageNode | undefined,
  at: number,
  length: number,
): Promise<{ readonly data: boolean; readonly length: number }> {
  if (image === undefined || at >= image.size) return { data: false, length };
  const found = await image.status({ at, length: within(image, at, length) });
  return { data: found.kind === 'data' || found.kind === 'packed', length: found.length };
}

async function fill(image: ImageNode | undefined, at: number, into: Buffer): Promise<void> {
  const inside = image === undefined ? 0 : Math.max(0, within(image, at, into.length));
  into.fill(0, inside);
  if (inside > 0) await image!.read(at, into.subarray(0, inside));
}

/** The reference's words for a failed read of a backing file. */
function rethrow(which: 'old' | 'new'): (error: unknown) => never {
  return (error) => {
    const cause = error instanceof ImageError ? error : undefined;
    const text = `error while reading from ${which} backing file: ${cause?.message ?? String(error)}`;
    throw new ImageError(cause?.kind ?? 'io', text, cause?.context ?? {}, error);
  };
}

/** Copies what differs into `top`. The caller flushes. */
export function copyDifferences(job: RebaseJob, context: OperationContext): Promise<CopyTotals> {
  return new Rebase(job, context).run();
}
