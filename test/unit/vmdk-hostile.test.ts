/** What hostile VMDK images must not do: hang, take memory, fail with anything but an ImageError. */
import { describe, expect, test } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { cowd, descriptor, folder, grainsOf, hosted, readAll, seSparse, stamp } from './vmdk-images.js';

const grains = grainsOf([0, stamp(4096, 1)], [5, stamp(4096, 2)], [9, stamp(4096, 3)], [600, stamp(4096, 4)]);
const sparse = hosted({ capacity: 5600, grains, grainSectors: 8 });

describe('limits', () => {
  test('more than 4096 extents', async () => {
    const lines = Array.from({ length: 4097 }, () => 'RW 1 FLAT "x" 0');
    const files = folder({ d: descriptor({ type: 'vmfs', lines }), x: Buffer.alloc(512) });
    await expect(files.open('d')).rejects.toMatchObject({
      kind: 'limit',
      message: 'Too many extents (more than 4096)',
    });
    expect(files.opened).toEqual([]);
  });

  test('the descriptor ends after a MiB', async () => {
    const text = descriptor({ type: 'vmfs', lines: ['RW 1 FLAT "x" 0', `#${'y'.repeat(2 ** 20)}`] });
    const files = folder({ d: `${text}RW 1 FLAT "x" 0\n`, x: Buffer.alloc(512) });
    const node = await files.open('d');
    expect(node.size).toBe(512);
  });

  test('a huge file is not read for its descriptor', async () => {
    const file = new MemoryStorage(2 ** 50, { filename: 'd' });
    await expect(folder({ d: file }).open('d')).rejects.toMatchObject({
      message: 'invalid VMDK image descriptor',
    });
  });

  test.each([
    `RW ${'9'.repeat(900_000)} FLAT "x" 0`,
    `RW 1 FLAT "x" ${'9'.repeat(900_000)}`,
    `RW${' '.repeat(900_000)}x`,
    `RW 1 ${'F'.repeat(900_000)}`,
    `${'RW 1 FLAT '.repeat(90_000)}`,
    `RW 1 FLAT "${'x'.repeat(900_000)}" 0`,
    '\n'.repeat(900_000),
  ])('a long line is refused soon (%#)', async (line) => {
    const files = folder({ d: descriptor({ type: 'vmfs', lines: [line] }), x: Buffer.alloc(512) });
    const start = performance.now();
    await expect(files.open('d')).rejects.toBeInstanceOf(ImageError);
    expect(performance.now() - start).toBeLessThan(2000);
  });

  test('a long number is the largest there is', async () => {
    const line = `RW ${'9'.repeat(30)} FLAT "x" 0`;
    const files = folder({ d: descriptor({ type: 'vmfs', lines: [line] }), x: Buffer.alloc(512) });
    await expect(files.open('d')).rejects.toMatchObject({ kind: 'limit', context: { errno: 'EFBIG' } });
  });

  test('extents whose sizes together are beyond what a number holds', async () => {
    const half = 2 ** 43;
    const lines = [`RW ${half} ZERO`, `RW ${half} ZERO`];
    const files = folder({ d: descriptor({ type: 'vmfs', lines }) });
    await expect(files.open('d')).rejects.toMatchObject({ kind: 'limit' });
  });

  test('an extent whose descriptor names further extents is refused', async () => {
    const text = descriptor({ type: 'twoGbMaxExtentSparse', lines: ['RW 8 SPARSE "self"'] });
    const self = hosted({ capacity: 0, grains: new Map(), descriptor: text });
    const node = await folder({ self }).open('self');
    // One level only: the extent is one without capacity, not the descriptor again.
    expect(node.size).toBe(0);
  });

  test.each(['NOACCESS 8 FLAT "x" 0', 'RW 8 VMFSRDM "x"', 'RW -8 FLAT "x" 0', 'RW 8 FLAT x 0'])(
    '%s is not passed over',
    async (line) => {
      const lines = [line, 'RW 8 FLAT "x" 0'];
      const files = folder({ d: descriptor({ type: 'vmfs', lines }), x: Buffer.alloc(4096) });
      await expect(files.open('d')).rejects.toBeInstanceOf(ImageError);
    },
  );

  test('compressed grains of more than 2 MiB', async () => {
    const image = hosted({ capacity: 16384, grains: new Map(), grainSectors: 8192, compress: true });
    await expect(folder({ a: image }).open('a')).rejects.toMatchObject({ kind: 'limit' });
  });

  test('COWD without a grain size', async () => {
    const image = cowd({ capacity: 100, grains: new Map() });
    image.writeUInt32LE(0, 16);
    const lines = ['RW 100 VMFSSPARSE "x"'];
    await expect(
      folder({ d: descriptor({ type: 'vmfsSparse', lines }), x: image }).open('d'),
    ).rejects.toMatchObject({
      message: 'Invalid granularity, image may be corrupt',
    });
  });

  test('a directory of 32 Mi entries is not held, and its holes are passed over in time', async () => {
    const file = new MemoryStorage(0, { filename: 'a' });
    const header = Buffer.from(sparse.subarray(0, 21 * 512));
    header.writeBigUInt64LE(BigInt(2 ** 25 * 512 * 128), 12);
    header.writeBigUInt64LE(128n, 20);
    await file.write(0, header);
    await file.truncate(2 ** 40);
    const node = await folder({ a: file }).open('a');
    expect(node.size).toBe(2 ** 50);
    const start = performance.now();
    let runs = 0;
    for (let at = 0; at < node.size; runs++) {
      const extent = await node.map({ at, length: node.size - at });
      expect(extent.kind).toBe('backing');
      at += extent.length;
    }
    expect(runs).toBeLessThan(10_000);
    expect(performance.now() - start).toBeLessThan(20_000);
  });

  test('writing is refused where the format forbids it', async () => {
    const third = hosted({ capacity: 8, grains: new Map(), version: 3 });
    await expect(folder({ a: third }).open('a', { writable: true })).rejects.toMatchObject({
      kind: 'read-only',
      message: 'VMDK version 3 must be read only',
    });
    const lines = ['RW 8 SESPARSE "x"'];
    const files = folder({
      d: descriptor({ type: 'seSparse', lines }),
      x: seSparse({ capacity: 8, grains: new Map() }),
    });
    await expect(files.open('d', { writable: true })).rejects.toMatchObject({
      message: 'No write support for seSparse images available',
    });
  });
});

