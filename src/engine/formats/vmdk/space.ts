/** New places at the end of extent files. Nothing is ever given back: the format does not record what is free. */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { SparseExtent } from './extent.js';
import { MAX_SECTOR, SECTOR } from './layout.js';

export class Space {
  /** First byte that is not given out, of each file. */
  readonly #next = new Map<Storage, number>();

  /** Byte offset, a multiple of `align`, of `bytes` bytes that nothing uses. Throws `no-space`. */
  take(extent: SparseExtent, bytes: number, align: number): number {
    const { storage } = extent;
    const from = this.#next.get(storage) ?? Math.max(storage.size, extent.metadataEnd);
    const at = Math.ceil(from / align) * align;
    if (Math.ceil((at + bytes) / SECTOR) > MAX_SECTOR) {
      throw new ImageError('no-space', 'File too large', { path: storage.filename, errno: 'EFBIG' });
    }
    this.#next.set(storage, at + bytes);
    return at;
  }

  /** Takes the place back where it was the last one given out. */
  giveBack(extent: SparseExtent, at: number, bytes: number): void {
    if (this.#next.get(extent.storage) === at + bytes) this.#next.set(extent.storage, at);
  }

  /** All from `at` on may be given out again. */
  restart(extent: SparseExtent, at: number): void {
    this.#next.set(extent.storage, at);
  }
}
