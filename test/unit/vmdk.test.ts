import { describe, expect, test } from 'vitest';
import type { SparseExtent } from '../../src/engine/formats/vmdk/extent.js';
import { vmdk } from '../../src/engine/formats/vmdk/index.js';
import { openImage } from '../../src/engine/formats/vmdk/open.js';
import { GrainTables } from '../../src/engine/formats/vmdk/tables.js';
import type { Extent } from '../../src/engine/node/driver.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import {
  cowd,
  descriptor,
  expected,
  folder,
  grainsOf,
  hosted,
  readAll,
  seSparse,
  stamp,
} from './vmdk-images.js';

const GRAIN = 65536;

function probeText(text: string, size = text.length): number {
  const head = Buffer.alloc(2048);
  head.write(text, 'latin1');
  return vmdk.probe(head, 'x', size);
}

describe('probe', () => {
  test('magics', () => {
    expect(probeText('KDMV', 65536)).toBe(100);
    expect(probeText('COWD', 65536)).toBe(100);
    expect(probeText('VMDK', 65536)).toBe(0);
    expect(probeText('KDM')).toBe(0);
  });
  test.each([
    ['version=1\n', 100],
    ['version=2\r\n', 100],
    ['# Disk DescriptorFile\nversion=3\n', 100],
    ['# a\n#b\n   \n \r\nversion=1\n', 100],
    ['version=4\n', 0],
    ['version=1 \n', 0],
    ['version=1', 0],
    ['\nversion=1\n', 0],
    ['# a\n\nversion=1\n', 0],
    ['  version=1\n', 0],
    ['# only a comment', 0],
    ['    ', 0],
  ])('%j', (text, score) => expect(probeText(text)).toBe(score));
  test('comments beyond the first 512 bytes hide the version', () => {
    expect(probeText(`# ${'x'.repeat(490)}\nversion=1\n`)).toBe(100);
    expect(probeText(`# ${'x'.repeat(510)}\nversion=1\n`)).toBe(0);
  });
});

