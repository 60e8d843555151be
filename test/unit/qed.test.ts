/** QED: layout, hand-made images, limits, damage. */
import { describe, expect, it } from 'vitest';
import { qed } from '../../src/engine/formats/qed/index.js';
import { entryAt, Feature, maxImageSize, QedHeader, setEntry } from '../../src/engine/formats/qed/layout.js';
import type { OpenContext } from '../../src/engine/node/driver.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { createInMemory, extentsOf, imageInMemory } from '../support/open-memory.js';

const CLUSTER = 4096;
const SMALL: OptionValues = { cluster_size: CLUSTER, table_size: 2 };

const create = (
  size: number,
  options: OptionValues = SMALL,
  backing?: { readonly filename: string; readonly format?: string },
) => createInMemory(qed, 'a.qed', size, options, backing);

const open = (file: MemoryStorage, how: Partial<OpenContext> = {}) => imageInMemory(qed, file, how);

async function damagedHeader(change: Partial<ReturnType<typeof QedHeader.decode>>): Promise<MemoryStorage> {
  const file = await create(1 << 20);
  const bytes = new Uint8Array(file.bytes());
  QedHeader.encodeInto({ ...QedHeader.decode(bytes), ...change }, bytes);
  return new MemoryStorage(bytes, { writable: true });
}

describe('layout', () => {
  it('has the header of the specification', () => {
    expect(QedHeader.size).toBe(64);
    expect(QedHeader.offsetOf('l1TableOffset')).toBe(40);
  });

  it('keeps 64-bit entries, the lower word first', () => {
    const words = new Uint32Array(4);
    setEntry(words, 1, 0x12_3456_7000);
    expect([...words]).toEqual([0, 0, 0x3456_7000, 0x12]);
    expect(entryAt(words, 1)).toBe(0x12_3456_7000);
  });

  it('counts the largest image as the reference does, modulo 2^64', () => {
    expect(maxImageSize(65536, 4)).toBe(2n ** 46n);
    expect(maxImageSize(2 ** 26, 16)).toBe(0n);
  });

  it('probes by the magic alone', () => {
    expect(qed.probe(Uint8Array.of(0x51, 0x45, 0x44, 0), '', 4)).toBe(100);
    expect(qed.probe(Uint8Array.of(0x51, 0x45, 0x44, 1), '', 4)).toBe(0);
    expect(qed.probe(new Uint8Array(2), '', 2)).toBe(0);
  });
});

describe('create', () => {
  it('writes header, name and an empty L1 table', async () => {
    const file = await create(1000, SMALL, { filename: 'base.raw', format: 'raw' });
    expect(file.size).toBe(3 * CLUSTER);
    const header = QedHeader.decode(file.bytes());
    expect(header).toMatchObject({
      clusterSize: CLUSTER,
      tableSize: 2,
      headerSize: 1,
      features: Feature.backingFile | Feature.backingFormatNoProbe,
      l1TableOffset: BigInt(CLUSTER),
      imageSize: 1024n,
      backingFilenameOffset: 64,
      backingFilenameSize: 8,
    });
    expect((await open(file)).format.backing).toEqual({ filename: 'base.raw', format: 'raw' });
  });

  it.each([
    [{ cluster_size: 2048 }, 0, /QED cluster size must be within range \[4096, 67108864\] and power of 2/],
    [{ cluster_size: 5000 }, 0, /QED cluster size must be/],
    [{ table_size: 0 }, 0, /QED table size must be within range \[1, 16\] and power of 2/],
    [{ table_size: 3 }, 0, /QED table size must be/],
    [SMALL, 2 ** 32 + 512, /less than 4294967296 bytes/],
    [{ cluster_size: 2 ** 26, table_size: 16 }, 512, /less than 0 bytes/],
  ])('refuses %j with %d bytes', async (options, size, message) => {
    await expect(create(size, options as OptionValues)).rejects.toThrow(message);
  });
});

