/** VHD: geometry, layout, reading, writing, the checker; hand-made images. */
import { describe, expect, it } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { geometryFor, layOut, sectorsOf } from '../../src/engine/formats/vpc/geometry.js';
import { vpc } from '../../src/engine/formats/vpc/index.js';
import {
  bitmapBytes,
  DiskType,
  DynamicHeader,
  Footer,
  footerChecksum,
  ParentLocator,
  Platform,
} from '../../src/engine/formats/vpc/layout.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { contentOf, extentsOf, memoryContext } from '../support/open-memory.js';
import {
  BLOCK,
  type DynamicParts,
  dynamic,
  entryOf,
  fixed,
  footerOf,
  ID,
  resealed,
  setEntry,
} from './vpc-images.js';

const MiB = 2 ** 20;
const GiB = 2 ** 30;

function bytesOf(length: number, salt: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, at) => (at * 3 + salt + (at >>> 9)) & 0xff));
}

const open = (image: Uint8Array, options: Record<string, string> = {}) =>
  vpc.open(memoryContext(image, { options }));

async function messageOf(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(ImageError);
  return (error as ImageError).message;
}

/** A dynamic image of the program's own making. */
async function created(size: number, options = {}): Promise<MemoryStorage> {
  const file = new MemoryStorage();
  const never = () => Promise.reject(new Error('no further files'));
  await vpc.create!({ file, filename: 'x', size, options, createExtra: never, openExtra: never });
  return file;
}

