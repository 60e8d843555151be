/** Compressed clusters: unpacking, and packing one cluster at a time. */
import { compressRaw, inflateRaw } from '../../codec/deflate.js';
import { compressZstd, decompressZstd } from '../../codec/zstd.js';
import { ImageError } from '../../error.js';
import type { Range } from '../../storage/storage.js';
import type { Image } from './image.js';
import { CompressionType, DEFLATE_WINDOW_BITS } from './layout.js';

export class CompressedReader {
  readonly #image: Image;
  /** The cluster that was unpacked last: small reads come one after the other. */
  #last: { readonly at: number; readonly content: Uint8Array } | undefined;
  #age = 0;

  constructor(image: Image) {
    this.#image = image;
  }

  /** Compressed clusters were freed: what is stored where may change. */
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
    if (stored.at >= file.size) {
      throw new ImageError(
        'corrupt',
        `qcow2: Compressed cluster at offset ${stored.at} is outside of the image`,
        {
          path: file.filename,
          offset: stored.at,
        },
      );
    }
    const age = this.#age;
    const packed = Buffer.allocUnsafe(stored.length);
    if (file.readNow?.(stored.at, packed) !== true) await file.read(stored.at, packed);
    if (whole) {
      await this.#unpack(packed, into);
      return;
    }
    const content = Buffer.allocUnsafe(clusterSize);
    await this.#unpack(packed, content);
    if (age === this.#age) this.#last = { at: stored.at, content };
    into.set(content.subarray(offset, offset + into.byteLength));
  }

  #unpack(packed: Uint8Array, into: Uint8Array): Promise<void> {
    return this.#image.header.compressionType === CompressionType.zstd
      ? decompressZstd(packed, into)
      : inflateRaw(packed, into, DEFLATE_WINDOW_BITS);
  }
}

/** The stored form of a cluster, or undefined where it would not be smaller. */
export function compressCluster(image: Image, cluster: Uint8Array): Promise<Uint8Array | undefined> {
  return image.header.compressionType === CompressionType.zstd
    ? compressZstd(cluster)
    : compressRaw(cluster, { windowBits: DEFLATE_WINDOW_BITS });
}
