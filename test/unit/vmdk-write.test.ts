/** VMDK, writing: what is written reads back, through every kind of extent, and the files are as the specification has them. */
import { inflateSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { vmdk } from '../../src/engine/formats/vmdk/index.js';
import { GD_AT_END, HostedHeader, Marker } from '../../src/engine/formats/vmdk/layout.js';
import type { FormatNode } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { cowd, descriptor, grainsOf, hosted, stamp } from './vmdk-images.js';

const SECTOR = 512;
const GRAIN = 64 * 1024;

type Files = Map<string, MemoryStorage>;

/** Closing must not lose what a test still looks at. */
function kept(storage: MemoryStorage): MemoryStorage {
  storage.close = async () => {};
  return storage;
}

function storageOf(name: string, content: Uint8Array = new Uint8Array(0)): MemoryStorage {
  return kept(new MemoryStorage(content, { filename: name, writable: true }));
}

async function create(size: number, options: OptionValues = {}): Promise<Files> {
  const files: Files = new Map([['x.vmdk', storageOf('x.vmdk')]]);
  const extra = async (name: string) => {
    files.set(name, storageOf(name));
    return files.get(name)!;
  };
  await vmdk.create!({
    file: files.get('x.vmdk')!,
    filename: '/folder/x.vmdk',
    size,
    options,
    createExtra: extra,
    openExtra: extra,
  });
  return files;
}

async function open(files: Files, writable: boolean, backing?: Uint8Array): Promise<ImageNode> {
  const file = files.get('x.vmdk')!;
  const format = await vmdk.open({
    file,
    writable,
    options: {},
    forCheck: false,
    metadataOnly: false,
    openChild: async (_child, recorded) => files.get(recorded!),
    warn: () => {},
  });
  return new ImageNode({
    filename: 'x.vmdk',
    path: undefined,
    driver: vmdk,
    format,
    file,
    backing: backing === undefined ? undefined : rawNode(backing),
    writable,
  });
}

function rawNode(bytes: Uint8Array): ImageNode {
  const storage = storageOf('backing', bytes);
  const format: FormatNode = {
    size: bytes.length,
    unit: 1,
    children: new Map(),
    startsAsZero: false,
    map: ({ at, length }) => ({ kind: 'data', length, storage, at }),
    close: async () => {},
    info: () => ({}),
  };
  const driver = { ...vmdk, name: 'raw' };
  const parts = { filename: 'backing', path: undefined, driver, format, file: storage };
  return new ImageNode({ ...parts, backing: undefined, writable: false });
}

async function contentOf(image: ImageNode): Promise<Buffer> {
  const out = Buffer.alloc(image.size);
  await image.read(0, out);
  return out;
}

function bytesOf(storage: MemoryStorage): Promise<Buffer> {
  const out = Buffer.alloc(storage.size);
  return storage.read(0, out).then(() => out);
}

async function checked(files: Files): Promise<{ corruptions: number; lines: string[] }> {
  const image = await open(files, false);
  const lines: string[] = [];
  const result = await image.format.checker!.check({
    repair: { leaks: false, errors: false },
    report: (line) => lines.push(line),
  });
  return { corruptions: result.corruptions, lines };
}

/** The two directories of a hosted extent name tables of the same content. */
function expectTwins(file: Buffer): void {
  const header = HostedHeader.decode(file);
  const count = Math.ceil(Number(header.capacity) / (512 * 128));
  for (let index = 0; index < count; index++) {
    const [one, other] = [header.gdOffset, header.rgdOffset].map((directory) => {
      const table = file.readUInt32LE(Number(directory) * SECTOR + index * 4) * SECTOR;
      return file.subarray(table, table + 2048);
    });
    expect(one!.equals(other!)).toBe(true);
  }
}

describe('VMDK, written', () => {
  const kinds: readonly OptionValues[] = [
    {},
    { zeroed_grain: true },
    { subformat: 'monolithicFlat' },
    { subformat: 'twoGbMaxExtentSparse' },
    { subformat: 'twoGbMaxExtentFlat' },
  ];
  for (const options of kinds) {
    for (const backed of options.subformat === undefined ? [false, true] : [false]) {
      it(`reads back ${JSON.stringify(options)}${backed ? ' over a backing file' : ''}`, async () => {
        const size = 40 * GRAIN + 3 * SECTOR;
        const below = backed ? stamp(30 * GRAIN + 100, 7) : undefined;
        const files = await create(size, options);
        const model = Buffer.alloc(size);
        below?.copy(model);
        let seed = 5;
        const next = (most: number) => {
          seed = (seed * 1103515245 + 12345) % 2 ** 31;
          return seed % most;
        };
        for (let round = 0; round < 3; round++) {
          const image = await open(files, true, below);
          const cid = image.format.contentId;
          const work: Promise<void>[] = [];
          for (let n = 0; n < 12; n++) {
            // Apart from each other, so that their order does not matter.
            const at = n * 3 * GRAIN + next(2 * GRAIN);
            const length = Math.min(1 + next(GRAIN), size - at);
            if (n % 4 === 3) {
              work.push(image.zero({ at, length }));
              model.fill(0, at, at + length);
            } else {
              const data = stamp(length, 100 * round + n + 1);
              work.push(image.write(at, data));
              data.copy(model, at);
            }
          }
          await Promise.all(work);
          expect((await contentOf(image)).equals(model)).toBe(true);
          expect(image.format.contentId).not.toBe(cid);
          await image.format.close();
        }
        const image = await open(files, false, below);
        expect((await contentOf(image)).equals(model)).toBe(true);
        expect(await checked(files)).toEqual({ corruptions: 0, lines: [] });
        for (const [name, storage] of files) {
          const raw = await bytesOf(storage);
          if (raw.toString('latin1', 0, 4) === 'KDMV') expectTwins(raw);
          else expect(name).toMatch(/x.vmdk|flat|f001/);
        }
      });
    }
  }

  it('keeps zeros over a backing file by table entries', async () => {
    const files = await create(4 * GRAIN, { zeroed_grain: true });
    const below = stamp(4 * GRAIN, 3);
    const image = await open(files, true, below);
    const before = files.get('x.vmdk')!.size;
    await image.zero({ at: GRAIN, length: 2 * GRAIN });
    await image.flush();
    expect(files.get('x.vmdk')!.size).toBe(before);
    expect((await image.status({ at: GRAIN, length: 3 * GRAIN })).kind).toBe('zero');
    expect((await contentOf(image)).subarray(GRAIN, 3 * GRAIN).every((byte) => byte === 0)).toBe(true);
  });

  it('makes tables where a COWD extent has none', async () => {
    const text = descriptor({ type: 'vmfsSparse', lines: ['RW 65536 VMFSSPARSE "s"'] });
    const content = cowd({ capacity: 65536, grainSectors: 1, grains: grainsOf([0, stamp(512, 4)]) });
    const files: Files = new Map([
      ['x.vmdk', storageOf('x.vmdk', Buffer.from(text))],
      ['s', storageOf('s', content)],
    ]);
    const image = await open(files, true);
    const model = await contentOf(image);
    for (const at of [100, 5_000_000, 30_000_000]) {
      const data = stamp(3000, at);
      await image.write(at, data);
      data.copy(model, at);
    }
    await image.format.close();
    expect((await contentOf(await open(files, false))).equals(model)).toBe(true);
    expect(await checked(files)).toEqual({ corruptions: 0, lines: [] });
  });

  it('extents that end inside a grain, written at once', async () => {
    const lines = ['RW 1000 SPARSE "a"', 'RW 3000 SPARSE "b"'];
    const part = (capacity: number) => hosted({ capacity, grains: grainsOf(), flags: 1 });
    const files: Files = new Map([
      ['x.vmdk', storageOf('x.vmdk', Buffer.from(descriptor({ type: 'twoGbMaxExtentSparse', lines })))],
      ['a', storageOf('a', part(1000))],
      ['b', storageOf('b', part(3000))],
    ]);
    const image = await open(files, true);
    const model = Buffer.alloc(image.size);
    const work: Promise<void>[] = [];
    for (let at = 0; at < image.size; at += 20_000) {
      const data = stamp(Math.min(10_000, image.size - at), at + 1);
      data.copy(model, at);
      work.push(image.write(at, data));
    }
    await Promise.all(work);
    await image.format.close();
    expect((await contentOf(await open(files, false))).equals(model)).toBe(true);
    expect(await checked(files)).toEqual({ corruptions: 0, lines: [] });
  });

  it('refuses grains too large to be filled, and extents that are read-only', async () => {
    const large = hosted({ capacity: 2 ** 18, grainSectors: 2 ** 16, grains: grainsOf(), flags: 1 });
    const image = await open(new Map([['x.vmdk', storageOf('x.vmdk', large)]]), true);
    await expect(image.write(0, Buffer.alloc(512))).rejects.toThrow('cannot be written');
    const text = descriptor({ type: 'monolithicFlat', lines: ['RDONLY 8 FLAT "f" 0'] });
    const flat = new MemoryStorage(new Uint8Array(4096), { filename: 'f', writable: false });
    const files: Files = new Map([
      ['x.vmdk', storageOf('x.vmdk', Buffer.from(text))],
      ['f', kept(flat)],
    ]);
    await expect((await open(files, true)).write(0, Buffer.alloc(512))).rejects.toThrow('read-only');
  });

  it('check finds shared grains, and grains in the metadata', async () => {
    const files = await create(4 * GRAIN);
    const image = await open(files, true);
    await image.write(0, stamp(4 * GRAIN, 2));
    await image.format.close();
    const file = files.get('x.vmdk')!;
    const raw = await bytesOf(file);
    const table = raw.readUInt32LE(Number(HostedHeader.decode(raw).gdOffset) * SECTOR) * SECTOR;
    raw.copyWithin(table + 8, table, table + 4);
    raw.writeUInt32LE(2, table + 12);
    await file.write(0, raw);
    expect(await checked(files)).toEqual({
      corruptions: 2,
      lines: [
        'ERROR: cluster for sector 256 has its place in the file with another',
        'ERROR: cluster for sector 384 lies in the metadata',
      ],
    });
  });
});

/** Reads a stream front to back, as an importer does that cannot seek, and holds it to the specification. */
function importStream(file: Buffer): Map<number, Buffer> {
  const header = HostedHeader.decode(file);
  expect(header).toMatchObject({ version: 3, flags: 0x30001, gdOffset: GD_AT_END, compressAlgorithm: 1 });
  const guest = new Map<number, Buffer>();
  let open = new Map<number, number>();
  const tables = new Map<number, number>();
  let last = -1;
  let directory = -1;
  for (let sector = Number(header.overHead); ; ) {
    const { val, size, type } = Marker.decode(file, sector * SECTOR);
    const lba = Number(val);
    if (size > 0) {
      expect(lba).toBeGreaterThan(last);
      last = lba;
      const data = inflateSync(file.subarray(sector * SECTOR + 12, sector * SECTOR + 12 + size));
      expect(data.length).toBe(Number(header.grainSize) * SECTOR);
      guest.set(lba * SECTOR, data);
      open.set(lba / Number(header.grainSize), sector);
      sector += Math.ceil((12 + size) / SECTOR);
      continue;
    }
    const at = (sector + 1) * SECTOR;
    if (type === 1) {
      const first = Math.floor([...open.keys()][0]! / 512) * 512;
      for (let n = 0; n < 512; n++) expect(file.readUInt32LE(at + n * 4)).toBe(open.get(first + n) ?? 0);
      tables.set(first / 512, sector + 1);
      open = new Map();
    } else if (type === 2) {
      expect(open.size).toBe(0);
      const count = Math.ceil(Number(header.capacity) / Number(header.grainSize) / 512);
      for (let n = 0; n < count; n++) expect(file.readUInt32LE(at + n * 4)).toBe(tables.get(n) ?? 0);
      directory = sector + 1;
    } else if (type === 3) {
      expect(HostedHeader.decode(file, at)).toEqual({ ...header, gdOffset: BigInt(directory) });
    } else {
      expect([lba, type, (sector + 1) * SECTOR]).toEqual([0, 0, file.length]);
      return guest;
    }
    sector += 1 + lba;
  }
}

describe('VMDK streams', () => {
  const size = 40 * 1024 * 1024 + 512;

  async function packed(image: ImageNode, at: number, seed: number): Promise<void> {
    const { pack } = image.format;
    await image.writePacked(at, (await pack!.compress(stamp(GRAIN, seed)))!);
  }

  it('are what an importer reads front to back', async () => {
    const files = await create(size, { subformat: 'streamOptimized' });
    const image = await open(files, true);
    const grains = [0, 1, 5, 511, 512, 639, 640];
    for (const grain of grains) await packed(image, grain * GRAIN, grain + 1);
    await image.flush();
    await image.format.close();
    const guest = importStream(await bytesOf(files.get('x.vmdk')!));
    expect([...guest.keys()]).toEqual(grains.map((grain) => grain * GRAIN));
    for (const grain of grains) expect(guest.get(grain * GRAIN)!.equals(stamp(GRAIN, grain + 1))).toBe(true);
    const again = await open(files, false);
    const last = Buffer.alloc(512);
    await again.read(size - 512, last);
    expect(last.equals(stamp(GRAIN, 641).subarray(0, 512))).toBe(true);
    expect(await checked(files)).toEqual({ corruptions: 0, lines: [] });
  });

  it('are gone on with, and take each grain once', async () => {
    const files = await create(size, { subformat: 'streamOptimized' });
    const model = Buffer.alloc(size);
    for (const round of [0, 1, 2]) {
      const image = await open(files, true);
      for (const grain of [600 + round, 3 + round]) {
        await packed(image, grain * GRAIN, grain);
        stamp(GRAIN, grain).copy(model, grain * GRAIN);
        if (round === 1) await image.flush();
      }
      await image.write((20 + 2 * round) * GRAIN, stamp(2 * GRAIN, round + 1));
      stamp(2 * GRAIN, round + 1).copy(model, (20 + 2 * round) * GRAIN);
      expect((await contentOf(image)).equals(model)).toBe(true);
      await expect(image.write(600 * GRAIN, Buffer.alloc(GRAIN))).rejects.toThrow('Input/output error');
      await expect(image.write(700, Buffer.alloc(512))).rejects.toThrow('Invalid argument');
      await image.format.close();
    }
    expect((await contentOf(await open(files, false))).equals(model)).toBe(true);
    expect(await checked(files)).toEqual({ corruptions: 0, lines: [] });
  });

  it('of the form that has its tables at the start keep it', async () => {
    const grains = grainsOf([1, stamp(GRAIN, 9)]);
    const header = { capacity: 1024, grains, compress: true, flags: 0x30003, version: 3 };
    const raw = hosted(header);
    raw.writeBigUInt64LE(0n, HostedHeader.offsetOf('rgdOffset'));
    const files: Files = new Map([['x.vmdk', storageOf('x.vmdk', raw)]]);
    const image = await open(files, true);
    await packed(image, 3 * GRAIN, 4);
    await image.format.close();
    const after = await bytesOf(files.get('x.vmdk')!);
    expect(HostedHeader.decode(after)).toEqual(HostedHeader.decode(raw));
    const model = Buffer.alloc(8 * GRAIN);
    stamp(GRAIN, 9).copy(model, GRAIN);
    stamp(GRAIN, 4).copy(model, 3 * GRAIN);
    expect((await contentOf(await open(files, false))).equals(model)).toBe(true);
  });
});
