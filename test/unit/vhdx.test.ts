import { describe, expect, test } from 'vitest';
import type { ImageError } from '../../src/engine/error.js';
import { Headers } from '../../src/engine/formats/vhdx/header.js';
import { vhdx } from '../../src/engine/formats/vhdx/index.js';
import {
  batEntries,
  chunkRatio,
  entryOfBlock,
  Header,
  Item,
  LOG_SECTOR,
  MetadataTableEntry,
  MIB,
  RegionTableEntry,
} from '../../src/engine/formats/vhdx/layout.js';
import { descriptorSectors, encodeEntry, LogReader } from '../../src/engine/formats/vhdx/log.js';
import { parentName } from '../../src/engine/formats/vhdx/metadata.js';
import { MAX_CHANGES } from '../../src/engine/formats/vhdx/write.js';
import type { MemoryStorage } from '../../src/engine/storage/memory.js';
import type { Storage } from '../../src/engine/storage/storage.js';
import { contentOf } from '../support/open-memory.js';
import {
  BAT_AT,
  bytesOf,
  DATA_AT,
  ITEMS_AT,
  LOG_AT,
  METADATA_AT,
  make,
  open,
  patchHeaders,
  patchRegions,
  u16,
  u32,
  u64,
  zeroEntry,
} from './vhdx-images.js';

const GIB = 1024 * MIB;
const TIB = 1024 * GIB;
const guid = Uint8Array.from({ length: 16 }, (_, at) => at + 1);

async function failure(work: Promise<unknown>): Promise<ImageError & { lines?: string[] }> {
  return work.then(
    () => {
      throw new Error('it worked');
    },
    (error) => error as ImageError,
  );
}

const EINVAL = "Could not open 'x.vhdx': Invalid argument";
const ENOTSUP = "Could not open 'x.vhdx': Operation not supported";

test('sizes of what is declared', () => {
  expect(Header.size).toBe(80);
  expect(RegionTableEntry.size).toBe(32);
  expect(MetadataTableEntry.size).toBe(32);
  // 12345678-... stored with its first three groups turned round
  expect(Buffer.from(Item.fileParameters).toString('hex')).toBe('3767a1ca36fa434db3b633f0aa44e76b');
  // the largest entry fits in half of the smallest log
  expect((descriptorSectors(MAX_CHANGES) + MAX_CHANGES) * LOG_SECTOR).toBeLessThanOrEqual(MIB / 2);
});

test('entries of the BAT', () => {
  expect(chunkRatio(8 * MIB)).toBe(512);
  expect(batEntries(100 * MIB, 8 * MIB)).toBe(13);
  expect(batEntries(512 * 8 * MIB, 8 * MIB)).toBe(512);
  expect(batEntries(512 * 8 * MIB + 512, 8 * MIB)).toBe(514);
  expect(batEntries(64 * TIB, MIB)).toBe(64 * MIB + (64 * MIB) / 4096 - 1);
  expect(entryOfBlock(511, 512)).toBe(511);
  expect(entryOfBlock(512, 512)).toBe(513);
});

test('probe', () => {
  const head = Buffer.alloc(2048);
  head.write('vhdxfile');
  expect(vhdx.probe(head, 'x', 8 * MIB)).toBe(100);
  expect(vhdx.probe(head, 'x', 7)).toBe(0);
  head.write('VHDXfile');
  expect(vhdx.probe(head, 'x', 8 * MIB)).toBe(0);
});

