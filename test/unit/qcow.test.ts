/** qcow version 1: layout, hand-made images, limits, damage. */
import { describe, expect, it } from 'vitest';
import { qcow } from '../../src/engine/formats/qcow/index.js';
import {
  geometry,
  isCompressed,
  packedAt,
  packedLength,
  QcowHeader,
  setPacked,
} from '../../src/engine/formats/qcow/layout.js';
import type { OpenContext } from '../../src/engine/node/driver.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { createInMemory, extentsOf, imageInMemory } from '../support/open-memory.js';

const CLUSTER = 4096;

const create = (
  size: number,
  options: OptionValues = {},
  backing?: { readonly filename: string; readonly format?: string },
) => createInMemory(qcow, 'a.qcow', size, options, backing);

const open = (file: MemoryStorage, how: Partial<OpenContext> = {}) => imageInMemory(qcow, file, how);

async function changedHeader(change: Partial<ReturnType<typeof QcowHeader.decode>>): Promise<MemoryStorage> {
  const file = await create(1 << 20);
  const bytes = new Uint8Array(file.bytes());
  QcowHeader.encodeInto({ ...QcowHeader.decode(bytes), ...change }, bytes);
  return new MemoryStorage(bytes, { writable: true, filename: 'a.qcow' });
}

describe('layout', () => {
  it.each([9, 12, 16])('packs offset and length of a compressed cluster of 2^%d bytes', (clusterBits) => {
    const g = geometry(clusterBits, 9, 1 << 30);
    const words = new Uint32Array(4);
    for (const [at, length] of [
      [560, 1],
      [0x12_3456_789a, 2 ** clusterBits - 1],
      [2 ** (63 - 16) - 7, 300],
    ] as const) {
      setPacked(words, 1, at, length, g);
      expect(isCompressed(words, 1)).toBe(true);
      expect([packedAt(words, 1, g), packedLength(words, 1, g)]).toEqual([at, length]);
    }
  });

  it('probes magic and version', () => {
    const head = QcowHeader.encode({ magic: 0x514649fb, version: 1 });
    expect(qcow.probe(head, '', 48)).toBe(100);
    expect(qcow.probe(QcowHeader.encode({ magic: 0x514649fb, version: 2 }), '', 48)).toBe(0);
  });
});

