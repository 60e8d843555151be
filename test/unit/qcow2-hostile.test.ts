/** Headers and tables that lie: refused, or met on the way, in the reference's words. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { openImage, qemuImg, qemuIo, readAll } from './qcow2-support.js';

type Patch = readonly (readonly [number, number | bigint | Uint8Array, (4 | 8 | 1)?])[];

function patched(base: Uint8Array, patch: Patch): Uint8Array {
  const out = base.slice();
  const view = new DataView(out.buffer);
  for (const [at, value, width] of patch) {
    if (value instanceof Uint8Array) out.set(value, at);
    else if (typeof value === 'bigint' || width === 8) view.setBigUint64(at, BigInt(value));
    else if (width === 1) view.setUint8(at, Number(value));
    else view.setUint32(at, Number(value));
  }
  return out;
}

const ALL_ONES = 0xffff_ffff_ffff_ffffn;
const FAR = 0x7fff_ffff_ffff_0000n;
function ext(type: number, length: number, data: string | Uint8Array = ''): [number, Uint8Array] {
  const out = Buffer.alloc(64);
  out.writeUInt32BE(type, 0);
  out.writeUInt32BE(length, 4);
  out.set(typeof data === 'string' ? Buffer.from(data) : data, 8);
  return [0x70, out];
}
function bitmaps(count: number, reserved: number, size: bigint, at: bigint): [number, Uint8Array] {
  const data = Buffer.alloc(24);
  data.writeUInt32BE(count, 0);
  data.writeUInt32BE(reserved, 4);
  data.writeBigUInt64BE(size, 8);
  data.writeBigUInt64BE(at, 16);
  return ext(0x23852875, 24, data);
}

/** Fields of the header, and whether the reference opens it. Each is compared with what `qemu-img info` says. */
const headers: readonly (readonly [string, Patch])[] = [
  ['version 4', [[4, 4]]],
  ['cluster bits 8', [[20, 8]]],
  ['cluster bits 22', [[20, 22]]],
  ['cluster bits 0', [[20, 0]]],
  ['cluster bits, all ones', [[20, 0xffff_ffff]]],
  ['header length 103', [[100, 103]]],
  ['header length 72', [[100, 72]]],
  ['header length 65537', [[100, 65537]]],
  ['header length, all ones', [[100, 0xffff_ffff]]],
  ['header length 65536', [[100, 65536]]],
  ['header length 104', [[100, 104]]],
  ['header length 120', [[100, 120]]],
  ['backing offset beyond the cluster', [[8, 70000n]]],
  [
    'backing name reaches over the cluster',
    [
      [8, 65530n],
      [16, 10],
    ],
  ],
  [
    'backing offset inside an extension',
    [
      [8, 480n],
      [16, 1024],
    ],
  ],
  [
    'backing offset, all ones',
    [
      [8, ALL_ONES],
      [16, 10],
    ],
  ],
  [
    'backing name too long',
    [
      [8, 0x8000n],
      [16, 1024],
    ],
  ],
  [
    'backing name length, all ones',
    [
      [8, 0x8000n],
      [16, 0xffff_ffff],
    ],
  ],
  ['size, all ones', [[24, ALL_ONES]]],
  ['size 2^63 - 1', [[24, 2n ** 63n - 1n]]],
  ['size beyond the L1 table', [[24, 2n ** 50n]]],
  ['crypt method 2 without header', [[32, 2]]],
  ['crypt method 3', [[32, 3]]],
  ['L1 size 0', [[36, 0]]],
  ['L1 size, all ones', [[36, 0xffff_ffff]]],
  ['L1 size above the limit', [[36, (32 << 20) / 8 + 1]]],
  ['L1 size at the limit', [[36, (32 << 20) / 8]]],
  ['L1 offset unaligned', [[40, 0x30001n]]],
  ['L1 offset far', [[40, FAR]]],
  ['L1 offset, all ones', [[40, ALL_ONES - 0xffffn]]],
  ['refcount table offset unaligned', [[48, 1n]]],
  ['refcount table offset far', [[48, FAR]]],
  ['refcount table empty', [[56, 0]]],
  ['refcount table too large', [[56, 129]]],
  ['refcount table length, all ones', [[56, 0xffff_ffff]]],
  ['too many snapshots', [[60, 65537]]],
  ['snapshot extra data', [[60, 65536]]],
  [
    'snapshot table unaligned',
    [
      [60, 1],
      [64, 0x20001n],
    ],
  ],
  [
    'snapshot table far',
    [
      [60, 1],
      [64, FAR],
    ],
  ],
  ['unknown incompatible feature', [[72, 32n]]],
  ['unknown incompatible features', [[72, (1n << 63n) | 96n]]],
  [
    'features with names',
    [
      [72, 0xe0n],
      [0x79, 5, 1],
      [0x78 + 49, 6, 1],
    ],
  ],
  ['compression bit without type', [[72, 8n]]],
  ['compression type without bit', [[104, 1, 1]]],
  [
    'compression type 2',
    [
      [72, 8n],
      [104, 2, 1],
    ],
  ],
  [
    'subclusters in small clusters',
    [
      [72, 16n],
      [20, 12],
    ],
  ],
  ['refcount order 7', [[96, 7]]],
  ['refcount order 64', [[96, 64]]],
  ['backing format too long', [ext(0xe2792aca, 19)]],
  ['extension too large', [ext(0x12345678, 0xf000f)]],
  ['extension length, all ones', [ext(0x12345678, 0xffff_ffff)]],
  ['unknown extension', [ext(0x12345678, 15)]],
  ['bitmaps: extension length', [ext(0x23852875, 8), [88, 1n]]],
  ['bitmaps: none', [bitmaps(0, 0, 24n, 65536n), [88, 1n]]],
  ['bitmaps: reserved', [bitmaps(1, 1, 24n, 65536n), [88, 1n]]],
  ['bitmaps: too many', [bitmaps(65536, 0, 24n, 65536n), [88, 1n]]],
  ['bitmaps: unaligned', [bitmaps(1, 0, 24n, 65537n), [88, 1n]]],
  ['bitmaps: directory too large', [bitmaps(1, 0, 1n << 30n, 65536n), [88, 1n]]],
  ['bitmaps: broken directory', [bitmaps(1, 0, 24n, 0x40000n), [88, 1n]]],
  ['bitmaps: directory beyond the file', [bitmaps(1, 0, 24n, 0x4000_0000_0000n), [88, 1n]]],
];

