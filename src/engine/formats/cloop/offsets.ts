/** The table of offsets: checked once from end to end, then looked up by pages, as it can be of 512 MiB. */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { MAX_PACKED, OFFSET_BYTES, OFFSETS_AT } from './layout.js';

/** Offsets read at once while checking, and those of a page. */
const PIECE = 131072;
const PAGE = 4096;
const MAX_PAGES = 64;
const WORD = 2 ** 32;

/** Beyond 2^53 values are not exact: they are far beyond any limit as well. */
function offsetAt(view: DataView, index: number): number {
  return view.getUint32(index * OFFSET_BYTES) * WORD + view.getUint32(index * OFFSET_BYTES + 4);
}

async function readOffsets(file: Storage, first: number, count: number): Promise<DataView> {
  const bytes = new Uint8Array(count * OFFSET_BYTES);
  const at = OFFSETS_AT + first * OFFSET_BYTES;
  // What lies past the end of the file reads as zeros.
  if (at < file.size) await file.read(at, bytes);
  return new DataView(bytes.buffer);
}

/** @throws ImageError `corrupt` where offsets decrease, or lie further apart than any block is long. */
export async function checkOffsets(file: Storage, count: number): Promise<void> {
  let previous: number | undefined;
  for (let first = 0; first < count; first += PIECE) {
    const length = Math.min(PIECE, count - first);
    const past = OFFSETS_AT + first * OFFSET_BYTES >= file.size;
    // Zeros to the end: all is told by the first of them.
    const view = await readOffsets(file, first, past ? 1 : length);
    for (let i = 0; i < (past ? 1 : length); i++) {
      const offset = offsetAt(view, i);
      const where = `at index ${first + i}, image file is corrupt`;
      if (previous !== undefined && offset < previous) {
        throw new ImageError('corrupt', `offsets not monotonically increasing ${where}`);
      }
      if (previous !== undefined && offset - previous > MAX_PACKED) {
        throw new ImageError('corrupt', `invalid compressed block size ${where}`);
      }
      previous = offset;
    }
    if (past) return;
  }
}

export class Offsets {
  readonly #file: Storage;
  readonly #count: number;
  /** By number, oldest first. Promises, so that readers at once wait for one read. */
  readonly #pages = new Map<number, Promise<DataView>>();

  constructor(file: Storage, count: number) {
    this.#file = file;
    this.#count = count;
  }

  #page(number: number): Promise<DataView> {
    let page = this.#pages.get(number);
    if (page !== undefined) return page;
    for (const [oldest] of this.#pages) {
      if (this.#pages.size < MAX_PAGES) break;
      this.#pages.delete(oldest);
    }
    page = readOffsets(this.#file, number * PAGE, Math.min(PAGE, this.#count - number * PAGE));
    this.#pages.set(number, page);
    page.catch(() => this.#pages.delete(number));
    return page;
  }

  async #offset(index: number): Promise<number> {
    const view = await this.#page(Math.floor(index / PAGE));
    return offsetAt(view, index % PAGE);
  }

  /** Where the stream of a block is: host bytes [from, to). */
  async of(block: number): Promise<readonly [from: number, to: number]> {
    return [await this.#offset(block), await this.#offset(block + 1)];
  }
}