describe('sparse extents', () => {
  const grains = grainsOf(
    [0, stamp(GRAIN, 1)],
    [1, stamp(GRAIN, 2)],
    [3, stamp(GRAIN, 3)],
    [4, 'zero'],
    [5, 'zero'],
    [511, stamp(GRAIN, 4)],
    [512, stamp(GRAIN, 5)],
    [1600, stamp(GRAIN, 6)],
  );
  const capacity = 1601 * 128 - 5;
  const size = capacity * 512;

  test('content, through every table', async () => {
    const node = await folder({ 'a.vmdk': hosted({ capacity, grains }) }).open('a.vmdk');
    expect(node.size).toBe(size);
    expect(node.unit).toBe(GRAIN);
    expect((await readAll(node)).equals(expected(size, GRAIN, grains))).toBe(true);
    // Not from the start of a grain either.
    expect((await readAll(node, 100, 9000)).equals(expected(size, GRAIN, grains).subarray(100, 9100))).toBe(
      true,
    );
  });

  test('map merges what is contiguous, and is synchronous once a table is cached', async () => {
    const node = await folder({ 'a.vmdk': hosted({ capacity, grains }) }).open('a.vmdk');
    const first = node.map({ at: 512, length: size - 512 });
    expect(first).toBeInstanceOf(Promise);
    const at = ((await first) as Extract<Extent, { kind: 'data' }>).at;
    expect(await first).toMatchObject({ kind: 'data', length: 2 * GRAIN - 512 });
    const now = (from: number, length: number) => node.map({ at: from, length });
    expect(now(0, 1)).toMatchObject({ kind: 'data', length: 1, at: at - 512 });
    expect(now(2 * GRAIN, size)).toMatchObject({ kind: 'backing', length: GRAIN });
    expect(now(3 * GRAIN + 7, size)).toMatchObject({ kind: 'data', length: GRAIN - 7 });
    expect(now(4 * GRAIN, size)).toMatchObject({ kind: 'zero', length: 2 * GRAIN });
    // Without an entry in the directory for the table in between, the hole goes on into the next table.
    expect(await now(513 * GRAIN, size - 513 * GRAIN)).toMatchObject({
      kind: 'backing',
      length: 511 * GRAIN,
    });
    expect(now(1024 * GRAIN, 600 * GRAIN)).toMatchObject({ kind: 'backing', length: 512 * GRAIN });
  });

  test('entry 1 is a sector where zeroed grains are not enabled', async () => {
    const image = hosted({ capacity: 128, grains: grainsOf([0, 'zero']), flags: 1 });
    const node = await folder({ a: image }).open('a');
    expect(await node.map({ at: 0, length: 65536 })).toMatchObject({ kind: 'data', at: 512 });
  });

  test.each([1, 100, 512])('%i entries in a table, odd grain size', async (entriesPerTable) => {
    const small = grainsOf([0, stamp(3 * 512, 9)], [7, stamp(3 * 512, 10)], [103, stamp(3 * 512, 11)]);
    const image = hosted({ capacity: 320, grains: small, grainSectors: 3, entriesPerTable });
    const node = await folder({ a: image }).open('a');
    expect((await readAll(node)).equals(expected(320 * 512, 1536, small))).toBe(true);
  });

  test.each([
    { footer: false, markers: true },
    { footer: true, markers: true },
    { footer: false, markers: false },
  ])('compressed: %j', async (how) => {
    const some = new Map([...grains].filter(([, grain]) => grain !== 'zero'));
    // Noise does not shrink: its stored form is longer than the grain.
    const noise = Buffer.alloc(GRAIN);
    let seed = 1;
    for (let at = 0; at < GRAIN; at += 4) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      noise.writeUInt32LE(seed, at);
    }
    if (how.markers) some.set(2, noise);
    const node = await folder({ a: hosted({ capacity, grains: some, compress: true, ...how }) }).open('a');
    expect((await readAll(node)).equals(expected(size, GRAIN, some))).toBe(true);
    expect(await node.map({ at: 3, length: size - 3 })).toMatchObject({ kind: 'packed', length: GRAIN - 3 });
    expect((await readAll(node, 1000, 70000)).equals(expected(size, GRAIN, some).subarray(1000, 71000))).toBe(
      true,
    );
    expect((await node.info()).specific?.data).toMatchObject({
      'create-type': 'streamOptimized',
      extents: [{ compressed: true, 'cluster-size': GRAIN, format: '' }],
    });
  });

  test('the last grain of a stream may be stored short', async () => {
    const last = stamp(512 * 3, 1);
    const node = await folder({
      a: hosted({ capacity: 131, grains: grainsOf([1, last]), compress: true }),
    }).open('a');
    expect((await readAll(node, 65536)).equals(last)).toBe(true);
    const short = await folder({
      a: hosted({ capacity: 132, grains: grainsOf([1, last]), compress: true }),
    }).open('a');
    await expect(readAll(short, 65536)).rejects.toMatchObject({
      kind: 'corrupt',
      message: 'Invalid argument',
    });
  });
});