describe('a storage that fails', () => {
  test('its error comes through, and the next try reads again', async () => {
    const file = new MemoryStorage(sparse, { filename: 'a' });
    const node = await folder({ a: file }).open('a');
    const read = file.read.bind(file);
    file.read = () => Promise.reject(new ImageError('io', 'Input/output error', { errno: 'EIO' }));
    await expect(node.map({ at: 0, length: 512 })).rejects.toMatchObject({ kind: 'io' });
    file.read = read;
    expect(await node.map({ at: 0, length: 512 })).toMatchObject({ kind: 'data' });
  });

  test('two who need the same table at once read it once', async () => {
    const file = new MemoryStorage(sparse, { filename: 'a' });
    const node = await folder({ a: file }).open('a');
    const read = file.read.bind(file);
    let reads = 0;
    file.read = (at, into) => {
      reads++;
      return read(at, into);
    };
    await Promise.all([0, 4096, 5 * 4096].map((at) => node.map({ at, length: 512 })));
    // One page of the directory, one table.
    expect(reads).toBe(2);
  });
});

/** Structured damage with fixed seeds: words that matter become words that hurt. */
describe('damaged at random', () => {
  const stream = () => hosted({ capacity: 5600, grains, grainSectors: 8, compress: true, footer: true });
  const bases: readonly (readonly [string, () => Record<string, Buffer | string>])[] = [
    ['hosted', () => ({ m: Buffer.from(sparse) })],
    ['stream', () => ({ m: stream() })],
    [
      'cowd',
      () => ({
        m: descriptor({ type: 'vmfsSparse', lines: ['RW 8192 VMFSSPARSE "a"', 'RW 80 FLAT "b" 3'] }),
        a: cowd({ capacity: 8192, grains: grainsOf([3, stamp(512, 1)], [4096, stamp(512, 2)]) }),
        b: stamp(65536, 3),
      }),
    ],
    [
      'seSparse',
      () => ({
        m: descriptor({ type: 'seSparse', lines: ['RW 65536 SESPARSE "a"'] }),
        a: seSparse({
          capacity: 65536,
          grains: grainsOf([1, stamp(4096, 1)], [2, 'zero'], [3, 'unmapped'], [4100, stamp(4096, 2)]),
        }),
      }),
    ],
  ];
  const WORDS = [0, 1, 2, 8, 128, 0x7fffffff, 0x80000000, 0xffffffff];
  const LONGS = [0n, 1n, 2n ** 32n, 2n ** 44n, 2n ** 53n, 2n ** 55n, 2n ** 63n, 2n ** 64n - 1n];

  test.each(bases)('%s', async (name, base) => {
    let seed = name.length;
    const random = (below: number) => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    for (let round = 0; round < 250; round++) {
      const files = base();
      const names = Object.keys(files);
      const victim = names[random(names.length)]!;
      let image = Buffer.from(files[victim] as string, 'latin1');
      for (let patch = random(3); patch >= 0; patch--) {
        const spots = [random(80), 512 + random(600), 10752 + random(5000), random(image.length)];
        spots.push(Math.max(0, image.length - 1 - random(1536)));
        const at = Math.max(0, Math.min(spots[random(spots.length)]!, image.length - 12)) & ~3;
        const kind = random(16);
        if (kind < 5) image.writeUInt32LE(WORDS[random(WORDS.length)]!, at);
        else if (kind < 10) image.writeBigUInt64LE(LONGS[random(LONGS.length)]!, at);
        else if (kind < 15) image[at + random(4)] = random(256);
        else image = Buffer.from(image.subarray(0, Math.max(16, random(image.length))));
      }
      files[victim] = image;
      const start = performance.now();
      const opened = folder(files);
      try {
        const node = await opened.open('m');
        try {
          await readAll(node, 0, Math.min(node.size, 8 * 2 ** 20));
          if (node.size > 2 ** 24) await readAll(node, node.size - 2 ** 20, 2 ** 20);
        } finally {
          await node.close();
        }
      } catch (error) {
        expect(error, `${name}, round ${round}: ${(error as Error).stack}`).toBeInstanceOf(ImageError);
        expect((error as ImageError).message).not.toContain('\n');
        expect((error as ImageError).kind).not.toBe('internal');
      }
      expect(opened.opened.every(({ closed }) => closed)).toBe(true);
      expect(performance.now() - start, `${name}, round ${round}`).toBeLessThan(3000);
    }
  });
});
