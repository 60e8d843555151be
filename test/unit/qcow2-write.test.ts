/** Writing qcow2 images: random work against a model; the reference checks and reads what comes out. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { raw } from '../../src/engine/formats/raw/index.js';
import { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { describeInterop, tempDir } from '../support/reference.js';
import {
  checkReport,
  createImage,
  dump,
  type Made,
  openImage,
  qemuImgIn,
  random,
  readAll,
  stamp,
} from './qcow2-support.js';

const KiB = 1024;
const MiB = 1 << 20;

interface Case {
  readonly name: string;
  readonly size: number;
  readonly options: OptionValues;
  readonly backing?: boolean;
  readonly steps?: number;
  readonly smallCaches?: boolean;
}

const cases: readonly Case[] = [
  { name: 'defaults', size: 8 * MiB, options: {} },
  { name: 'defaults with backing', size: 8 * MiB, options: {}, backing: true },
  { name: 'size not a multiple of the cluster', size: 5 * MiB + 1536, options: {}, backing: true },
  { name: 'version 2', size: 8 * MiB, options: { compat: '0.10' } },
  { name: 'version 2 with backing', size: 8 * MiB, options: { compat: '0.10' }, backing: true },
  { name: '512-byte clusters', size: 2 * MiB, options: { cluster_size: 512 }, backing: true },
  {
    name: '512-byte clusters, 64-bit refcounts',
    size: 4 * MiB,
    options: { cluster_size: 512, refcount_bits: 64 },
  },
  {
    name: '512-byte clusters, 1-bit refcounts',
    size: 4 * MiB,
    options: { cluster_size: 512, refcount_bits: 1 },
  },
  { name: '2 MiB clusters', size: 24 * MiB, options: { cluster_size: 2 * MiB }, backing: true, steps: 60 },
  { name: '2-bit refcounts', size: 4 * MiB, options: { refcount_bits: 2, cluster_size: 4096 } },
  { name: '4-bit refcounts', size: 4 * MiB, options: { refcount_bits: 4, cluster_size: 4096 } },
  { name: '8-bit refcounts', size: 4 * MiB, options: { refcount_bits: 8, cluster_size: 4096 } },
  { name: '32-bit refcounts', size: 4 * MiB, options: { refcount_bits: 32, cluster_size: 4096 } },
  { name: 'preallocated', size: 8 * MiB, options: { preallocation: 'metadata' } },
  { name: 'lazy refcounts', size: 8 * MiB, options: { lazy_refcounts: true } },
  { name: 'subclusters', size: 8 * MiB, options: { extended_l2: true } },
  { name: 'subclusters with backing', size: 8 * MiB, options: { extended_l2: true }, backing: true },
  {
    name: 'small subclusters',
    size: 2 * MiB + 512,
    options: { extended_l2: true, cluster_size: 16 * KiB },
    backing: true,
  },
  {
    name: 'subclusters, preallocated',
    size: 4 * MiB,
    options: { extended_l2: true, preallocation: 'metadata' },
    backing: true,
  },
  {
    name: 'tables that do not fit into the caches',
    size: 4 * MiB,
    options: { cluster_size: 512, refcount_bits: 64 },
    backing: true,
    smallCaches: true,
  },
  {
    name: 'subclusters with tables that do not fit into the caches',
    size: 24 * MiB,
    options: { cluster_size: 16 * KiB, extended_l2: true },
    smallCaches: true,
  },
  { name: 'zstd', size: 4 * MiB, options: { compression_type: 'zstd' } },
  { name: 'data file', size: 8 * MiB, options: { data_file: 'data.raw' } },
  { name: 'data file with backing', size: 8 * MiB, options: { data_file: 'data.raw' }, backing: true },
  { name: 'raw data file', size: 8 * MiB, options: { data_file: 'data.raw', data_file_raw: true } },
  {
    name: 'data file with subclusters',
    size: 8 * MiB,
    options: { data_file: 'data.raw', extended_l2: true },
  },
];

const BACKING_NAME = 'backing.raw';

function backingNode(content: Uint8Array): Promise<ImageNode> {
  const file = new MemoryStorage(content, { filename: BACKING_NAME });
  return raw
    .open({
      file,
      writable: false,
      options: {},
      forCheck: false,
      metadataOnly: false,
      openChild: async () => undefined,
      warn: () => {},
    })
    .then(
      (format) =>
        new ImageNode({
          filename: BACKING_NAME,
          path: undefined,
          driver: raw,
          format,
          file,
          backing: undefined,
          writable: false,
        }),
    );
}

/** Does random guest work on an image and on an array, several requests at once, and compares. */
async function work(
  made: Made,
  test: Case,
  content: Uint8Array,
  backing: Uint8Array | undefined,
  seed: number,
): Promise<void> {
  const pick = random(seed);
  const open = async () =>
    openImage(made, {
      writable: true,
      smallCaches: test.smallCaches ?? false,
      ...(backing === undefined ? {} : { backing: await backingNode(backing) }),
    });
  let { image, node } = await open();
  const canPack = node.pack !== undefined;
  const version2 = test.options.compat === '0.10';
  const steps = test.steps ?? 200;
  for (let step = 0; step < steps; ) {
    // Requests that do not overlap run at the same time.
    const parallel: Promise<void>[] = [];
    const taken: [number, number][] = [];
    const lanes = 1 + pick(6);
    for (let lane = 0; lane < lanes; lane++, step++) {
      const longest = pick(4) === 0 ? MiB : 96 * KiB;
      let at = pick(test.size);
      if (pick(2) === 0) at -= at % 4096;
      let length = Math.max(1, Math.min(1 + pick(longest), test.size - at));
      const what = pick(12);
      const unit = image.format.pack?.unit ?? image.format.unit;
      if (what >= 9) {
        at -= at % unit;
        length = what === 9 ? Math.min(unit, test.size - at) : Math.min(unit * (1 + pick(6)), test.size - at);
      }
      if (taken.some(([from, to]) => at < to + 2 * MiB && from < at + length + 2 * MiB)) continue;
      taken.push([at, at + length]);
      const salt = pick(1000);
      if (what === 9 && canPack && length === unit) {
        const bytes = new Uint8Array(unit).fill(salt);
        bytes.set(stamp(at, Math.min(unit, 512), salt));
        content.set(bytes, at);
        parallel.push(
          (async () => {
            const packed = await node.pack!.compress(bytes);
            if (packed === undefined) await image.write(at, bytes);
            else await image.writePacked(at, packed);
          })(),
        );
      } else if (what === 10) {
        content.fill(0, at, at + length);
        parallel.push(image.zero({ at, length }, { unmap: pick(2) === 0 }));
      } else if (what === 11 && !(version2 && backing !== undefined)) {
        content.fill(0, at, at + length);
        const { unit: whole } = { unit: node.writeParts.image.geometry.clusterSize };
        // only whole clusters are promised
        const from = Math.ceil(at / whole) * whole;
        const end = at + length === test.size ? test.size : Math.floor((at + length) / whole) * whole;
        parallel.push(
          image.zero({ at, length: Math.max(0, Math.min(from, at + length) - at) }).then(async () => {
            if (end > from) await image.discard({ at: from, length: end - from });
            const rest = Math.max(end, from);
            if (rest < at + length) await image.zero({ at: rest, length: at + length - rest });
          }),
        );
      } else {
        const bytes = stamp(at, length, salt);
        content.set(bytes, at);
        parallel.push(image.write(at, bytes));
      }
    }
    if (pick(8) === 0) parallel.push(image.flush());
    await Promise.all(parallel);
    if (pick(10) === 0) {
      const at = pick(test.size);
      const got = new Uint8Array(Math.min(300 * KiB, test.size - at));
      await image.read(at, got);
      expect(Buffer.compare(got, content.subarray(at, at + got.length))).toBe(0);
    }
    if (pick(25) === 0) {
      await image.close();
      ({ image, node } = await open());
    }
  }
  await image.close();
}