describe('several extents', () => {
  test('COWD, seSparse, flat and zero extents follow each other in the disk', async () => {
    const cowGrains = grainsOf([0, stamp(512, 20)], [4095, stamp(512, 21)], [4096, stamp(512, 22)]);
    const seGrains = grainsOf([0, 'unmapped'], [1, stamp(4096, 30)], [2, 'zero'], [4096, stamp(4096, 31)]);
    const flat = stamp(8192, 40);
    const lines = [
      'RW 5000 VMFSSPARSE "cow"',
      'RW 40000 SESPARSE "se"',
      'RW 7 ZERO',
      'RW 12 FLAT "flat" 4',
      'RDONLY 4 VMFS "flat"',
    ];
    const files = folder({
      d: descriptor({ type: 'vmfsSparse', lines }),
      cow: cowd({ capacity: 5000, grains: cowGrains }),
      se: seSparse({ capacity: 40000, grains: seGrains }),
      flat,
    });
    const node = await files.open('d');
    const wanted = Buffer.concat([
      expected(5000 * 512, 512, cowGrains),
      expected(40000 * 512, 4096, seGrains),
      Buffer.alloc(7 * 512),
      flat.subarray(2048, 2048 + 12 * 512),
      flat.subarray(0, 2048),
    ]);
    expect(node.size).toBe(wanted.length);
    expect((await readAll(node)).equals(wanted)).toBe(true);
    expect([...node.children.keys()]).toEqual(['extents.0', 'extents.1', 'extents.3', 'extents.4']);
    expect(await node.map({ at: 5000 * 512, length: 8192 })).toMatchObject({ kind: 'zero', length: 4096 });
    expect(await node.map({ at: 45000 * 512, length: 9000 })).toMatchObject({
      kind: 'zero',
      length: 7 * 512,
    });
    const info = await node.info();
    expect(info.clusterSize).toBeUndefined();
    expect(info.dirty).toBeUndefined();
    expect(info.specific?.data.extents).toMatchObject([
      { filename: 'cow', format: 'VMFSSPARSE', 'cluster-size': 512 },
      { filename: 'se', format: 'SESPARSE', 'cluster-size': 4096 },
      { filename: '', format: 'ZERO', 'virtual-size': 3584 },
      { filename: 'flat', format: 'FLAT' },
      { filename: 'flat', format: 'VMFS' },
    ]);
    await node.close();
    expect(files.opened.map(({ closed }) => closed)).toEqual([true, true, true, true]);
  });

  test.each(['vmfs', 'vmfsThin', 'monolithicFlat', 'twoGbMaxExtentFlat'])('%s', async (type) => {
    const lines = ['RW 8 FLAT "a" 0', 'RW 8 VMFS "b"'];
    const files = folder({ d: descriptor({ type, lines }), a: stamp(4096, 1), b: stamp(2048, 2) });
    const node = await files.open('d');
    const wanted = Buffer.concat([stamp(4096, 1), stamp(2048, 2), Buffer.alloc(2048)]);
    expect((await readAll(node)).equals(wanted)).toBe(true);
    const info = await node.info();
    expect(info.clusterSize).toBeUndefined();
    expect(info.dirty).toBe(false);
    expect(info.specific).toMatchObject({ type: 'vmdk', data: { 'create-type': type } });
  });

  test('what was opened is closed when a later extent is missing', async () => {
    const lines = ['RW 8 FLAT "flat" 0', 'RW 8 FLAT "none" 0'];
    const files = folder({ d: descriptor({ type: 'monolithicFlat', lines }), flat: Buffer.alloc(4096) });
    await expect(files.open('d')).rejects.toMatchObject({ kind: 'not-found' });
    expect(files.opened).toMatchObject([{ name: 'flat', closed: true }]);
  });

  test('the image file itself is left open', async () => {
    const files = folder({ a: hosted({ capacity: 8, grains: new Map() }) });
    const context = files.context('a');
    const node = await vmdk.open(context);
    await node.close();
    await context.file.read(0, new Uint8Array(1));
  });

  test('a descriptor inside a sparse file without capacity names the extents', async () => {
    const text = descriptor({ type: 'monolithicFlat', lines: ['RW 8 FLAT "flat" 0'] });
    const shell = hosted({ capacity: 0, grains: new Map(), descriptor: text });
    const node = await folder({ a: shell, flat: stamp(4096, 5) }).open('a');
    expect((await readAll(node)).equals(stamp(4096, 5))).toBe(true);
  });
});

test('backing file, with the content ids of both', async () => {
  const text = descriptor({ cid: '0000002a', parentCid: 'dEadbeef', parent: '../pärent.vmdk' });
  const node = await folder({ a: hosted({ capacity: 8, grains: new Map(), descriptor: text }) }).open('a');
  expect(node.contentId).toBe(42);
  expect(node.backing).toEqual({ filename: '../pärent.vmdk', format: 'vmdk', contentId: 0xdeadbeef });
  expect((await node.info()).specific?.data).toMatchObject({ cid: 42, 'parent-cid': 0xdeadbeef });
});

test('the table cache is bounded', async () => {
  // 16,384 tables of 2 KiB, in a file that is nearly all hole.
  const tables = 16384;
  const file = new MemoryStorage(0, { filename: 'a' });
  const header = hosted({ capacity: tables * 512 * 128, grains: new Map() }).subarray(0, 21 * 512);
  await file.write(0, header);
  const directory = new Uint32Array(tables).map((_, index) => 4096 + index * 4);
  await file.write(21 * 512, new Uint8Array(directory.buffer));
  await file.truncate(4096 * 512 + tables * 2048);
  const context = folder({ a: file }).context('a');
  const extent = (await openImage(context)).extents[0] as SparseExtent;
  const held = new GrainTables();
  for (let index = 0; index < tables; index++) {
    expect((await held.load(extent, index)).length).toBe(512);
    expect(held.cached(extent, index)?.length).toBe(512);
  }
  expect(held.heldBytes).toBeGreaterThan(4 * 2 ** 20);
  expect(held.heldBytes).toBeLessThan(10 * 2 ** 20);
  const node = await vmdk.open(context);
  const checked = await node.checker!.check({ repair: { leaks: false, errors: false }, report: () => {} });
  expect(checked.corruptions).toBe(0);
});