describe('create', () => {
  test.each([
    [{}, GIB, 8 * MIB],
    [{}, GIB + 512, 16 * MIB],
    [{}, 100 * GIB, 16 * MIB],
    [{}, 100 * GIB + 512, 32 * MIB],
    [{}, 32 * TIB, 32 * MIB],
    [{ block_state_zero: false }, 32 * TIB + 512, 64 * MIB],
    [{ block_size: 1 }, MIB, MIB],
    [{ block_size: MIB + 1 }, MIB, 2 * MIB],
    [{ block_size: 300 * MIB }, MIB, 256 * MIB],
  ])('%j of %i bytes has blocks of %i', async (options, size, blockSize) => {
    const file = await make(size, { block_size: 0, ...options });
    const { node } = await open(file);
    expect(node.size).toBe(size);
    expect(await node.info()).toEqual({ clusterSize: blockSize, dirty: false });
  });

  test.each([
    [{ subformat: 'thick' }, MIB, "Parameter 'subformat' does not accept value 'thick'"],
    [{}, 64 * TIB + 1, 'Image size too large; max of 64TB'],
    [{ log_size: 0 }, MIB, 'Log size must be a multiple of 1 MB'],
    [{ log_size: 4 * GIB - 1 }, MIB, 'Log size must be smaller than 4 GB'],
    [{ block_size: 3 * MIB }, MIB, 'Block size must be a power of two'],
    [{ block_size: 3 * MIB, log_size: 0 }, MIB, 'Log size must be a multiple of 1 MB'],
  ])('%j of %i bytes: %s', async (options, size, message) => {
    expect((await failure(make(size, options))).message).toBe(message);
  });

  test('lengths', async () => {
    expect((await make(100 * MIB)).size).toBe(8 * MIB);
    expect((await make(100 * MIB, { log_size: MIB + 1 })).size).toBe(9 * MIB);
    expect((await make(100 * MIB, { subformat: 'fixed' })).size).toBe(108 * MIB);
    expect((await make(1000, { subformat: 'fixed' })).size).toBe(8 * MIB + 1024);
    // Whoever opens it reckons with 2^32 - 1 blocks.
    expect((await make(0, { block_size: 8 * MIB })).size).toBe(71 * MIB);
  });

  test('block states', async () => {
    const states = async (options: Record<string, boolean | string>) =>
      (await bytesOf(await make(2 * MIB, options), BAT_AT, 24)).toString('hex');
    const [zero, none] = ['0200000000000000', '0000000000000000'];
    expect(await states({})).toBe(zero + zero + none);
    expect(await states({ block_state_zero: false })).toBe(none + none + none);
    expect(await states({ subformat: 'fixed' })).toBe(`06008000000000000600900000000000${none}`);
  });

  test('both headers and both region tables count', async () => {
    for (const [at, length] of [
      [64 * 1024, 4096],
      [128 * 1024, 4096],
      [256 * 1024, 65536],
    ] as const) {
      const file = await make(MIB);
      await file.zero({ at, length });
      expect((await open(file)).node.size).toBe(MIB);
    }
  });
});

describe('reading', () => {
  test('every state of a block', async () => {
    const file = await make(8 * MIB);
    await file.truncate(DATA_AT + MIB);
    await file.write(DATA_AT, new Uint8Array(MIB).fill(7));
    for (let state = 0; state < 8; state++) await file.write(BAT_AT + state * 8, u64(DATA_AT + state));
    const { image } = await open(file);
    const read = async (block: number) => {
      const bytes = Buffer.alloc(512);
      await image.read(block * MIB + 512, bytes);
      return bytes[0];
    };
    for (const state of [0, 1, 2, 3, 5]) expect(await read(state)).toBe(0);
    expect(await read(6)).toBe(7);
    for (const state of [4, 7]) expect((await failure(read(state))).message).toBe('Input/output error');
  });

  test('behind the entry of a sector bitmap', async () => {
    const size = 4098 * MIB;
    const file = await make(size);
    await file.truncate(DATA_AT + 2 * MIB);
    await file.write(DATA_AT, Buffer.alloc(2 * MIB, 9));
    await file.write(BAT_AT + 4095 * 8, u64(DATA_AT + 6));
    // A bitmap's entry means nothing here, whatever is in it.
    await file.write(BAT_AT + 4096 * 8, u64(2 ** 50 + 6));
    await file.write(BAT_AT + 4097 * 8, u64(DATA_AT + MIB + 6));
    const { node } = await open(file);
    expect(await node.map({ at: 4094 * MIB, length: 4 * MIB })).toMatchObject({ kind: 'zero', length: MIB });
    const run = await node.map({ at: 4095 * MIB, length: 3 * MIB });
    expect(run).toMatchObject({ kind: 'data', at: DATA_AT, length: 2 * MIB });
    expect(await node.map({ at: 4097 * MIB, length: MIB })).toMatchObject({ kind: 'zero', length: MIB });
  });

  test('a table larger than what is kept of it', async () => {
    const file = await make(16 * TIB, { block_state_zero: false });
    const last = entryOfBlock(16 * MIB - 1, 4096);
    await file.truncate(200 * MIB);
    await file.write(BAT_AT + last * 8, u64(199 * MIB + 6));
    const { node } = await open(file);
    let runs = 0;
    for (let at = 0; at < node.size; runs++) at += (await node.map({ at, length: node.size - at })).length;
    expect(runs).toBeLessThan(3000);
    expect(await node.locate!({ at: 16 * TIB - 512, length: 512 })).toMatchObject({ at: 200 * MIB - 512 });
  });
});

