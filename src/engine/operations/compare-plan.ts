/** What there is to read when two images are compared: their runs side by side, cut into chunks. */
import type { ImageCompareResult } from '../../protocol/commands/image-compare.js';
import { ImageError } from '../error.js';
import type { ChainExtent, ImageNode } from '../node/image.js';
import type { FileIdentity } from '../storage/file.js';
import type { MaybePromise, Range, Storage } from '../storage/storage.js';

/** The reference reads this much at once; a read error is told with the offset where such a piece begins. */
const CHUNK = 2 * 1024 * 1024;
const SECTOR = 512;
/** Runs without anything to read after which others get their turn. */
const IDLE_RUNS = 1024;

export interface Side {
  readonly image: ImageNode;
  /** As the user gave it. */
  readonly name: string;
}

/** Bytes to read: of both sides, or of one where the other is known to be zeros. */
export interface Chunk {
  readonly at: number;
  readonly length: number;
  readonly sides: 'both' | 'a' | 'b';
}

/** The next chunk; or nothing to read for now (`idle`); or the end, with what was found if anything. */
export interface Step {
  readonly chunk?: Chunk;
  readonly idle?: true;
  readonly end?: ImageCompareResult | undefined;
}

export interface Plan {
  readonly chunkSize: number;
  /** Everything before this guest offset was given out or needs no reading. */
  readonly at: number;
  next(): MaybePromise<Step>;
  /** The chunk that was being put together when `next` failed. */
  flush(): Step | undefined;
}

/** A run that was asked for and is not used up. */
interface Known {
  run: ChainExtent;
  /** Guest offset where the run began. */
  from: number;
  until: number;
}

/** Storages of two opens of one host file are the same bytes. */
function sameStorage(a: Storage, b: Storage): boolean {
  if (a === b) return true;
  const one = (a as { identity?: FileIdentity }).identity;
  const other = (b as { identity?: FileIdentity }).identity;
  return (
    one !== undefined &&
    other !== undefined &&
    one.inode === other.inode &&
    one.device === other.device &&
    a.driver === b.driver
  );
}

/** The very same bytes of the very same file: overlays of one backing file are equal there unread. */
function sameBytes(at: number, a: Known, b: Known): boolean {
  const one = a.run.extent;
  const other = b.run.extent;
  if (one?.kind !== 'data' || other?.kind !== 'data') return false;
  return one.at + (at - a.from) === other.at + (at - b.from) && sameStorage(one.storage, other.storage);
}

function isZeroRun({ run }: Known): boolean {
  return run.kind === 'zero' || run.kind === 'none';
}

/**
 * What strict mode compares: whether it is allocated, reads as zeros, is compressed, has a place in a file; and, as in the
 * reference, whether the run reaches the image's end, so that it tells different layouts apart too.
 */
function allocation({ image }: Side, { run: { kind, extent, layer }, until }: Known): string {
  // Of such a format nothing is told: data in no place, to the end.
  if (layer.format.opaque === true) return 'data false true';
  const placed = extent !== undefined && 'storage' in extent && extent.storage !== undefined;
  return `${kind} ${placed} ${until === image.size}`;
}

class PairPlan implements Plan {
  readonly chunkSize = CHUNK;
  at: number;
  #end: number;
  readonly #a: Side | undefined;
  readonly #b: Side | undefined;
  readonly #strict: boolean;
  #knownA: Known | undefined;
  #knownB: Known | undefined;
  #ending: ImageCompareResult | undefined;
  /** A chunk that may still grow with the next run. */
  #open: { at: number; length: number; sides: Chunk['sides'] } | undefined;

  constructor(a: Side | undefined, b: Side | undefined, range: Range, strict: boolean) {
    this.#a = a;
    this.#b = b;
    this.at = range.at;
    this.#end = range.at + range.length;
    this.#strict = strict;
  }

  next(): MaybePromise<Step> {
    for (let idle = 0; idle < IDLE_RUNS; idle++) {
      if (this.at >= this.#end) return this.#finish(undefined);
      if (this.#a !== undefined && !isCurrent(this.#knownA, this.at)) {
        const answer = this.#ask(this.#a);
        if (answer instanceof Promise) return answer.then((known) => this.#resume('a', known));
        this.#knownA = answer;
      }
      if (this.#b !== undefined && !isCurrent(this.#knownB, this.at)) {
        const answer = this.#ask(this.#b);
        if (answer instanceof Promise) return answer.then((known) => this.#resume('b', known));
        this.#knownB = answer;
      }
      const step = this.#take();
      if (step !== undefined) return step;
    }
    return this.flush() ?? { idle: true };
  }

  #resume(side: 'a' | 'b', known: Known): MaybePromise<Step> {
    if (side === 'a') this.#knownA = known;
    else this.#knownB = known;
    return this.next();
  }

  /** The runs at the present offset are known: uses up what is common to them. */
  #take(): Step | undefined {
    const a = this.#knownA;
    const b = this.#knownB;
    const until = Math.min(this.#end, a?.until ?? this.#end, b?.until ?? this.#end);
    const { at } = this;
    if (
      this.#strict &&
      a !== undefined &&
      b !== undefined &&
      allocation(this.#a!, a) !== allocation(this.#b!, b)
    ) {
      this.#end = at;
      return this.#finish({
        identical: false,
        reason: 'allocation',
        offset: at,
        text: `Strict mode: Offset ${at} block status mismatch!`,
      });
    }
    const zeroA = a === undefined || isZeroRun(a);
    const zeroB = b === undefined || isZeroRun(b);
    if ((zeroA && zeroB) || (a !== undefined && b !== undefined && sameBytes(at, a, b))) {
      this.at = until;
      return this.flush();
    }
    const sides = zeroA ? 'b' : zeroB ? 'a' : 'both';
    const open = this.#open;
    if (open !== undefined && (open.sides !== sides || open.length % SECTOR !== 0)) return this.flush();
    const started = open ?? { at, length: 0, sides };
    const length = Math.min(until - at, CHUNK - started.length);
    started.length += length;
    this.#open = started;
    this.at += length;
    return started.length === CHUNK ? this.flush() : undefined;
  }

  flush(): Step | undefined {
    const chunk = this.#open;
    this.#open = undefined;
    return chunk && { chunk };
  }

  #finish(result: ImageCompareResult | undefined): Step {
    if (result !== undefined) this.#ending = result;
    return this.flush() ?? { end: this.#ending };
  }

  #ask(side: Side): MaybePromise<Known> {
    const { at } = this;
    const known = (run: ChainExtent): Known => ({ run, from: at, until: at + run.length });
    try {
      const answer = side.image.status({ at, length: side.image.size - at });
      return answer instanceof Promise
        ? answer.then(known, (error: unknown) => {
            throw statusError(side, at, error);
          })
        : known(answer);
    } catch (error) {
      throw statusError(side, at, error);
    }
  }
}

function isCurrent(known: Known | undefined, at: number): boolean {
  return known !== undefined && known.until > at;
}

function statusError(side: Side, at: number, error: unknown): unknown {
  if (!(error instanceof ImageError) || error.kind === 'cancelled') return error;
  return new ImageError(
    'io',
    `Sector allocation test failed for ${side.name}`,
    { ...error.context, path: side.name, offset: at, operation: 'status' },
    error,
  );
}

/** The plan for a range of guest bytes; where a side is not given, it is taken for zeros. */
export function planOf(a: Side | undefined, b: Side | undefined, range: Range, strict: boolean): Plan {
  return new PairPlan(a, b, range, strict);
}
