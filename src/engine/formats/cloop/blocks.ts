/** Reads blocks: each is inflated as a whole, and the last few are kept for readers that take them in pieces. */
import { inflateZlib } from '../../codec/deflate.js';
import { errnoText, ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { Offsets } from './offsets.js';

/** Inflated blocks kept, in bytes; the newest is kept whatever its size (64 MiB at most). */
const CACHE_BYTES = 8 * 1024 * 1024;
/** DEFLATE makes nothing smaller than by this factor: no memory is taken for a block that its stream cannot fill. */
const MAX_RATIO = 1032;
/** Bytes of blocks that are inflated at a time; a larger block alone. */
const AT_ONCE_BYTES = 16 * 1024 * 1024;

export class BlockReader {
  readonly #file: Storage;
  readonly #offsets: Offsets;
  readonly #blockSize: number;
  readonly #maxCached: number;
  readonly #maxAtOnce: number;
  /** By block, oldest first; promises, so that two readers of one block wait for one inflating. */
  readonly #cache = new Map<number, Promise<Uint8Array>>();
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(file: Storage, offsets: Offsets, blockSize: number) {
    this.#file = file;
    this.#offsets = offsets;
    this.#blockSize = blockSize;
    this.#maxCached = Math.max(1, Math.floor(CACHE_BYTES / blockSize));
    this.#maxAtOnce = Math.max(1, Math.floor(AT_ONCE_BYTES / blockSize));
  }

  /** Fills `into` with the block's guest bytes from `skip` on. Throws `corrupt`. */
  async read(block: number, skip: number, into: Uint8Array): Promise<void> {
    const whole = await this.#block(block);
    into.set(whole.subarray(skip, skip + into.byteLength));
  }

  #block(block: number): Promise<Uint8Array> {
    const kept = this.#cache.get(block);
    if (kept !== undefined) return kept;
    for (const [oldest] of this.#cache) {
      if (this.#cache.size < this.#maxCached) break;
      this.#cache.delete(oldest);
    }
    const whole = this.#inTurn(() => this.#inflate(block));
    this.#cache.set(block, whole);
    whole.catch(() => {
      if (this.#cache.get(block) === whole) this.#cache.delete(block);
    });
    return whole;
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    while (this.#running >= this.#maxAtOnce) await new Promise<void>((next) => this.#waiting.push(next));
    this.#running++;
    try {
      return await work();
    } finally {
      this.#running--;
      this.#waiting.shift()?.();
    }
  }

  async #inflate(block: number): Promise<Uint8Array> {
    const [from, to] = await this.#offsets.of(block);
    const broken = (cause?: unknown) =>
      new ImageError(
        'corrupt',
        errnoText('EIO'),
        { path: this.#file.filename, offset: from, errno: 'EIO' },
        cause,
      );
    // The stream may go on past the file's end in zeros, as the reference has it, but not begin there.
    const length = Math.min(to, this.#file.size) - from;
    if (length * MAX_RATIO < this.#blockSize) throw broken();
    const packed = Buffer.allocUnsafeSlow(length);
    await this.#file.read(from, packed);
    // One byte more than there should be, so that a longer stream is told from one that ends.
    const whole = Buffer.allocUnsafeSlow(this.#blockSize + 1);
    let produced: number;
    try {
      produced = await inflateZlib(packed, whole);
    } catch (error) {
      if (error instanceof ImageError && error.kind === 'corrupt') throw broken(error);
      throw error;
    }
    if (produced !== this.#blockSize) throw broken();
    return whole.subarray(0, produced);
  }
}