describe('writing', () => {
  const pattern = (length: number, salt: number) =>
    Buffer.from(Uint8Array.from({ length }, (_, at) => (at * 7 + salt + (at >> 9)) & 0xff));

  test.each([{}, { subformat: 'fixed' }, { block_state_zero: false }, { block_size: 2 * MIB }])(
    '%j: what is written is read, by another open too',
    async (options) => {
      const size = 5 * MIB + 512;
      const file = await make(size, options);
      const guest = Buffer.alloc(size);
      const { image } = await open(file, { writable: true });
      const write = async (at: number, bytes: Buffer) => {
        bytes.copy(guest, at);
        await image.write(at, bytes);
      };
      await write(MIB - 700, pattern(1400, 1));
      await Promise.all([
        write(3 * MIB, pattern(512, 2)),
        write(3 * MIB + 4096, pattern(5000, 3)),
        write(2 * MIB + 600_000, pattern(500_000, 4)),
        write(size - 512, pattern(512, 5)),
      ]);
      await write(0, pattern(100, 6));
      expect((await contentOf(image.format)).equals(guest)).toBe(true);
      await image.flush();
      expect((await contentOf((await open(file)).node)).equals(guest)).toBe(true);
      await write(MIB, pattern(4 * MIB, 7));
      guest.fill(0, 2 * MIB - 512, 4 * MIB + 1024);
      await image.zero({ at: 2 * MIB - 512, length: 2 * MIB + 1536 }, { unmap: true });
      await image.format.close();
      const again = await open(file);
      expect((await contentOf(again.node)).equals(guest)).toBe(true);
      const report = (line: string) => expect(line).toBe('');
      const found = await again.node.checker!.check({ repair: { leaks: false, errors: false }, report });
      expect(found.corruptions).toBe(0);
    },
  );

  test('new GUIDs and an empty log', async () => {
    const file = await make(MIB);
    const before = (await Headers.read(file)).fields;
    const { image } = await open(file, { writable: true });
    await image.write(0, pattern(512, 1));
    await image.format.close();
    const { fields } = await Headers.read(file);
    expect(fields.fileWriteGuid).not.toEqual(before.fileWriteGuid);
    expect(fields.dataWriteGuid).not.toEqual(before.dataWriteGuid);
    expect(fields.logGuid).toEqual(new Uint8Array(16));
  });

  test('nothing is changed where nothing is written', async () => {
    const file = await make(MIB);
    const before = await bytesOf(file, 0, file.size);
    const { image } = await open(file, { writable: true });
    await image.flush();
    await image.format.close();
    expect((await bytesOf(file, 0, file.size)).equals(before)).toBe(true);
  });

  test('many blocks cost few flushes', async () => {
    const file = await make(2048 * MIB);
    let flushes = 0;
    const counting = new Proxy(file, {
      get(target, key) {
        if (key === 'flush') flushes++;
        const value = Reflect.get(target, key, target) as unknown;
        return typeof value === 'function' ? value.bind(target) : value;
      },
    });
    const { image } = await open(counting, { writable: true });
    for (let block = 0; block < 2048; block++) await image.write(block * MIB, pattern(512, block));
    await image.format.close();
    expect(flushes).toBeLessThan(8);
    expect(file.size).toBe(DATA_AT + 2048 * MIB);
    const { node } = await open(file);
    expect(await node.locate!({ at: 0, length: 2048 * MIB })).toMatchObject({
      kind: 'data',
      length: 2048 * MIB,
    });
  });

  test('more changed sectors than one entry has', async () => {
    // A block in every second sector of the table.
    const sectors = MAX_CHANGES * 2 + 10;
    const file = await make(sectors * 512 * MIB, { block_state_zero: false });
    const { image } = await open(file, { writable: true });
    for (let n = 0; n < sectors; n++) await image.write(n * 512 * MIB, pattern(512, n));
    await image.format.close();
    const { node } = await open(file);
    const found = await contentOf(node, 512, { at: (sectors - 1) * 512 * MIB, length: 512 });
    expect(found).toEqual(pattern(512, sectors - 1));
    expect(await contentOf(node, 512, { at: 0, length: 512 })).toEqual(pattern(512, 0));
  });

  test('a file that cannot grow leaves the image as it was', async () => {
    const file = await make(4 * MIB);
    let full = false;
    const limited = new Proxy(file, {
      get(target, key) {
        if (key === 'truncate' && full) return () => Promise.reject(new Error('full'));
        const value = Reflect.get(target, key, target) as unknown;
        return typeof value === 'function' ? value.bind(target) : value;
      },
    });
    const { image } = await open(limited, { writable: true });
    await image.write(0, pattern(512, 1));
    full = true;
    expect((await failure(image.write(MIB, pattern(512, 2)))).message).toBe('full');
    full = false;
    await image.write(MIB, pattern(512, 3));
    await image.format.close();
    const { node } = await open(file);
    expect(await contentOf(node, 512, { at: MIB, length: 512 })).toEqual(pattern(512, 3));
  });

  test.each([
    ['shorter than 1 MiB', 'logLength', u32(512 * 1024)],
    ['past the end of the file', 'logOffset', u64(100 * MIB)],
  ] as const)('no writing with a log that is %s', async (_, field, value) => {
    const file = await make(4 * MIB);
    await patchHeaders(file, field, value);
    const { image } = await open(file, { writable: true });
    expect((await failure(image.write(0, pattern(512, 1)))).message).toBe('Invalid argument');
    await image.format.close();
  });

  test('never over the headers, nor where the state makes no sense', async () => {
    const file = await make(4 * MIB);
    await file.write(BAT_AT, u64(6));
    await file.write(BAT_AT + 8, u64(DATA_AT + 7));
    const { image } = await open(file, { writable: true });
    for (const at of [0, MIB]) {
      expect((await failure(image.write(at, pattern(512, 1)))).message).toBe('Input/output error');
    }
    await image.format.close();
  });
});