function start(test: Case): { content: Uint8Array; backing: Uint8Array | undefined } {
  const backing = test.backing === true ? stamp(0, Math.ceil((test.size * 0.8) / 512) * 512, 77) : undefined;
  const content = new Uint8Array(test.size);
  if (backing !== undefined) content.set(backing);
  return { content, backing };
}

function make(test: Case): Promise<Made> {
  const { options } = test;
  return createImage(
    test.size,
    options,
    test.backing === true ? { filename: BACKING_NAME, format: 'raw' } : undefined,
  );
}

describe('qcow2: random work reads back', () => {
  for (const test of cases) {
    it(test.name, async () => {
      const { content, backing } = start(test);
      const made = await make(test);
      await work(made, test, content, backing, 1);
      const { image } = await openImage(
        made,
        backing === undefined ? {} : { backing: await backingNode(backing) },
      );
      expect(Buffer.compare(await readAll(image), content)).toBe(0);
      await image.close();
    });
  }
});

describeInterop('qcow2: the reference accepts and reads what random work leaves', () => {
  const folder = tempDir();
  for (const test of cases) {
    for (const seed of [2, 3]) {
      it(`${test.name}, seed ${seed}`, async () => {
        const { content, backing } = start(test);
        const made = await make(test);
        await work(made, test, content, backing, seed);
        const path = dump(made, folder);
        if (backing !== undefined) writeFileSync(join(folder, BACKING_NAME), backing);
        expect(checkReport(path)).toBe('');
        const out = join(folder, 'out.raw');
        const done = qemuImgIn(folder, 'convert', '-f', 'qcow2', '-O', 'raw', path, out);
        expect(done.stderr).toBe('');
        expect(Buffer.compare(readFileSync(out).subarray(0, content.length), content)).toBe(0);
        if (test.options.data_file_raw === true) {
          expect(Buffer.compare(made.dataFile!.bytes().subarray(0, content.length), content)).toBe(0);
        }
      });
    }
  }
});