describe('open refuses', () => {
  it.each([
    [{ magic: 0 }, 'Image not in QED format'],
    [{ features: 8n }, 'Unsupported QED features: 8'],
    [{ features: 0xffffffff00000010n }, 'Unsupported QED features: ffffffff00000010'],
    [{ clusterSize: 2048 }, 'QED cluster size is invalid'],
    [{ clusterSize: 2 ** 27 }, 'QED cluster size is invalid'],
    [{ clusterSize: 4097 }, 'QED cluster size is invalid'],
    [{ tableSize: 0 }, 'QED table size is invalid'],
    [{ tableSize: 32 }, 'QED table size is invalid'],
    [{ tableSize: 1, imageSize: 0n }, 'QED table offset is invalid'],
    [{ imageSize: 513n }, 'QED image size is invalid'],
    [{ imageSize: 2n ** 32n + 512n }, 'QED image size is invalid'],
    [{ l1TableOffset: 0n }, 'QED table offset is invalid'],
    [{ l1TableOffset: 4097n }, 'QED table offset is invalid'],
    [{ l1TableOffset: 8192n }, 'QED table offset is invalid'],
    [{ l1TableOffset: 2n ** 64n - 4096n }, 'QED table offset is invalid'],
    [{ headerSize: 0xffffffff }, 'QED table offset is invalid'],
    [{ features: 1n, backingFilenameOffset: 4090, backingFilenameSize: 7 }, /filename offset is invalid/],
    [{ features: 1n, backingFilenameOffset: 0xffffffff, backingFilenameSize: 0xffffffff }, /offset is inv/],
  ])('%o', async (change, message) => {
    await expect(open(await damagedHeader(change))).rejects.toThrow(message);
  });

  it('a name that is longer than the reference reads', async () => {
    const change = { features: 1n, backingFilenameOffset: 0, backingFilenameSize: 4096 };
    await expect(open(await damagedHeader(change))).rejects.toThrow('Failed to read backing filename');
  });
});

describe('open', () => {
  it('takes unknown compat bits, clears unknown autoclear bits when writing', async () => {
    const file = await damagedHeader({ compatFeatures: 1n, autoclearFeatures: 6n });
    await open(file);
    expect(QedHeader.decode(file.bytes()).autoclearFeatures).toBe(6n);
    await open(file, { writable: true });
    expect(QedHeader.decode(file.bytes())).toMatchObject({ autoclearFeatures: 0n, compatFeatures: 1n });
  });

  it('repairs an image that needs it, when writing, and only then', async () => {
    const file = await create(1 << 20);
    const image = await open(file, { writable: true });
    await image.write(0, new Uint8Array(CLUSTER).fill(7));
    await image.close();
    const bytes = Buffer.from(file.bytes());
    const l2 = Number(bytes.readBigUInt64LE(CLUSTER));
    bytes.writeBigUInt64LE(7n, l2 + 8);
    bytes.writeBigUInt64LE(Feature.needCheck, QedHeader.offsetOf('features'));
    const needs = new MemoryStorage(bytes, { writable: true });
    await (await open(needs)).close();
    await (await open(needs, { forCheck: true, writable: true })).close();
    expect(Buffer.compare(needs.bytes(), bytes)).toBe(0);
    const repaired = await open(needs, { writable: true });
    expect(QedHeader.decode(needs.bytes()).features).toBe(0n);
    const into = new Uint8Array(2 * CLUSTER);
    await repaired.read(0, into);
    expect(into[0]).toBe(7);
    expect(into[CLUSTER]).toBe(0);
  });

  it('keeps the mark where clusters are used twice', async () => {
    const file = await create(1 << 20);
    const image = await open(file, { writable: true });
    await image.write(0, new Uint8Array(2 * CLUSTER).fill(7));
    await image.close();
    const bytes = Buffer.from(file.bytes());
    const l2 = Number(bytes.readBigUInt64LE(CLUSTER));
    bytes.copy(bytes, l2 + 8, l2, l2 + 8);
    bytes.writeBigUInt64LE(Feature.needCheck, QedHeader.offsetOf('features'));
    const needs = new MemoryStorage(bytes, { writable: true });
    await (await open(needs, { writable: true })).close();
    expect(QedHeader.decode(needs.bytes()).features).toBe(Feature.needCheck);
  });
});

