/** Dirty bitmaps that live as long as their node does: nothing of them is in an image. */
import { ImageError } from '../error.js';
import { Bits } from './dirty-bits.js';
import type { BitmapContent, BitmapFacet, BitmapInfo } from './driver.js';

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
    if (name === '') throw bad('Bitmap name cannot be empty');
    if (
      granularity < MIN_GRANULARITY ||
      granularity > MAX_GRANULARITY ||
      !Number.isInteger(Math.log2(granularity))
    ) {
      throw bad('Granularity must be power of 2 and at least 512');
    }
    if (this.#bitmaps.has(name)) throw bad(`Bitmap already exists: ${name}`);
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
    if (found === undefined) throw new ImageError('not-found', `Dirty bitmap '${name}' not found`);
    return found;
  }
}

/** Throws where a bitmap of one size is to be merged into another's. */
export function checkSizes(target: number, source: number): void {
  if (target === source) return;
  throw bad(
    `Bitmaps are of different sizes (destination size is ${target}, source size is ${source}) and can't be merged`,
  );
}