describe('create', () => {
  it('writes header, name and an empty L1 table', async () => {
    const file = await create(3 << 20, {}, { filename: 'r.raw', format: 'raw' });
    expect(QcowHeader.decode(file.bytes())).toMatchObject({
      version: 1,
      backingFileOffset: 48n,
      backingFileSize: 5,
      size: 3145728n,
      clusterBits: 9,
      l2Bits: 12,
      cryptMethod: 0,
      l1TableOffset: 56n,
    });
    expect(file.size).toBe(568);
    expect((await open(file)).format.backing).toEqual({ filename: 'r.raw' });
    expect((await create(1000)).size).toBe(560);
  });

  it.each([
    [{ encryption: true }, /Parameter 'encrypt.key-secret' is required for cipher/],
    [{ 'encrypt.format': 'aes' }, /Parameter 'encrypt.key-secret' is required for cipher/],
    [{ 'encrypt.format': 'luks' }, /Unsupported encryption format/],
    [{ 'encrypt.format': 'x' }, /Parameter 'format' does not accept value 'x'/],
    [{ 'encrypt.key-secret': 's' }, /Parameter 'encrypt.format' is missing/],
    [{ encryption: true, 'encrypt.format': 'aes' }, /can't be used at the same time/],
    [{ 'encrypt.format': 'aes', 'encrypt.key-secret': 's' }, /cannot be created so far/],
  ])('refuses %j', async (options, message) => {
    await expect(create(1 << 20, options as OptionValues)).rejects.toThrow(message);
  });

  it('refuses sizes that cannot be', async () => {
    await expect(create(0)).rejects.toThrow('Image size is too small, cannot be zero length');
    await expect(create(2 ** 52)).rejects.toMatchObject({ context: { errno: 'EFBIG' } });
  });
});

describe('open refuses', () => {
  it.each([
    [{ magic: 0 }, 'Image not in qcow format'],
    [{ version: 2 }, 'qcow (v1) does not support qcow version 2'],
    [{ size: 1n }, 'Image size is too small (must be at least 2 bytes)'],
    [{ clusterBits: 8 }, 'Cluster size must be between 512 and 64k'],
    [{ clusterBits: 17 }, 'Cluster size must be between 512 and 64k'],
    [{ l2Bits: 5 }, 'L2 table size must be between 512 and 64k'],
    [{ l2Bits: 14 }, 'L2 table size must be between 512 and 64k'],
    [{ cryptMethod: 2 }, 'invalid encryption method in qcow header'],
    [{ cryptMethod: 1 }, "Parameter 'encrypt.key-secret' is required for cipher"],
    [{ size: 2n ** 64n - 1n }, 'Image too large'],
    [{ size: 2n ** 49n }, 'Image too large'],
    [{ size: 0x1ffffffe00000n }, "Could not open 'a.qcow': Input/output error"],
    [{ l1TableOffset: 2n ** 64n - 256n }, "Could not open 'a.qcow': Input/output error"],
    [{ l1TableOffset: 2n ** 53n }, 'Image too large'],
    [{ backingFileOffset: 48n, backingFileSize: 1024 }, 'Backing file name too long'],
    [{ backingFileOffset: 2n ** 63n, backingFileSize: 5 }, "Could not open 'a.qcow': Input/output error"],
  ])('%o', async (change, message) => {
    await expect(open(await changedHeader(change))).rejects.toThrow(message);
  });

  it('encrypted images with a key, but describes them', async () => {
    const file = await changedHeader({ cryptMethod: 1 });
    const options = { 'encrypt.key-secret': 'sec0' };
    await expect(open(file, { options })).rejects.toThrow(/Encrypted qcow images/);
    const { format } = await open(file, { metadataOnly: true });
    expect(await format.info()).toMatchObject({ encrypted: true, clusterSize: CLUSTER });
  });
});

describe('guest data', () => {
  const data = new Uint8Array(3 * CLUSTER).map((_, at) => (at >>> 8) % 251);

  it('is mapped as it was written, plain and compressed', async () => {
    const file = await create(5 << 20);
    const image = await open(file, { writable: true });
    await image.write(CLUSTER + 100, data);
    const packed = await image.format.pack!.compress(data.subarray(0, CLUSTER));
    for (const at of [8, 9, 600]) await image.writePacked(at * CLUSTER, packed!);
    await image.write(9 * CLUSTER + 5, Uint8Array.of(77));
    await image.writePacked(2 * CLUSTER, packed!);
    await image.close();
    const again = await open(file);
    const kinds = (await extentsOf(again.format)).map(({ kind, length }) => `${kind} ${length / CLUSTER}`);
    expect(kinds).toEqual([
      'backing 1',
      'data 1',
      'packed 1',
      'data 2',
      'backing 3',
      'packed 1',
      'data 1',
      // An answer ends where a table is not in memory yet.
      'backing 502',
      'backing 88',
      'packed 1',
      'backing 679',
    ]);
    const expected = new Uint8Array(5 << 20);
    expected.set(data, CLUSTER + 100);
    for (const at of [2, 8, 9, 600]) expected.set(data.subarray(0, CLUSTER), at * CLUSTER);
    expected[9 * CLUSTER + 5] = 77;
    const found = new Uint8Array(5 << 20);
    await again.read(0, found);
    expect(Buffer.compare(found, expected)).toBe(0);
    const part = new Uint8Array(700);
    await again.read(8 * CLUSTER + 100, part);
    expect(Buffer.compare(part, data.subarray(100, 800))).toBe(0);
  });

  it('may follow the L1 table at once', async () => {
    // Three L1 entries behind the header, then an L2 table of 512 bytes, then two clusters.
    const file = new MemoryStorage(4096, { filename: 'a.qcow' });
    const span = 512 * 64;
    const bytes = Buffer.alloc(4096);
    bytes.set(
      QcowHeader.encode({
        magic: 0x514649fb,
        version: 1,
        size: BigInt(3 * span),
        clusterBits: 9,
        l2Bits: 6,
        l1TableOffset: 56n,
      }),
    );
    bytes.writeBigUInt64BE(80n, 56);
    bytes.writeBigUInt64BE(1024n, 80);
    bytes.fill(0x33, 1024, 1536);
    await file.write(0, bytes);
    const image = await open(file, { writable: true });
    await image.write(span, Uint8Array.of(5));
    await image.write(512, Uint8Array.of(6));
    await image.close();
    const again = await open(file);
    const found = new Uint8Array(3 * span);
    await again.read(0, found);
    expect([found[0], found[511], found[512], found[513], found[span]]).toEqual([0x33, 0x33, 6, 0, 5]);
  });

  it('of damaged tables is not given out', async () => {
    const file = await create(1 << 20);
    const image = await open(file, { writable: true });
    await image.write(0, data);
    const packed = await image.format.pack!.compress(data.subarray(0, CLUSTER));
    await image.writePacked(5 * CLUSTER, packed!);
    await image.close();
    const bytes = Buffer.from(file.bytes());
    const l2 = Number(bytes.readBigUInt64BE(48));
    for (const [at, value, guest] of [
      [l2, 5n, 0],
      [l2, 2n ** 62n, 0],
      [48, 2n ** 63n, 0],
      [l2 + 40, bytes.readBigUInt64BE(l2 + 40) + 1n, 5 * CLUSTER],
      [l2 + 40, 2n ** 63n, 5 * CLUSTER],
      [l2 + 40, 2n ** 64n - 1n, 5 * CLUSTER],
    ] as const) {
      const copy = Buffer.from(bytes);
      copy.writeBigUInt64BE(value, at);
      const reading = await open(new MemoryStorage(copy, { writable: true }));
      await expect(reading.read(guest, new Uint8Array(512))).rejects.toThrow('Input/output error');
    }
  });

  it('is all gone from an image that was emptied', async () => {
    const file = await create(5 << 20, {}, { filename: 'base', format: 'raw' });
    const image = await open(file, { writable: true });
    await image.write(0, data);
    await image.write(4 << 20, data);
    await image.format.makeEmpty!();
    expect(file.size).toBe(56 + 3 * 8);
    await image.write(512, Uint8Array.of(3));
    await image.close();
    const again = await open(file);
    expect(again.format.backing).toEqual({ filename: 'base' });
    const kinds = (await extentsOf(again.format)).map(({ kind, length }) => [kind, length]);
    expect(kinds).toEqual([
      ['backing', 512],
      ['data', 512],
      ['backing', (5 << 20) - 1024],
    ]);
  });

  it('counts sizes down to sectors', async () => {
    expect((await open(await changedHeader({ size: 1000n }))).size).toBe(512);
    expect((await open(await changedHeader({ size: 2n }))).size).toBe(0);
  });
});