describe('guest data', () => {
  it('is mapped as it was written, zeroed and left', async () => {
    const file = await create(9 << 20);
    const image = await open(file, { writable: true });
    const data = new Uint8Array(3 * CLUSTER).map((_, at) => at % 251);
    await image.write(CLUSTER + 100, data);
    await image.zero({ at: 6 * CLUSTER, length: 2 * CLUSTER });
    await image.zero({ at: 2 * CLUSTER, length: CLUSTER });
    await image.write((4 << 20) - 10, data.subarray(0, 20));
    await image.close();
    const again = await open(file);
    const kinds = (await extentsOf(again.format)).map(({ kind, length }) => [kind, length]);
    const rest = (4 << 20) - 9 * CLUSTER;
    expect(kinds).toEqual([
      ['backing', CLUSTER],
      ['data', 4 * CLUSTER],
      ['backing', CLUSTER],
      ['zero', 2 * CLUSTER],
      ['backing', rest],
      // The table of the second half lies between.
      ['data', CLUSTER],
      ['data', CLUSTER],
      ['backing', (5 << 20) - CLUSTER],
    ]);
    const expected = new Uint8Array(9 << 20);
    expected.set(data, CLUSTER + 100);
    expected.fill(0, 2 * CLUSTER, 3 * CLUSTER);
    expected.set(data.subarray(0, 20), (4 << 20) - 10);
    const found = new Uint8Array(9 << 20);
    await again.read(0, found);
    expect(Buffer.compare(found, expected)).toBe(0);
    const result = await again.format.checker!.check({
      repair: { leaks: false, errors: false },
      report: () => {},
    });
    expect(result).toMatchObject({ corruptions: 0, leaks: 0, allocatedClusters: 6, totalClusters: 2304 });
  });

  it('of damaged tables is not given out', async () => {
    const file = await create(1 << 20);
    const image = await open(file, { writable: true });
    await image.write(0, new Uint8Array(2 * CLUSTER));
    await image.close();
    const bytes = Buffer.from(file.bytes());
    const l2 = Number(bytes.readBigUInt64LE(CLUSTER));
    for (const [at, value] of [
      [l2, 5n],
      [l2, BigInt(file.size)],
      [l2, 2n ** 64n - 4096n],
      [CLUSTER, 1n],
      [CLUSTER, BigInt(file.size - CLUSTER)],
      [CLUSTER, 0x7ffff000n],
    ] as const) {
      const copy = Buffer.from(bytes);
      copy.writeBigUInt64LE(value, at);
      const damaged = new MemoryStorage(copy, { writable: true });
      const reading = await open(damaged);
      await expect(reading.read(0, new Uint8Array(512))).rejects.toThrow('Invalid argument');
      const writing = await open(damaged, { writable: true });
      await expect(writing.write(0, new Uint8Array(512))).rejects.toThrow('Invalid argument');
    }
  });

  it('of a last cluster that is not whole is overwritten', async () => {
    const file = await create(1 << 20);
    await file.write(file.size, new Uint8Array(1000).fill(9));
    const image = await open(file, { writable: true });
    await image.write(0, Uint8Array.of(1));
    await image.write(8 << 9, Uint8Array.of(2));
    await image.close();
    const found = new Uint8Array(1 << 20);
    await (await open(file)).read(0, found);
    expect(found[0]).toBe(1);
    expect(found.indexOf(9)).toBe(-1);
  });
});

describe('changes', () => {
  it('of the size', async () => {
    const file = await create(1 << 20);
    const image = await open(file, { writable: true });
    const { format } = image;
    const off = { preallocation: 'off' } as const;
    await format.resize!(2 << 20, off);
    expect(image.size).toBe(2 << 20);
    await expect(format.resize!(1 << 20, off)).rejects.toThrow('Shrinking images is currently not supported');
    await expect(format.resize!(2 ** 33, off)).rejects.toThrow('Invalid image size specified');
    await expect(format.resize!(3 << 20, { preallocation: 'full' })).rejects.toThrow(
      "Unsupported preallocation mode 'full'",
    );
    await expect(format.resize!(3 << 20, { ...off, zeroNew: true })).rejects.toThrow(
      'Block driver does not support requested flags',
    );
    expect((await open(file)).size).toBe(2 << 20);
  });

  it('of the backing file', async () => {
    const file = await create(1 << 20);
    const { format } = await open(file, { writable: true });
    await format.changeBacking!('x'.repeat(1000), 'qcow2');
    expect((await open(file)).format.backing).toEqual({ filename: 'x'.repeat(1000) });
    await format.changeBacking!('y', 'raw');
    expect((await open(file)).format.backing).toEqual({ filename: 'y', format: 'raw' });
    await expect(format.changeBacking!('z'.repeat(4033), 'raw')).rejects.toMatchObject({ kind: 'no-space' });
    await format.changeBacking!(undefined, undefined);
    expect((await open(file)).format.backing).toBeUndefined();
    const unknown = await open(await damagedHeader({ compatFeatures: 2n }), { writable: true });
    await expect(unknown.format.changeBacking!('a', 'raw')).rejects.toThrow('Operation not supported');
  });
});

describe('check', () => {
  it('finds what is wrong, and takes invalid offsets out', async () => {
    const file = await create(9 << 20);
    const image = await open(file, { writable: true });
    await image.write(0, new Uint8Array(16 * CLUSTER).fill(1));
    await image.close();
    const bytes = Buffer.from(file.bytes());
    const l2 = Number(bytes.readBigUInt64LE(CLUSTER));
    bytes.writeBigUInt64LE(5n, l2);
    bytes.writeBigUInt64LE(0x20000000n, l2 + 8);
    bytes.copy(bytes, l2 + 16, l2 + 24, l2 + 32);
    bytes.writeBigUInt64LE(0x20000000n, CLUSTER + 8);
    const damaged = new MemoryStorage(bytes, { writable: true });
    const opened = await open(damaged, { writable: true, forCheck: true });
    const run = (errors: boolean) =>
      opened.format.checker!.check({ repair: { leaks: errors, errors }, report: () => {} });
    expect(await run(false)).toMatchObject({ corruptions: 4, leaks: 3, corruptionsFixed: 0 });
    expect(await run(true)).toMatchObject({ corruptions: 1, leaks: 3, corruptionsFixed: 3 });
    expect(await run(false)).toMatchObject({ corruptions: 1, leaks: 3, allocatedClusters: 14 });
  });
});
