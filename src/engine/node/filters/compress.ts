/** compress: whole units that are written are stored compressed. */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { ImageNode } from '../image.js';
import { NodeStorage } from '../node-storage.js';
import type { FilterDriver } from './filter.js';
import { ForwardStorage } from './forward.js';
import { passThrough } from './simple.js';

class CompressStorage extends ForwardStorage {
  readonly #image: ImageNode;

  constructor(filename: string, below: NodeStorage) {
    super('compress', filename, 'file', below);
    this.#image = below.image;
  }

  /** Parts of units, and what would not get smaller, are written as they are. */
  override async write(at: number, from: Uint8Array): Promise<void> {
    const pack = this.#image.format.pack!;
    const { unit } = pack;
    const end = at + from.byteLength;
    for (let position = at; position < end; ) {
      const next = Math.min(end, position - (position % unit) + unit);
      const part = from.subarray(position - at, next - at);
      const whole = position % unit === 0 && part.byteLength === unit;
      const packed = whole && next <= this.size ? await pack.compress(part) : undefined;
      if (packed === undefined) await this.below.write(position, part);
      else await this.#image.writePacked(position, packed);
      position = next;
    }
  }
}

/** What an image can pack shows when it is opened for writing. */
function wrap(below: Storage, filename: string): Storage {
  const image = below instanceof NodeStorage;
  if (!image || (below.writable && below.image.format.pack === undefined)) {
    throw new ImageError(
      'unsupported',
      `Compression is not supported for underlying format: ${below.driver}`,
    );
  }
  return new CompressStorage(filename, below);
}

export const compress: FilterDriver = {
  name: 'compress',
  open: (context) => passThrough('compress', context, {}, wrap),
};