const COPIED = 1n << 63n;
const L1 = 0x30000;
const L2 = 0x40000;
/** Damage in tables: what `map` meets. */
const tables: readonly (readonly [string, Patch, ('ext' | 'plain')?])[] = [
  ['L2 table unaligned', [[L1, COPIED | 0x40200n]]],
  ['L2 table far', [[L1, COPIED | 0xff_ffff_ffff_fe00n]]],
  ['cluster unaligned', [[L2, COPIED | 0x50200n]]],
  ['preallocated zero cluster unaligned', [[L2, COPIED | 0x50201n]]],
  ['subcluster both allocated and zero', [[L2 + 8, (1n << 32n) | 1n]], 'ext'],
  ['subclusters of no cluster', [[L2, 0n]], 'ext'],
];

/** What an operation says of damage; the line before says which. */
const DAMAGED = { kind: 'corrupt', message: 'Input/output error' };

describeInterop('qcow2: hostile images', () => {
  const folder = tempDir();
  const path = join(folder, 'p.q');
  const base = join(folder, 'base.q');
  qemuImg('create', '-q', '-f', 'qcow2', base, '1M');
  qemuIo(base, 'write -P 1 0 64k', 'write -P 2 128k 64k');
  const plain = new Uint8Array(readFileSync(base));
  qemuImg('create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', base, '1M');
  qemuIo(base, 'write -P 1 0 64k');
  const extended = new Uint8Array(readFileSync(base));

  for (const [name, patch] of headers) {
    it(`header: ${name}`, async () => {
      const image = patched(plain, patch);
      writeFileSync(path, image);
      const theirs = qemuImg('info', '-f', 'qcow2', path);
      const opening = openImage({ file: new MemoryStorage(image) }, { metadataOnly: true });
      if (theirs.status === 0) {
        await opening;
        return;
      }
      const message = theirs.stderr.split('\n')[0]!.replace(`qemu-img: Could not open '${path}': `, '');
      await expect(opening).rejects.toMatchObject({ name: 'ImageError', message });
    });
  }

  for (const [name, patch, kind] of tables) {
    it(`tables: ${name}`, async () => {
      const image = patched(kind === 'ext' ? extended : plain, patch);
      writeFileSync(path, image);
      const theirs = run(reference.qemuImg!, ['map', '-f', 'qcow2', path]).stderr.split('\n')[0];
      const said: string[] = [];
      const opened = await openImage({ file: new MemoryStorage(image) }, { said });
      await expect(readAll(opened.image)).rejects.toMatchObject(DAMAGED);
      expect(said).toEqual([theirs]);
    });

    it(`tables, for writing: ${name}`, async () => {
      const image = patched(kind === 'ext' ? extended : plain, patch);
      writeFileSync(path, image);
      const { stdout, stderr } = run(reference.qemuIo!, ['-f', 'qcow2', '-c', 'write 0 64k', path]);
      const theirs = (stdout + stderr).split('\n').find((line) => line.startsWith('qcow2:'));
      const file = new MemoryStorage(image);
      const said: string[] = [];
      const opened = await openImage({ file }, { writable: true, said });
      await expect(opened.image.write(0, new Uint8Array(65536))).rejects.toMatchObject(DAMAGED);
      expect(said).toEqual([theirs]);
      await expect(opened.image.write(0, new Uint8Array(65536))).rejects.toMatchObject({ kind: 'corrupt' });
      await opened.image.close();
      // the mark is on the disk, and is minded
      await expect(openImage({ file }, { writable: true })).rejects.toThrow(
        'qcow2: Image is corrupt; cannot be opened read/write',
      );
      await openImage({ file });
    });
  }

  it('refcounts of zero do not let metadata be overwritten', async () => {
    const image = patched(plain, [[0x20000, new Uint8Array(64)]]);
    const file = new MemoryStorage(image);
    const said: string[] = [];
    const opened = await openImage({ file }, { writable: true, said });
    await expect(opened.image.write(512 << 10, new Uint8Array(65536))).rejects.toMatchObject(DAMAGED);
    expect(said).toEqual([expect.stringContaining('overlaps with')]);
    await opened.image.close();
    expect(file.bytes({ at: L1, length: 8 })).toEqual(plain.slice(L1, L1 + 8));
  });

  it('an L2 entry that names metadata does not let it be overwritten', async () => {
    for (const [host, what] of [
      [0n, undefined],
      [0x10000n, 'refcount table'],
      [0x20000n, 'refcount block'],
      [0x30000n, 'active L1 table'],
      [0x40000n, 'active L2 table'],
    ] as const) {
      const image = patched(plain, [[L2, COPIED | host]]);
      const file = new MemoryStorage(image);
      const said: string[] = [];
      const opened = await openImage({ file }, { writable: true, said });
      const writing = opened.image.write(0, new Uint8Array(65536).fill(7));
      if (what === undefined) await writing;
      else {
        await expect(writing).rejects.toMatchObject(DAMAGED);
        expect(said).toEqual([expect.stringContaining(`overlaps with ${what}`)]);
      }
      await opened.image.close();
    }
  });

  it('unknown autoclear bits go on a writable open, others stay', async () => {
    const image = patched(plain, [[88, 0xff00n]]);
    const file = new MemoryStorage(image);
    await (await openImage({ file })).image.close();
    expect(file.bytes({ at: 94, length: 1 })[0]).toBe(0xff);
    await (await openImage({ file }, { writable: true })).image.close();
    expect(file.bytes({ at: 88, length: 8 })).toEqual(new Uint8Array(8));
  });

  it('a dirty image is repaired before it is written', async () => {
    const image = patched(plain, [
      [72, 1n],
      [80, 1n],
      [0x20000 + 10, new Uint8Array(4)],
    ]);
    const file = new MemoryStorage(image);
    const opened = await openImage({ file }, { writable: true });
    await opened.image.write(512 << 10, new Uint8Array(65536).fill(9));
    await opened.image.close();
    writeFileSync(path, file.bytes());
    expect(qemuImg('check', '-f', 'qcow2', path).stdout).toMatch(/No errors/);
    expect(qemuImg('info', '--output=json', path).stdout).toContain('"dirty-flag": false');
  });

  it('active bitmaps are marked before guest data changes, disabled ones are not', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', base, '1M');
    qemuImg('bitmap', '--add', base, 'active');
    qemuImg('bitmap', '--add', '--disable', base, 'frozen');
    const file = new MemoryStorage(new Uint8Array(readFileSync(base)));
    const flagsNow = () => {
      writeFileSync(path, file.bytes());
      const info = JSON.parse(qemuImg('info', '--output=json', path).stdout);
      return info['format-specific'].data.bitmaps.map((b: { name: string; flags: string[] }) => [
        b.name,
        b.flags,
      ]);
    };
    const opened = await openImage({ file }, { writable: true });
    await opened.image.flush();
    await opened.image.write(0, new Uint8Array(512));
    expect(flagsNow()).toEqual([
      ['active', ['in-use', 'auto']],
      ['frozen', []],
    ]);
    await opened.image.close();
    // The write was recorded, and the bitmap stored: it may be trusted again.
    expect(flagsNow()).toEqual([
      ['active', ['auto']],
      ['frozen', []],
    ]);
  });
});
