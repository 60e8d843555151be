/** Dirty bitmaps that live as long as their node does: nothing of them is in an image. */
import { ImageError } from '../error.js';
import { Bits } from './dirty-bits.js';
import type { BitmapContent, BitmapFacet, BitmapInfo } from './driver.js';

const DEFAULT_GRANULARITY = { least: 4096, most: 65536 } as const;
const MIN_GRANULARITY = 512;
const MAX_GRANULARITY = 2 ** 31;
const MAX_NAME = 1023;
const PAGE_BYTES = 4096;
/** Of one node: each write is recorded in all. */
const MAX_BITMAPS = 1024;
/** What one may come to take if all is written in scattered pieces. */
const MAX_BYTES = 512 * 2 ** 20;

interface Bitmap {
  readonly bits: Bits;
  recording: boolean;
}

function bad(text: string): ImageError {
  return new ImageError('invalid', text);
}

export class DirtyBitmaps implements BitmapFacet {
  readonly #size: () => number;
  readonly #granularity: number;
  readonly #bitmaps = new Map<string, Bitmap>();

  /**
   * @param size of the node in bytes, now
   * @param granularity in bytes, where none is asked for
   */
  constructor(size: () => number, granularity: number) {
    this.#size = size;
    this.#granularity = granularity;
  }

  has(name: string): boolean {
    return this.#bitmaps.has(name);
  }

  /** Bytes of the range were changed, or may have been. */
  record(at: number, length: number): void {
    for (const { bits, recording } of this.#bitmaps.values()) if (recording) bits.mark(at, at + length);
  }

  /** The node may have become shorter. */
  resized(): void {
    const size = this.#size();
    for (const { bits } of this.#bitmaps.values()) bits.truncate(size);
  }

  list(): readonly BitmapInfo[] {
    return [...this.#bitmaps].map(([name, { bits, recording }]) => ({
      name,
      granularity: bits.granularity,
      flags: recording ? ['auto'] : [],
    }));
  }

  async add(name: string, granularity = this.#granularity): Promise<void> {
    checkNew(name, granularity);
    if (this.#bitmaps.has(name)) throw bitmapExists(name);
    if (Buffer.byteLength(name) > MAX_NAME) throw bad(`Bitmap name too long: ${name}`);
    if (this.#bitmaps.size >= MAX_BITMAPS) throw bad(`More than ${MAX_BITMAPS} bitmaps of one node`);
    const bytes = Math.ceil(this.#size() / granularity / 8);
    if (bytes > MAX_BYTES) {
      throw bad(`Bitmap '${name}' may take ${bytes} bytes of memory, more than ${MAX_BYTES}`);
    }
    this.#bitmaps.set(name, { bits: new Bits(granularity, PAGE_BYTES), recording: true });
  }

  async remove(name: string): Promise<void> {
    this.#find(name);
    this.#bitmaps.delete(name);
  }

  async clear(name: string): Promise<void> {
    this.#find(name).bits.clear();
  }

  async setEnabled(name: string, enabled: boolean): Promise<void> {
    this.#find(name).recording = enabled;
  }

  async merge(name: string, source: BitmapContent): Promise<void> {
    const { bits } = this.#find(name);
    checkSizes(this.#size(), source.size);
    for (const [at, end] of source.runs()) bits.mark(at, Math.min(end, source.size));
  }

  async content(name: string): Promise<BitmapContent> {
    const { bits } = this.#find(name);
    return { size: this.#size(), runs: () => bits.runs() };
  }

  async counts(): Promise<ReadonlyMap<string, number>> {
    return new Map([...this.#bitmaps].map(([name, { bits }]) => [name, bits.dirtyBytes()]));
  }

  #find(name: string): Bitmap {
    const found = this.#bitmaps.get(name);
    if (found === undefined) throw bitmapNotFound(name);
    return found;
  }
}

export function bitmapNotFound(name: string): ImageError {
  return new ImageError('not-found', `Dirty bitmap '${name}' not found`);
}

export function bitmapExists(name: string): ImageError {
  return bad(`Bitmap already exists: ${name}`);
}

/** Bytes, for an image of such clusters (0, absent: of none). */
export function defaultGranularity(clusterSize = 0): number {
  const { least, most } = DEFAULT_GRANULARITY;
  return clusterSize > 0 ? Math.min(most, Math.max(least, clusterSize)) : most;
}

/** Throws where no bitmap can be called or measured so. */
export function checkNew(name: string, granularity: number): void {
  if (name === '') throw bad('Bitmap name cannot be empty');
  const power = Number.isInteger(Math.log2(granularity));
  if (granularity < MIN_GRANULARITY || granularity > MAX_GRANULARITY || !power) {
    throw bad('Granularity must be power of 2 and at least 512');
  }
}

/** Where the bitmap of that name is, or would be: those in memory come first. */
export function facetOf(
  memory: DirtyBitmaps | undefined,
  stored: BitmapFacet | undefined,
  name: string,
): BitmapFacet | undefined {
  return memory?.has(name) === true ? memory : stored;
}

/** Throws where a bitmap of one size is to be merged into another's. */
export function checkSizes(target: number, source: number): void {
  if (target === source) return;
  throw bad(
    `Bitmaps are of different sizes (destination size is ${target}, source size is ${source}) and can't be merged`,
  );
}