describe('the log', () => {
  const sector = (value: number) => new Uint8Array(LOG_SECTOR).fill(value);
  const two = sector(2);

  async function dirty(...entries: (readonly [at: number, bytes: Uint8Array])[]): Promise<MemoryStorage> {
    const file = await make(4 * MIB);
    await file.truncate(DATA_AT + MIB);
    for (const [at, bytes] of entries) {
      const fits = Math.min(bytes.length, MIB - at);
      await file.write(LOG_AT + at, bytes.subarray(0, fits));
      if (fits < bytes.length) await file.write(LOG_AT, bytes.subarray(fits));
    }
    await patchHeaders(file, 'logGuid', guid);
    return file;
  }
  const size = DATA_AT + MIB;
  const entry = (at: number, sequence: bigint, changes: { at: number; data: Uint8Array }[], tail = at) => {
    const bytes = encodeEntry({ at: tail, sequence, logGuid: guid, fileSize: size }, changes);
    return [at, bytes] as const;
  };
  const active = async (file: Storage) =>
    (await new LogReader(file, { at: LOG_AT, length: MIB }, guid).active()).map(({ at }) => at);

  test('refused read-only, with a way out', async () => {
    const file = await dirty(entry(0, 1n, [{ at: BAT_AT, data: two }]));
    const error = await failure(open(file));
    expect(error.message).toBe(
      "VHDX image file 'x.vhdx' opened read-only, but contains a log that needs to be replayed",
    );
    expect(error.context.hint).toBe("To replay the log, run:\nqemu-img check -r all 'x.vhdx'");
  });

  test('replayed when opened for writing, once', async () => {
    const bat = new Uint8Array(LOG_SECTOR);
    bat.set(u64(DATA_AT + 6));
    bat.set([1, 2, 3, 4], LOG_SECTOR - 4);
    const file = await dirty(entry(8192, 5n, [{ at: BAT_AT, data: bat }]));
    const { node } = await open(file, { writable: true, forCheck: true });
    const context = { repair: { leaks: true, errors: true }, report: () => {} };
    expect((await node.checker!.check(context)).corruptionsFixed).toBe(1);
    expect((await node.checker!.check(context)).corruptionsFixed).toBe(0);
    await node.close();
    expect(await bytesOf(file, BAT_AT, LOG_SECTOR)).toEqual(Buffer.from(bat));
    const again = await open(file);
    expect(await again.node.locate!({ at: 0, length: 512 })).toMatchObject({ kind: 'data', at: DATA_AT });
  });

  test('a sequence over the end of the ring', async () => {
    const file = await dirty(
      entry(MIB - 12288, 7n, [{ at: BAT_AT, data: sector(1) }]),
      entry(MIB - 4096, 8n, [{ at: BAT_AT, data: two }], MIB - 12288),
      [
        4096,
        zeroEntry({
          sequence: 9n,
          tail: MIB - 12288,
          logGuid: guid,
          fileSize: size,
          at: BigInt(BAT_AT + 8192),
          length: 4096n,
        }),
      ],
    );
    await file.write(BAT_AT + 8192, sector(9));
    expect(await active(file)).toEqual([MIB - 12288, MIB - 4096, 4096]);
    await open(file, { writable: true });
    expect(await bytesOf(file, BAT_AT, 4096)).toEqual(Buffer.from(two));
    expect(await bytesOf(file, BAT_AT + 8192, 4096)).toEqual(Buffer.alloc(4096));
  });

  test('of several sequences the last one counts, from its tail on', async () => {
    const one = [{ at: BAT_AT, data: two }];
    const file = await dirty(
      entry(0, 1n, one),
      entry(8192, 2n, one, 8192),
      entry(16384, 3n, one, 8192),
      entry(65536, 30n, one),
      entry(131072, 20n, one),
      // A tail outside its own sequence: not active.
      entry(262144, 99n, one, 0),
    );
    expect(await active(file)).toEqual([65536]);
    expect(
      await active(await dirty(entry(0, 1n, one), entry(8192, 2n, one, 8192), entry(16384, 3n, one, 8192))),
    ).toEqual([8192, 16384]);
  });

  test('an entry that is not whole ends its sequence', async () => {
    const one = [{ at: BAT_AT, data: two }];
    for (const torn of [8192 + 4, 8192 + 70, 8192 + 100, 12288 + 1, 12288 + 50, 16380]) {
      const file = await dirty(entry(0, 1n, one), entry(8192, 2n, one, 0));
      const byte = await bytesOf(file, LOG_AT + torn, 1);
      await file.write(LOG_AT + torn, Uint8Array.of(byte[0]! ^ 0xff));
      expect(await active(file)).toEqual([0]);
    }
  });

  test('no entries with the GUID: nothing to do', async () => {
    const file = await dirty();
    expect((await open(file)).node.size).toBe(4 * MIB);
    const { image } = await open(file, { writable: true });
    await image.write(0, Buffer.alloc(512, 3));
    await image.format.close();
    expect((await open(file)).node.size).toBe(4 * MIB);
  });

  test.each([
    ['the headers', 65536n, 4096n, size],
    ['the log itself', BigInt(LOG_AT), 4096n, size],
    ['past the end', BigInt(size), 4096n, size],
    ['anything', 1n << 63n, 1n << 63n, size],
    ['a file that lost its end', BigInt(BAT_AT), 4096n, size + 1],
  ])('entries that would change %s are refused, and change nothing', async (_, at, length, fileSize) => {
    const file = await dirty([0, zeroEntry({ sequence: 1n, tail: 0, logGuid: guid, fileSize, at, length })]);
    const before = await bytesOf(file, 0, file.size);
    expect((await failure(open(file, { writable: true }))).message).toBe(EINVAL);
    expect((await bytesOf(file, 0, file.size)).equals(before)).toBe(true);
  });

  test('a file is made as long as the log says, within reason', async () => {
    const log = {
      sequence: 1n,
      tail: 0,
      logGuid: guid,
      fileSize: size,
      at: BigInt(BAT_AT + 65536),
      length: 4096n,
    };
    const file = await dirty([0, zeroEntry({ ...log, lastFileOffset: size + 1 })]);
    await open(file, { writable: true });
    expect(file.size).toBe(size + MIB);
    const absurd = await dirty([0, zeroEntry({ ...log, lastFileOffset: 2 ** 52 })]);
    expect((await failure(open(absurd, { writable: true }))).message).toBe(EINVAL);
  });

  test('a log that was made to waste time is given up', async () => {
    const file = await make(4 * MIB);
    // Every sector claims to be the start of an entry of the whole ring: only the checksum is wrong.
    const liar = zeroEntry({ sequence: 1n, tail: 0, logGuid: guid, fileSize: size, at: 0n, length: 0n });
    new DataView(liar.buffer).setUint32(8, MIB, true);
    for (let at = 0; at < MIB; at += LOG_SECTOR) await file.write(LOG_AT + at, liar);
    await patchHeaders(file, 'logGuid', guid);
    const began = performance.now();
    await open(file);
    expect(performance.now() - began).toBeLessThan(1000);
  });
});

