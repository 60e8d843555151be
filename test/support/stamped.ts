/** Images whose content tells where it belongs: every 512-byte sector holds its own index, so that aliasing shows. */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';

export const SECTOR = 512;

/** A small deterministic generator: the same seed, the same numbers in [0, 1). */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** One sector that names its index and the seed; half of it repeats, so that it compresses. */
export function stamp(index: number, seed: number): Buffer {
  const sector = Buffer.alloc(SECTOR, (index + seed) & 0xff);
  sector.writeUInt32LE(index >>> 0, 0);
  sector.writeUInt32LE(seed >>> 0, 4);
  sector.writeUInt32BE((index * 2654435761) >>> 0, SECTOR - 4);
  return sector;
}

/**
 * Writes a raw file of `size` bytes (a multiple of 512) with runs of stamped sectors and holes between them, by the seed;
 * some runs are zeros that are allocated. Gives the content.
 */
export function writeStamped(path: string, size: number, seed: number): Buffer {
  const random = generator(seed);
  const content = Buffer.alloc(size);
  const fd = openSync(path, 'w');
  ftruncateSync(fd, size);
  const sectors = size / SECTOR;
  for (let at = 0; at < sectors; ) {
    const length = Math.min(sectors - at, 1 + Math.floor(random() ** 3 * 1200));
    const kind = random();
    if (kind < 0.55) {
      for (let i = at; i < at + length; i++) stamp(i, seed).copy(content, i * SECTOR);
      writeSync(fd, content, at * SECTOR, length * SECTOR, at * SECTOR);
    } else if (kind < 0.65) writeSync(fd, content, at * SECTOR, length * SECTOR, at * SECTOR);
    at += length;
  }
  closeSync(fd);
  return content;
}
