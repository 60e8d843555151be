/** Compressed clusters: raw DEFLATE streams with a window of 4 KiB, anywhere in the file. */
import { inflateRaw } from '../../codec/deflate.js';
import { ImageError } from '../../error.js';
import { PackedReader } from '../packed-reader.js';
import type { QcowImage } from './image.js';
import { WINDOW_BITS } from './layout.js';

export function packedReader(image: QcowImage): PackedReader {
  return new PackedReader(image.file, image.geometry.clusterSize, {
    async unpack(packed, into, at) {
      try {
        await inflateRaw(packed, into, WINDOW_BITS);
      } catch (error) {
        if (error instanceof ImageError && error.kind === 'corrupt') throw image.damaged(at);
        throw error;
      }
    },
  });
}
