/** Compressed clusters: unpacking, and packing one cluster at a time. */
import { compressRaw, inflateRaw } from '../../codec/deflate.js';
import { compressZstd, decompressZstd } from '../../codec/zstd.js';
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { PackedReader } from '../packed-reader.js';
import type { Image } from './image.js';
import { CompressionType, DEFLATE_WINDOW_BITS } from './layout.js';

const SECTOR = 512;

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

/** The file ends with a sector, as the reference has it. */
export async function endOnSector(file: Storage): Promise<void> {
  const end = Math.ceil(file.size / SECTOR) * SECTOR;
  if (end > file.size) await file.truncate(end);
}

/** The stored form of a cluster, or undefined where it would not be smaller. */
export function compressCluster(image: Image, cluster: Uint8Array): Promise<Uint8Array | undefined> {
  return image.header.compressionType === CompressionType.zstd
    ? compressZstd(cluster)
    : compressRaw(cluster, { windowBits: DEFLATE_WINDOW_BITS });
}