describe('damaged images', () => {
  type Damage = (file: MemoryStorage) => Promise<void>;
  const put =
    (at: number, bytes: Uint8Array): Damage =>
    (file) =>
      file.write(at, bytes);
  const all =
    (...damages: Damage[]): Damage =>
    async (file) => {
      for (const damage of damages) await damage(file);
    };
  const headers =
    (field: Parameters<typeof patchHeaders>[1], bytes: Uint8Array): Damage =>
    (file) =>
      patchHeaders(file, field, bytes);
  const regions =
    (from: number, bytes: Uint8Array): Damage =>
    (file) =>
      patchRegions(file, from, bytes);
  const strange = Buffer.from('abcdefghijklmnop');
  const region = (at: number, length: number, required: number) =>
    all(regions(8, u32(3)), regions(16 + 64, Buffer.concat([strange, u64(at), u32(length), u32(required)])));
  const item = (id: Uint8Array, flags: number) =>
    all(
      put(METADATA_AT + 10, u16(6)),
      put(METADATA_AT + 32 * 6, Buffer.concat([id, u32(65536), u32(0), u32(flags), u32(0)])),
    );

  const cases: readonly (readonly [string, Damage, string])[] = [
    ['signature', put(0, Buffer.from('VHDX')), EINVAL],
    ['both headers', all(put(65536 + 4, u32(0)), put(131072 + 4, u32(0))), 'No valid VHDX header found'],
    ['header version', headers('version', u16(2)), 'No valid VHDX header found'],
    [
      'headers of one sequence number',
      all(headers('sequenceNumber', u64(5)), (file) => patchHeaders(file, 'dataWriteGuid', guid, [0])),
      'No valid VHDX header found',
    ],
    ['log version', headers('logVersion', u16(1)), EINVAL],
    ['log offset 0', headers('logOffset', u64(0)), EINVAL],
    ['log offset unaligned', headers('logOffset', u64(MIB + 4096)), EINVAL],
    ['region signature', regions(0, u32(0)), EINVAL],
    ['region checksum', put(192 * 1024 + 40000, u32(1)), EINVAL],
    ['2048 regions', regions(8, u32(2048)), EINVAL],
    ['no BAT', regions(16, Buffer.concat([strange, u64(2 * MIB), u32(MIB), u32(0)])), EINVAL],
    ['unknown region, required', region(20 * MIB, MIB, 1), ENOTSUP],
    ['BAT too short', regions(40, u32(8)), EINVAL],
    ['metadata nowhere', regions(64, u64(1n << 63n)), EINVAL],
    ['metadata signature', put(METADATA_AT, u32(0)), EINVAL],
    ['2048 items', put(METADATA_AT + 10, u16(2048)), EINVAL],
    ['4 items', put(METADATA_AT + 10, u16(4)), ENOTSUP],
    ['an item twice', item(Item.fileParameters, 4), EINVAL],
    ['unknown item, required', item(strange, 4), ENOTSUP],
    ['item in the table', put(METADATA_AT + 32 + 16, u32(100)), EINVAL],
    ['a parent', item(Item.parentLocator, 4), ENOTSUP],
    ['a parent without locator', put(ITEMS_AT + 4, u32(2)), EINVAL],
    ['block size 0', put(ITEMS_AT, u32(0)), EINVAL],
    ['block size 3 MiB', put(ITEMS_AT, u32(3 * MIB)), EINVAL],
    ['block size 512 MiB', put(ITEMS_AT, u32(512 * MIB)), EINVAL],
    ['disk size', put(ITEMS_AT + 8, u64(64 * TIB + 512)), EINVAL],
    ['disk size 2^64 - 1', put(ITEMS_AT + 8, u64(2n ** 64n - 1n)), EINVAL],
    ['sectors of 4096', put(ITEMS_AT + 32, u32(4096)), ENOTSUP],
  ];
  test.each(cases)('%s', async (_, damage, message) => {
    const file = await make(4 * MIB);
    await damage(file);
    for (const writable of [false, true]) {
      expect((await failure(open(file, { writable }))).message).toBe(message);
    }
  });

  test.each<readonly [string, Damage]>([
    ['unknown region', region(20 * MIB, MIB, 0)],
    ['unknown item', item(strange, 0)],
    ['no log', headers('logLength', u32(0))],
    ['log past the end', headers('logOffset', u64(2 ** 40))],
    ['BAT past the end', regions(32, u64(2 ** 40))],
    ['more regions, all zeros', regions(8, u32(2047))],
  ])('%s: opens', async (_, damage) => {
    const file = await make(4 * MIB);
    await damage(file);
    const { node } = await open(file);
    expect((await contentOf(node)).every((byte) => byte === 0)).toBe(true);
  });

  test('regions that overlap are told', async () => {
    const file = await make(4 * MIB);
    await region(3 * MIB, MIB, 0)(file);
    const error = await failure(open(file));
    expect(error.message).toBe(EINVAL);
    expect(error.lines).toEqual([
      'qemu-img: VHDX region 3145728-4194304 overlaps with region 3145728-4194304',
    ]);
  });

  const past = 'points after end of file (8388608). Image has probably been truncated.';
  test.each([
    ['past the end', u64(2 ** 40 + 6), [`VHDX BAT entry 0 start offset 1099511627776 ${past}`]],
    [
      'at 2^64',
      u64(0xfffffffffff00006n),
      ['VHDX BAT entry 0 offset overflow.', `VHDX BAT entry 0 start offset 18446744073708503040 ${past}`],
    ],
    ['on the log', u64(MIB + 6), ['VHDX region 1048576-2097152 overlaps with region 1048576-2097152']],
  ])('a block %s', async (_, bytes, lines) => {
    const file = await make(4 * MIB);
    await file.write(BAT_AT, bytes);
    const error = await failure(open(file));
    expect(error.message).toBe(EINVAL);
    expect(error.lines).toEqual([`qemu-img: ${lines[0]}`]);
    const { node } = await open(file, { forCheck: true });
    const said: string[] = [];
    const repair = { leaks: false, errors: false };
    const result = await node.checker!.check({ repair, report: (line) => said.push(line) });
    expect(said).toEqual(lines.map((line) => `qemu-img: ${line}`));
    expect(result.corruptions).toBe(lines.length);
  });

  test('the parent is named', () => {
    const key = Buffer.from('relative_path', 'utf16le');
    const value = Buffer.from('.\\päre\u001bnt.vhdx', 'utf16le');
    const head = Buffer.concat([Item.parentLocator, u16(0), u16(1)]);
    const at = head.length + 12;
    const entry = [u32(at), u32(at + key.length), u16(key.length), u16(value.length)];
    const locator = Buffer.concat([head, ...entry, key, value]);
    expect(parentName(locator)).toBe('.\\päre?nt.vhdx');
    expect(parentName(locator.subarray(0, locator.length - 1))).toBeUndefined();
    expect(parentName(locator.subarray(0, 20))).toBeUndefined();
    expect(parentName(new Uint8Array(3))).toBeUndefined();
  });
});
