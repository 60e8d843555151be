/** Compressed clusters: unpacking, and packing one cluster at a time. */
import { compressRaw, inflateRaw } from '../../codec/deflate.js';
import { compressZstd, decompressZstd } from '../../codec/zstd.js';
import { ImageError } from '../../error.js';
import { PackedReader } from '../packed-reader.js';
import type { Image } from './image.js';
import { CompressionType, DEFLATE_WINDOW_BITS } from './layout.js';

export function packedReader(image: Image): PackedReader {
  const { file, geometry } = image;
  return new PackedReader(file, geometry.clusterSize, {
    check({ at }) {
      if (at < file.size) return;
      const text = `qcow2: Compressed cluster at offset ${at} is outside of the image`;
      throw new ImageError('corrupt', text, { path: file.filename, offset: at });
    },
    unpack: (packed, into) =>
      image.header.compressionType === CompressionType.zstd
        ? decompressZstd(packed, into)
        : inflateRaw(packed, into, DEFLATE_WINDOW_BITS),
  });
}

/** The stored form of a cluster, or undefined where it would not be smaller. */
export function compressCluster(image: Image, cluster: Uint8Array): Promise<Uint8Array | undefined> {
  return image.header.compressionType === CompressionType.zstd
    ? compressZstd(cluster)
    : compressRaw(cluster, { windowBits: DEFLATE_WINDOW_BITS });
}
