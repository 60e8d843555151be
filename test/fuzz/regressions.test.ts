/** Faults that the fuzz suite has found, one by one. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { ReferenceCounts } from '../../src/engine/formats/qcow2/check-counts.js';
import { qcow2 } from '../../src/engine/formats/qcow2/index.js';
import { raw } from '../../src/engine/formats/raw/index.js';
import type { FormatNode } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { memoryContext } from '../support/open-memory.js';
import { qcow2Seeds } from './qcow2-seeds.js';

const unhandled: unknown[] = [];
const note = (reason: unknown) => unhandled.push(reason);
beforeEach(() => {
  unhandled.length = 0;
  process.on('unhandledRejection', note);
});
afterEach(() => {
  process.off('unhandledRejection', note);
});
const settled = () => new Promise((resolve) => setImmediate(resolve));

test('a read that fails while the next run is looked up is not a rejection that nobody handles', async () => {
  const failed = new ImageError('corrupt', 'bad cluster');
  const file = new MemoryStorage(8192, { writable: false });
  const format: FormatNode = {
    size: 8192,
    unit: 1,
    children: new Map(),
    startsAsZero: false,
    map({ at, length }) {
      if (at === 0) return { kind: 'packed', length: 4096, read: () => Promise.reject(failed) };
      return settled().then(() => ({ kind: 'zero', length }));
    },
    info: () => ({}),
    close: async () => undefined,
  };
  const image = new ImageNode({
    filename: 'image',
    path: undefined,
    driver: raw,
    format,
    file,
    backing: undefined,
    writable: false,
  });
  await expect(image.read(0, new Uint8Array(8192))).rejects.toBe(failed);
  await settled();
  expect(unhandled).toEqual([]);
});

test('qcow2: an L2 table that cannot be read, behind a run that has its answer, is not a rejection that nobody handles', async () => {
  const seeds = await qcow2Seeds();
  const file = new Uint8Array(seeds.find((seed) => seed.name === 'refcount_bits 1')!.files[0]!.bytes);
  const view = new DataView(file.buffer);
  const l1 = Number(view.getBigUint64(40));
  view.setBigUint64(l1 + 8 * 4, 0x1ffffffffffe00n);
  const node = await qcow2.open(memoryContext(file));
  // From within the table before, which is in memory, up to the broken one.
  for (let at = 0; at < node.size; at += 512) {
    try {
      await node.map({ at, length: node.size - at });
    } catch (error) {
      expect(error).toBeInstanceOf(ImageError);
    }
  }
  await settled();
  expect(unhandled).toEqual([]);
});

test('qcow2: a free cluster for each of many refcount blocks of a full image is found without looking at all of it each time', () => {
  const clusters = 1 << 21;
  const counts = new ReferenceCounts(clusters, 0xffff);
  for (let cluster = 0; cluster < clusters; cluster++) counts.add(cluster);
  // quadratic: 2^34 steps, minutes
  for (let block = 0; block < clusters / 256; block++) {
    const free = counts.freeRun(block * 256, 1);
    expect(free).toBe(clusters + block);
    counts.add(free);
  }
  counts.release(1000);
  expect(counts.freeRun(0, 1)).toBe(1000);
  expect(counts.freeRun(0, 2)).toBe(clusters + clusters / 256);
  counts.release(1001);
  expect(counts.freeRun(0, 2)).toBe(1000);
});
