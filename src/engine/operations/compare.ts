/** image-compare: whether two images have the same guest content. */
import type { ImageCompareParams, ImageCompareResult } from '../../protocol/commands/image-compare.js';
import { errnoText, ImageError } from '../error.js';
import { all, type ImageNode } from '../node/image.js';
import { displayName, openImage } from '../node/open.js';
import { type Chunk, type Plan, planOf, type Side, type Step } from './compare-plan.js';
import type { OperationContext } from './context.js';
import { isZero } from './zeros.js';

/** Differences are told by the sector, counted from where a chunk begins. */
const SECTOR = 512;
/**
 * Chunks that are read and compared at once. Two of both sides keep four threads of libuv's pool busy; more, or smaller ones,
 * were measured to cost more time, in the kernel and for the caches, than they save.
 */
const IN_FLIGHT = 2;

const IDENTICAL: ImageCompareResult = { identical: true, text: 'Images are identical.' };

/** Buffers of one chunk on its way. */
interface Slot {
  readonly a: Buffer;
  readonly b: Buffer;
}

function readError(side: Side, at: number, error: unknown): ImageError {
  const context = error instanceof ImageError ? error.context : {};
  // The reference knows no more than an errno here, and damaged contents are EIO to it; the rest is in `cause`.
  return new ImageError(
    'io',
    `Error while reading offset ${at} of ${side.name}: ${errnoText(context.errno ?? 'EIO')}`,
    { ...context, path: side.name, offset: at, operation: 'read' },
    error,
  );
}

async function read(side: Side, at: number, into: Buffer): Promise<void> {
  try {
    await side.image.read(at, into);
  } catch (error) {
    if (error instanceof ImageError && error.kind === 'cancelled') throw error;
    throw readError(side, await firstUnreadable(side.image, at, into), error);
  }
}

/** Where the run begins that cannot be read: a chunk may hold many, and the error names one. */
async function firstUnreadable(image: ImageNode, start: number, into: Buffer): Promise<number> {
  for (let at = start; at < start + into.byteLength; ) {
    try {
      const run = await image.status({ at, length: start + into.byteLength - at });
      await image.read(at, into.subarray(at - start, at - start + run.length));
      at += run.length;
    } catch {
      return at;
    }
  }
  return start;
}

/** The first differing sector's offset in two buffers that differ, found by halving. */
function firstDifference(a: Buffer, b: Buffer, length: number): number {
  let from = 0;
  let sectors = Math.ceil(length / SECTOR);
  while (sectors > 1) {
    const half = Math.floor(sectors / 2);
    const middle = Math.min(length, from + half * SECTOR);
    if (a.compare(b, from, middle, from, middle) !== 0) {
      sectors = half;
    } else {
      from = middle;
      sectors -= half;
    }
  }
  return from;
}

function firstNonZero(buffer: Buffer, length: number): number {
  for (let at = 0; at < length; at += SECTOR) {
    if (!isZero(buffer, at, Math.min(length, at + SECTOR))) return at;
  }
  return length;
}

/** The guest offset where the chunk's sides differ, or undefined. */
async function differs(chunk: Chunk, slot: Slot, a: Side, b: Side): Promise<number | undefined> {
  const { at, length, sides } = chunk;
  const bufferA = slot.a.subarray(0, length);
  const bufferB = slot.b.subarray(0, length);
  if (sides === 'both') {
    await all([read(a, at, bufferA), read(b, at, bufferB)]);
    if (bufferA.equals(bufferB)) return undefined;
    return at + firstDifference(bufferA, bufferB, length);
  }
  const [side, buffer] = sides === 'a' ? [a, bufferA] : [b, bufferB];
  await read(side, at, buffer);
  return isZero(buffer, 0, length) ? undefined : at + firstNonZero(buffer, length);
}

/** Works through a plan with several chunks in flight; what it tells is in the order of the guest's disk. */
class Comparison {
  readonly #a: Side;
  readonly #b: Side;
  readonly #context: OperationContext;
  readonly #free: Slot[] = [];
  readonly #total: number;

  constructor(a: Side, b: Side, context: OperationContext) {
    this.#a = a;
    this.#b = b;
    this.#context = context;
    this.#total = Math.max(a.image.size, b.image.size);
  }

