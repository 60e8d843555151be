/** Compressed clusters: raw DEFLATE streams with a window of 4 KiB, anywhere in the file. */
import { inflateRaw } from '../../codec/deflate.js';
import { ImageError } from '../../error.js';
import type { Range } from '../../storage/storage.js';
import type { QcowImage } from './image.js';
import { WINDOW_BITS } from './layout.js';

export class PackedReader {
  readonly #image: QcowImage;
  /** The cluster that was unpacked last: small reads come one after the other. */
  #last: { readonly at: number; readonly content: Uint8Array } | undefined;
  #age = 0;

  constructor(image: QcowImage) {
    this.#image = image;
  }

  /** What is stored where may change. */
  forget(): void {
    this.#last = undefined;
    this.#age++;
  }

  /** Fills `into` with the guest bytes from `offset` on of the cluster whose stored form is in `stored`. */
  async read(stored: Range, offset: number, into: Uint8Array): Promise<void> {
    const { clusterSize } = this.#image.geometry;
    const whole = offset === 0 && into.byteLength === clusterSize;
    if (!whole && this.#last?.at === stored.at) {
      into.set(this.#last.content.subarray(offset, offset + into.byteLength));
      return;
    }
    const { file } = this.#image;
    const age = this.#age;
    const packed = Buffer.allocUnsafe(stored.length);
    if (file.readNow?.(stored.at, packed) !== true) await file.read(stored.at, packed);
    const content = whole ? into : Buffer.allocUnsafe(clusterSize);
    try {
      await inflateRaw(packed, content, WINDOW_BITS);
    } catch (error) {
      if (error instanceof ImageError && error.kind === 'corrupt') throw this.#image.damaged(stored.at);
      throw error;
    }
    if (whole) return;
    if (age === this.#age) this.#last = { at: stored.at, content };
    into.set(content.subarray(offset, offset + into.byteLength));
  }
}