async function writable(file: MemoryStorage): Promise<ImageNode> {
  const format = await vpc.open(memoryContext(file, { writable: true }));
  // The tests look at the file after it was closed.
  const kept = new Proxy(file, {
    get: (target, name) => {
      if (name === 'close') return async () => {};
      const value = Reflect.get(target, name, target) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  return new ImageNode({
    filename: 'x',
    path: undefined,
    driver: vpc,
    format,
    file: kept,
    backing: undefined,
    writable: true,
  });
}

async function checked(
  image: Uint8Array | MemoryStorage,
): Promise<{ lines: string[]; corruptions: number; leaks: number }> {
  const node = await vpc.open(memoryContext(image, { forCheck: true }));
  const lines: string[] = [];
  const repair = { leaks: false, errors: false };
  const { corruptions, leaks } = await node.checker!.check({ repair, report: (line) => lines.push(line) });
  return { lines, corruptions, leaks };
}

describe('geometry', () => {
  it('is the one of the specification for sizes that the reference was asked for', () => {
    const rows: readonly (readonly [size: number, chs: string, bytes: number])[] = [
      [512, '1/4/17', 34816],
      [MiB, '31/4/17', 1079296],
      [20 * MiB, '603/4/17', 20994048],
      [GiB, '2081/16/63', 1073995776],
      [2 * GiB, '4162/16/63', 0x8007c000],
      [8 * GiB, '16645/16/63', 0x200076000],
      [33 * GiB, '16963/16/255', 0x84017a000],
      [60 * GiB, '30841/16/255', 0xf0010e000],
      [127 * GiB, '65279/16/255', 0x1fc0002000],
    ];
    for (const [size, chs, bytes] of rows) {
      const { cylinders, heads, sectorsPerTrack } = geometryFor(size / 512);
      expect(`${cylinders}/${heads}/${sectorsPerTrack}`).toBe(chs);
      if (size !== 2 * GiB && size !== 8 * GiB) expect(layOut(size, false)!.sectors * 512).toBe(bytes);
    }
  });

  it('holds what was asked for, and hardly more', () => {
    for (let sectors = 1; sectors < 300_000_000; sectors = Math.ceil(sectors * 1.37)) {
      const { sectors: got } = layOut(sectors * 512, false)!;
      expect(got).toBeGreaterThanOrEqual(sectors);
      expect(got - sectors).toBeLessThan(16 * 255);
    }
  });

  it('says nothing beyond 127.5 GiB, or with force_size', () => {
    expect(layOut(200 * GiB, false)!.sectors).toBe((200 * GiB) / 512);
    expect(layOut(MiB + 1, true)!.sectors).toBe(2049);
    for (const { geometry } of [layOut(200 * GiB, false)!, layOut(MiB, true)!]) {
      expect(sectorsOf(geometry)).toBe(65535 * 16 * 255);
    }
    expect(layOut(0, false)).toEqual({
      sectors: 0,
      geometry: { cylinders: 0, heads: 0, sectorsPerTrack: 0 },
    });
    expect(layOut(2040 * GiB, false)).toBeDefined();
    expect(layOut(2040 * GiB + 1, false)).toBeUndefined();
  });
});

describe('layout', () => {
  it('has the structures of the specification', () => {
    expect([Footer.size, DynamicHeader.size, ParentLocator.size]).toEqual([512, 1024, 24]);
    expect([
      Footer.offsetOf('currentSize'),
      Footer.offsetOf('checksum'),
      Footer.offsetOf('uniqueId'),
    ]).toEqual([0x30, 0x40, 0x44]);
    expect(DynamicHeader.offsetOf('parentLocators')).toBe(576);
    expect([512, 4096, 2 * MiB, 4 * MiB].map(bitmapBytes)).toEqual([0, 512, 512, 1024]);
  });

  it('sums up everything but the checksum', () => {
    const footer = footerOf({ size: 512, type: DiskType.fixed });
    expect(Footer.decode(footer).checksum).toBe(footerChecksum(footer));
    expect(footerChecksum(new Uint8Array(512))).toBe(0xffffffff);
  });
});

describe('sizes', () => {
  const sizeOf = async (creator: string, options = {}) => {
    const image = dynamic({ size: 8 * BLOCK, creator, geometry: [2, 4, 5], currentSize: BigInt(7 * BLOCK) });
    return (await open(image, options)).size;
  };
  it('are by geometry for two creators, and by current size for all others', async () => {
    for (const creator of ['vpc ', 'qemu']) expect(await sizeOf(creator)).toBe(40 * 512);
    for (const creator of ['vs  ', 'win ', 'qem2', 'd2v ', 'tap\0', 'CTXS', 'wa\0\0', 'abcd']) {
      expect(await sizeOf(creator)).toBe(7 * BLOCK);
    }
  });
  it('are as the option says', async () => {
    expect(await sizeOf('win ', { force_size_calc: 'chs' })).toBe(40 * 512);
    expect(await sizeOf('vpc ', { force_size_calc: 'current_size' })).toBe(7 * BLOCK);
    expect(await messageOf(sizeOf('vpc ', { force_size_calc: 'x' }))).toBe(
      "Invalid size calculation mode: 'x'",
    );
  });
  it('are current sizes wherever the geometry is the largest', async () => {
    const image = dynamic({ size: 8 * BLOCK, creator: 'vpc ' });
    expect((await open(image, { force_size_calc: 'chs' })).size).toBe(8 * BLOCK);
  });
});

describe('reading', () => {
  const blocks = new Map([
    [5, { data: bytesOf(BLOCK, 1) }],
    [1, { data: bytesOf(BLOCK, 2), bitmap: new Uint8Array(512) }],
  ]);

  it('finds blocks wherever they are, and does not mind the bitmaps of dynamic disks', async () => {
    const node = await open(dynamic({ size: 8 * BLOCK - 512, blocks }));
    const content = await contentOf(node, 1000);
    const expected = Buffer.alloc(8 * BLOCK - 512);
    for (const [index, { data }] of blocks) expected.set(data, index * BLOCK);
    expect(content.equals(expected)).toBe(true);
    expect((await extentsOf(node)).map(({ kind }) => kind)).toEqual(['zero', 'data', 'zero', 'data', 'zero']);
    expect(await node.info()).toEqual({ clusterSize: BLOCK, dirty: false });
  });

  it('reads fixed disks, whose sectors follow the file', async () => {
    const content = bytesOf(6 * 512, 3);
    const node = await open(fixed(content));
    expect((await contentOf(node)).equals(content)).toBe(true);
    expect(await node.info()).toEqual({ dirty: false });
  });

  it('is told by the copy of the footer at the start alone', () => {
    const head = Buffer.alloc(2048);
    expect(vpc.probe(head, 'x.vhd', 2048)).toBe(0);
    head.write('conectix');
    expect(vpc.probe(head, 'x', 2048)).toBe(100);
  });
});

describe('differencing disks', () => {
  const parts: DynamicParts = {
    size: 4 * BLOCK,
    blocks: new Map([[1, { data: bytesOf(BLOCK, 4), bitmap: Uint8Array.of(0b01100001) }]]),
    parentId: ID,
  };
  const backingOf = async (more: Partial<DynamicParts>) =>
    (await open(dynamic({ ...parts, ...more }))).backing;

  it('have the sectors whose bit is set, the first the highest', async () => {
    const node = await open(dynamic({ ...parts, parent: '.\\base.vhd' }));
    const found = (await extentsOf(node)).map(({ kind, length }) => [kind, length / 512]);
    expect(found).toEqual([
      ['backing', 8],
      ['backing', 1],
      ['data', 2],
      ['backing', 4],
      ['data', 1],
      ['backing', 16],
    ]);
  });

  it('name their parents by Windows paths or URLs', async () => {
    const contentId = ID.readUIntBE(10, 6);
    const named = (filename: string) => ({ filename, format: 'vpc', contentId });
    expect(await backingOf({ parent: '.\\sub\\base.vhd' })).toEqual(named('sub/base.vhd'));
    expect(await backingOf({ parent: '..\\base.vhd' })).toEqual(named('../base.vhd'));
    expect(await backingOf({ parent: 'json:{}' })).toEqual(named('./json:{}'));
    const utf16 = (text: string) => Buffer.from(text, 'utf16le');
    const w2ku = { code: Platform.w2ku, data: utf16('C:\\disks\\base.vhd') };
    expect(await backingOf({ locators: [w2ku] })).toEqual(named('base.vhd'));
    const macX = { code: Platform.macX, data: Buffer.from('file://localhost/a%20b/base.vhd') };
    expect(await backingOf({ locators: [w2ku, macX] })).toEqual(named('/a b/base.vhd'));
  });

  it('are the children of the disk with the id that they name', async () => {
    const node = await open(dynamic({ size: 4 * BLOCK, uniqueId: ID }));
    expect(node.contentId).toBe(ID.readUIntBE(10, 6));
  });

  it('are only read, and need a parent with a name', async () => {
    const image = dynamic({ ...parts, parent: 'base.vhd' });
    expect(await messageOf(vpc.open(memoryContext(image, { writable: true })))).toBe(
      'Differencing VHD images cannot be written to',
    );
    expect(await messageOf(open(dynamic({ ...parts, locators: [] })))).toMatch(/parent has no name/);
    const far = dynamic({ ...parts, parent: 'base.vhd' });
    far.writeUInt32BE(70_000, 512 + DynamicHeader.offsetOf('parentLocators') + 8);
    expect(await messageOf(open(far))).toMatch(/parent locator 1 is out of range/);
  });
});

describe('hostile values', () => {
  const base = () => dynamic({ size: 8 * BLOCK });
  const header = (field: 'maxTableEntries' | 'blockSize', value: number) => {
    const image = base();
    image.writeUInt32BE(value, 512 + DynamicHeader.offsetOf(field));
    return image;
  };
  const table = (offset: bigint) => {
    const image = base();
    image.writeBigUInt64BE(offset, 512 + DynamicHeader.offsetOf('tableOffset'));
    return image;
  };
  const TRUNCATED =
    'block-vpc: free_data_block_offset points after the end of file. The image has been truncated.';
  const cases: readonly (readonly [string, () => Uint8Array, string])[] = [
    ['nothing', () => new Uint8Array(0), 'File too small for a VHD header'],
    ['no footer', () => new Uint8Array(600), 'invalid VPC image'],
    ['a dynamic footer at the end alone', () => footerAtEnd(DiskType.dynamic), 'invalid VPC image'],
    ['footer, one bit', () => flipped(base(), 0x60), 'Incorrect header checksum'],
    [
      'too large',
      () => fixed(new Uint8Array(512), { currentSize: 2n ** 63n }),
      "Could not open 'memory': File too large",
    ],
    ['header far away', () => offset(2n ** 40n), 'Invalid header magic'],
    ['header nowhere', () => offset(2n ** 64n - 1n), 'Error reading dynamic VHD header'],
    ['no header', () => flipped(base(), 512), 'Invalid header magic'],
    ['block size 0', () => header('blockSize', 0), 'Invalid block size 0'],
    ['block size 256', () => header('blockSize', 256), 'Invalid block size 256'],
    ['block size 3 MiB', () => header('blockSize', 3 * MiB), 'Invalid block size 3145728'],
    ['too few entries', () => header('maxTableEntries', 7), 'Page table too small'],
    [
      'too many entries',
      () => header('maxTableEntries', 0x20000000),
      'Max Table Entries too large (536870912)',
    ],
    ['far too many entries', () => header('maxTableEntries', 0xffffffff), 'Max Table Entries too large (-1)'],
    ['a table beyond one read', () => header('maxTableEntries', 0x1fffffff), 'Error reading pagetable'],
    ['a table past the end', () => header('maxTableEntries', 100_000), TRUNCATED],
    ['a table far away', () => table(2n ** 50n), TRUNCATED],
    ['a table nowhere', () => table(2n ** 63n), 'Error reading pagetable'],
    ['a block past the end', () => setEntry(base(), 3, 1000), TRUNCATED],
  ];
  function footerAtEnd(type: number): Buffer {
    return Buffer.concat([new Uint8Array(1024), footerOf({ size: 1024, type })]);
  }
  function flipped(image: Buffer, at: number): Buffer {
    image[at]! ^= 1;
    return image;
  }
  function offset(dataOffset: bigint): Buffer {
    const image = base();
    image.writeBigUInt64BE(dataOffset, Footer.offsetOf('dataOffset'));
    return resealed(image, 0);
  }
  for (const [name, make, message] of cases) {
    it(name, async () => expect(await messageOf(open(make()))).toBe(message));
  }

  it('does not write into header and table, wherever entries point', async () => {
    for (const sector of [0, 1, 3]) {
      const file = new MemoryStorage(setEntry(Buffer.concat([base(), new Uint8Array(BLOCK * 2)]), 3, sector));
      const image = await writable(file);
      const before = file.bytes();
      expect(await messageOf(image.write(3 * BLOCK, new Uint8Array(512)))).toBe('Input/output error');
      expect(await messageOf(image.zero({ at: 3 * BLOCK, length: BLOCK }))).toBe('Input/output error');
      expect(Buffer.compare(file.bytes(), before)).toBe(0);
    }
  });

  it('does not write over the footer of a fixed disk that claims more than it has', async () => {
    const image = await writable(new MemoryStorage(fixed(new Uint8Array(4096), { currentSize: 8192n })));
    await image.write(3584, new Uint8Array(512));
    expect(await messageOf(image.write(4096, new Uint8Array(512)))).toBe('Input/output error');
  });
});

describe('writing', () => {
  it('puts blocks in guest order before the footer, which ends the file', async () => {
    const file = await created(9 * MiB, { force_size: true });
    const empty = file.bytes();
    const image = await writable(file);
    const data = bytesOf(5 * MiB, 1);
    await image.write(3 * MiB, data);
    await image.write(512, data.subarray(0, 512));
    // The footer was moved ahead, and is there.
    expect(file.bytes({ at: file.size - 512, length: 512 })).toEqual(empty.subarray(0, 512));
    await image.close();
    const bytes = file.bytes();
    const start = empty.length - 512;
    expect([0, 1, 2, 3, 4].map((block) => entryOf(bytes, block))).toEqual([
      (start + 3 * (2 * MiB + 512)) / 512,
      start / 512,
      (start + 2 * MiB + 512) / 512,
      (start + 2 * (2 * MiB + 512)) / 512,
      undefined,
    ]);
    expect(bytes.length).toBe(start + 4 * (2 * MiB + 512) + 512);
    expect(bytes.subarray(-512)).toEqual(empty.subarray(0, 512));
    expect(bytes.subarray(start, start + 512).every((byte) => byte === 0xff)).toBe(true);
    const content = await contentOf(await open(bytes), 3 * MiB);
    const expected = Buffer.alloc(9 * MiB);
    data.copy(expected, 3 * MiB);
    data.copy(expected, 512, 0, 512);
    expect(content.equals(expected)).toBe(true);
    expect(await checked(bytes)).toEqual({ lines: [], corruptions: 0, leaks: 0 });
  });

  it('moves the footer as often as it takes', async () => {
    const file = await created(300 * MiB, { force_size: true });
    const image = await writable(file);
    const order = Array.from({ length: 75 }, (_, i) => (i * 67) % 150);
    const ends = new Set<number>();
    for (const block of order) {
      await image.write(block * 2 * MiB + 1024, bytesOf(512, block));
      ends.add(file.size);
    }
    expect(ends.size).toBeGreaterThan(2);
    await image.close();
    expect(await checked(file)).toEqual({ lines: [], corruptions: 0, leaks: 0 });
    const node = await vpc.open(memoryContext(file));
    for (const block of order.slice(0, 9)) {
      const got = await contentOf(node, 4096, { at: block * 2 * MiB, length: 4096 });
      const expected = Buffer.alloc(4096);
      bytesOf(512, block).copy(expected, 1024);
      expect(got.equals(expected)).toBe(true);
    }
    const whole = await contentOf(node, 2 * MiB, { at: order[33]! * 2 * MiB, length: 2 * MiB });
    expect(whole.subarray(1536).every((byte) => byte === 0)).toBe(true);
  });

  it('does not let what lies behind the last block come to light', async () => {
    for (const gap of [bytesOf(3 * 4608, 9), bytesOf(3 * 4608 + 512, 9), bytesOf(512, 9)]) {
      const file = new MemoryStorage(dynamic({ size: 8 * BLOCK, gap }));
      const image = await writable(file);
      for (const block of [0, 1, 2, 5, 6]) await image.write(block * BLOCK, Buffer.alloc(512, 7));
      await image.close();
      const content = await contentOf(await open(file.bytes()));
      for (const block of [0, 1, 2, 5, 6]) {
        const rest = content.subarray(block * BLOCK + 512, (block + 1) * BLOCK);
        expect(rest.every((byte) => byte === 0)).toBe(true);
      }
      expect(await checked(file.bytes())).toEqual({ lines: [], corruptions: 0, leaks: 0 });
    }
  });

  it('gives a file without a footer at its end one', async () => {
    const whole = dynamic({ size: 8 * BLOCK, blocks: new Map([[2, { data: bytesOf(BLOCK, 1) }]]) });
    for (const cut of [whole.subarray(0, -512), Buffer.concat([whole, Buffer.alloc(700, 3)])]) {
      const file = new MemoryStorage(cut);
      const image = await writable(file);
      await image.write(4 * BLOCK, Buffer.alloc(512, 7));
      await image.close();
      expect(await checked(file.bytes())).toEqual({ lines: [], corruptions: 0, leaks: 0 });
      const content = await contentOf(await open(file.bytes()));
      expect(content.subarray(4 * BLOCK + 512).every((byte) => byte === 0)).toBe(true);
    }
  });

  it("marks what it writes in other programs' blocks", async () => {
    const bitmap = new Uint8Array(512);
    const file = new MemoryStorage(
      dynamic({ size: 8 * BLOCK, blocks: new Map([[2, { data: new Uint8Array(BLOCK), bitmap }]]) }),
    );
    const image = await writable(file);
    await image.write(2 * BLOCK + 512, bytesOf(512, 1));
    await image.close();
    const at = entryOf(file.bytes(), 2)! * 512;
    expect(file.bytes({ at, length: 512 }).every((byte) => byte === 0xff)).toBe(true);
  });

  it('makes zeros in the blocks that are there, and no others', async () => {
    const file = new MemoryStorage(
      dynamic({ size: 8 * BLOCK, blocks: new Map([[2, { data: bytesOf(BLOCK, 1) }]]) }),
    );
    const before = file.size;
    const image = await writable(file);
    await image.zero({ at: 0, length: 8 * BLOCK });
    await image.close();
    expect(file.size).toBe(before);
    expect((await contentOf(await open(file.bytes()))).every((byte) => byte === 0)).toBe(true);
  });
});

describe('check', () => {
  const two = () =>
    dynamic({
      size: 8 * BLOCK,
      blocks: new Map([
        [0, { data: bytesOf(BLOCK, 1) }],
        [3, { data: bytesOf(BLOCK, 2) }],
      ]),
    });
  const cases: readonly (readonly [string, () => Uint8Array, RegExp])[] = [
    ['the checksum of the footer', () => reseal(two(), 0x45), /checksum of the footer is wrong/],
    ['the checksum of the header', () => reseal(two(), 512 + 800), /checksum of the dynamic disk header/],
    ['a footer that is missing', () => two().subarray(0, -512), /footer at the end of the file is missing/],
    [
      'a block past the end',
      () => setEntry(two(), 5, 5000),
      /block 5 at offset 2560000 reaches past the end/,
    ],
    [
      'a block in the table',
      () => setEntry(two(), 5, 3),
      /block 5 at offset 1536 overlaps the header or the table/,
    ],
    [
      'a block used twice',
      () => setEntry(two(), 5, entryOf(two(), 3)!),
      /block 5 at offset \d+ overlaps another/,
    ],
    ['blocks that overlap', () => setEntry(two(), 5, entryOf(two(), 0)! + 8), /overlaps another block/],
    ['a short fixed disk', () => fixed(new Uint8Array(512), { currentSize: 4096n }), /the file ends before/],
  ];
  function reseal(image: Buffer, at: number): Buffer {
    image[at]! ^= 0x10;
    return image;
  }
  for (const [name, make, line] of cases) {
    it(`finds ${name}`, async () => {
      const { lines, corruptions } = await checked(make());
      expect(corruptions).toBeGreaterThan(0);
      expect(lines.some((found) => line.test(found))).toBe(true);
    });
  }

  it('counts space that is not used', async () => {
    const gap = new Uint8Array(2 * 4608);
    expect(await checked(dynamic({ size: 8 * BLOCK, gap }))).toMatchObject({ corruptions: 0, leaks: 2 });
  });

  it('finds nothing in sound images, with footers of 511 bytes as well', async () => {
    const sound = { lines: [], corruptions: 0, leaks: 0 };
    expect(await checked(two())).toEqual(sound);
    expect(await checked(two().subarray(0, -1))).toEqual(sound);
    expect(await checked(fixed(bytesOf(4096, 1)))).toEqual(sound);
  });

  it('does not repair', async () => {
    const node = await open(two());
    const repair = { leaks: true, errors: false };
    expect(await messageOf(node.checker!.check({ repair, report: () => {} }))).toMatch(/but not repaired/);
  });
});