  /** The first difference of content, or how the plan ended. */
  async run(plan: Plan): Promise<ImageCompareResult | undefined> {
    const flying: {
      readonly chunk: Chunk;
      readonly slot: Slot;
      readonly work: Promise<number | undefined>;
    }[] = [];
    try {
      for (;;) {
        let step: Step;
        let failure: { readonly error: unknown } | undefined;
        try {
          const planned = plan.next();
          step = planned instanceof Promise ? await planned : planned;
        } catch (error) {
          // A difference that lies before it comes first.
          failure = { error };
          step = plan.flush() ?? {};
        }
        const { chunk } = step;
        if (chunk !== undefined) {
          const waits = this.#context.pace(chunk.sides === 'both' ? chunk.length * 2 : chunk.length);
          if (waits !== undefined) await waits;
          const slot = this.#slot(chunk.length, plan.chunkSize);
          flying.push({ chunk, slot, work: settled(differs(chunk, slot, this.#a, this.#b)) });
        }
        while (
          flying.length > 0 &&
          (failure !== undefined || chunk === undefined || flying.length >= IN_FLIGHT)
        ) {
          const first = flying[0]!;
          const at = await first.work;
          flying.shift();
          if (at !== undefined) {
            return {
              identical: false,
              reason: 'content',
              offset: at,
              text: `Content mismatch at offset ${at}!`,
            };
          }
          this.#free.push(first.slot);
          this.report(first.chunk.at + first.chunk.length);
        }
        if (failure !== undefined) throw failure.error;
        if (chunk === undefined) {
          this.report(plan.at);
          if (step.idle === true) continue;
          return step.end;
        }
      }
    } finally {
      await Promise.allSettled(flying.map(({ work }) => work));
    }
  }

  #slot(length: number, size: number): Slot {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    // Small images do not need whole buffers.
    const bytes = Math.max(length, Math.min(size, this.#total));
    return { a: Buffer.allocUnsafeSlow(bytes), b: Buffer.allocUnsafeSlow(bytes) };
  }

  report(done: number): void {
    this.#context.progress({ phase: 'compare', done, total: this.#total });
  }
}

/** Marks a promise as looked after: it is awaited later, in its turn. */
function settled<T>(work: Promise<T>): Promise<T> {
  work.catch(() => {});
  return work;
}

/**
 * Compares two images. Different sizes are told on stdout, and are no difference where the rest is zeros; `strict` compares
 * sizes and allocation too.
 *
 * @throws ImageError `Error while reading offset ...` and `Sector allocation test failed ...` name the image.
 */
export async function compare(
  params: ImageCompareParams,
  context: OperationContext,
): Promise<ImageCompareResult> {
  const open = async (ref: ImageCompareParams['a']): Promise<Side> => ({
    image: await openImage(ref, {}, context),
    name: displayName(ref),
  });
  const opened: ImageNode[] = [];
  let result: ImageCompareResult;
  try {
    const a = await open(params.a);
    opened.push(a.image);
    const b = await open(params.b);
    opened.push(b.image);
    result = await compareOpened(a, b, params.strict === true, context);
  } catch (error) {
    await Promise.allSettled(opened.map((image) => image.close()));
    throw error;
  }
  await all(opened.map((image) => image.close()));
  return result;
}

async function compareOpened(
  a: Side,
  b: Side,
  strict: boolean,
  context: OperationContext,
): Promise<ImageCompareResult> {
  if (strict && a.image.size !== b.image.size) {
    return { identical: false, reason: 'size', text: 'Strict mode: Image size mismatch!' };
  }
  const comparison = new Comparison(a, b, context);
  comparison.report(0);
  const common = Math.min(a.image.size, b.image.size);
  const found = await comparison.run(planOf(a, b, { at: 0, length: common }, strict));
  if (found !== undefined) return found;
  if (a.image.size === b.image.size) return IDENTICAL;
  context.output({ stream: 'stdout', text: 'Warning: Image size mismatch!\n' });
  const rest = { at: common, length: Math.max(a.image.size, b.image.size) - common };
  const plan =
    a.image.size > b.image.size ? planOf(a, undefined, rest, false) : planOf(undefined, b, rest, false);
  return (await comparison.run(plan)) ?? IDENTICAL;
}
