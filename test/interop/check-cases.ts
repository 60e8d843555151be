/** Damaged qcow2 images for check and repair: each case makes a sound image with the reference and breaks it in one way. */
import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';

/** Patches an image file in place. Values of 64 bits are bigint, offsets are byte counts. */
export class ImagePatch {
  readonly #fd: number;

  constructor(path: string) {
    this.#fd = openSync(path, 'r+');
  }

  close(): void {
    closeSync(this.#fd);
  }
  get size(): number {
    return fstatSync(this.#fd).size;
  }
  truncate(size: number): void {
    ftruncateSync(this.#fd, size);
  }
  bytes(at: number, length: number): Buffer {
    const into = Buffer.alloc(length);
    readSync(this.#fd, into, 0, length, at);
    return into;
  }
  put(at: number, bytes: Uint8Array): void {
    writeSync(this.#fd, bytes, 0, bytes.length, at);
  }
  u64(at: number): bigint {
    return this.bytes(at, 8).readBigUInt64BE();
  }
  setU64(at: number, value: bigint | number): void {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(BigInt(value));
    this.put(at, bytes);
  }
  u32(at: number): number {
    return this.bytes(at, 4).readUInt32BE();
  }
  setU32(at: number, value: number): void {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(value);
    this.put(at, bytes);
  }
  setU16(at: number, value: number): void {
    const bytes = Buffer.alloc(2);
    bytes.writeUInt16BE(value);
    this.put(at, bytes);
  }

  get cluster(): number {
    return 2 ** this.u32(20);
  }
  /** Offset of the L1 table, and of an entry of it. */
  l1(index = 0): number {
    return Number(this.u64(40)) + index * 8;
  }
  /** Offset of entry `index` of the L2 table that L1 entry `table` names; `words` 2 for extended entries. */
  l2(index = 0, table = 0, words = 1): number {
    return Number(this.u64(this.l1(table)) & 0x00fffffffffffe00n) + index * 8 * words;
  }
  /** Offset of an entry of the refcount table. */
  reftable(index = 0): number {
    return Number(this.u64(48)) + index * 8;
  }
  /** Offset of a 16-bit refcount in the first refcount block. */
  refcount(cluster: number): number {
    return Number(this.u64(this.reftable())) + cluster * 2;
  }
  /** Offset of the snapshot table. */
  get snapshots(): number {
    return Number(this.u64(64));
  }
}

export interface CheckCase {
  readonly name: string;
  /** `qemu-img create -f qcow2` options, default `cluster_size=512`. */
  readonly options?: string;
  readonly size?: string;
  /** qemu-io commands, default two writes. */
  readonly io?: readonly string[];
  /** Further qemu-img commands with `IMAGE` for the file. */
  readonly commands?: readonly (readonly string[])[];
  /** A second round of qemu-io commands, after `commands`. */
  readonly ioAfter?: readonly string[];
  damage?(image: ImagePatch): void;
}

/** A leak of cluster 20, in a file that is made long enough for it. */
function leak(image: ImagePatch): void {
  image.truncate(Math.max(image.size, 21 * image.cluster + 100));
  image.setU16(image.refcount(20), 1);
}

const COPIED = 1n << 63n;
const WRITES = ['write -P 1 0 2k', 'write -P 2 8k 2k'];

export const checkCases: readonly CheckCase[] = [
  { name: 'sound' },
  {
    name: 'sound, several L2 tables',
    size: '1M',
    io: ['write -P 1 0 100k', 'write -P 1 200k 512', 'write -P 2 150k 70k'],
  },
  {
    name: 'sound, fragmented',
    io: ['write 0 512', 'write 4k 512', 'write 2k 512', 'write 1k 512', 'write 40k 1k'],
  },
  { name: 'sound, odd size', size: '100001' },
  { name: 'leak', damage: (i) => leak(i) },
  {
    name: 'leaks of several kinds',
    damage: (i) => {
      leak(i);
      i.setU16(i.refcount(5), 7);
      i.setU16(i.refcount(0), 2);
    },
  },
  { name: 'leak beyond the end of file', damage: (i) => i.setU16(i.refcount(200), 1) },
  {
    name: 'refcount too low',
    damage: (i) => {
      i.setU64(i.l2(9), i.u64(i.l2(0)));
    },
  },
  { name: 'refcount zero', damage: (i) => i.setU16(i.refcount(6), 0) },
  {
    name: 'refcount zero and leak',
    damage: (i) => {
      i.setU16(i.refcount(6), 0);
      leak(i);
    },
  },
  { name: 'refcount zero of the header', damage: (i) => i.setU16(i.refcount(0), 0) },
  { name: 'refcount block of zeros', damage: (i) => i.put(i.refcount(0), new Uint8Array(512)) },
  {
    name: 'refcount block of garbage',
    damage: (i) =>
      i.put(
        i.refcount(0),
        new Uint8Array(512).map((_, k) => (k * 37) % 5),
      ),
  },
  { name: 'refcount table entry zero', damage: (i) => i.setU64(i.reftable(), 0) },
  {
    name: 'refcount table entry unaligned',
    damage: (i) => i.setU64(i.reftable(), i.u64(i.reftable()) + 512n),
    options: 'cluster_size=1024',
  },
  {
    name: 'refcount table entry with reserved bits',
    damage: (i) => i.setU64(i.reftable(), i.u64(i.reftable()) + 1n),
  },
  { name: 'refcount block outside', damage: (i) => i.setU64(i.reftable(1), 0x100000) },
  { name: 'refcount block far outside', damage: (i) => i.setU64(i.reftable(1), 0x7000000000000000n) },
  { name: 'refcount block twice', damage: (i) => i.setU64(i.reftable(1), i.u64(i.reftable())) },
  { name: 'refcount block on the header', damage: (i) => i.setU64(i.reftable(1), 0) },
  { name: 'refcount block is an L2 table', damage: (i) => i.setU64(i.reftable(1), i.l2()) },
  { name: 'refcount table of no clusters', damage: (i) => i.setU32(56, 0) },
  { name: 'refcount table beyond the end', damage: (i) => i.setU64(48, 0x100000) },
  { name: 'refcount table is the L1 table', damage: (i) => i.setU64(48, i.l1()) },
  { name: 'L1 table beyond the end', damage: (i) => i.setU64(40, 0x100000) },
  { name: 'L1 table is the header', damage: (i) => i.setU64(40, 0) },
  { name: 'L1 entry with reserved bits alone', size: '1M', damage: (i) => i.setU64(i.l1(3), 1n << 60n) },
  {
    name: 'L1 entry unaligned',
    options: 'cluster_size=1024',
    damage: (i) => i.setU64(i.l1(), i.u64(i.l1()) + 512n),
  },
  { name: 'L1 entry with reserved bits', damage: (i) => i.setU64(i.l1(), i.u64(i.l1()) | 1n | (1n << 60n)) },
  { name: 'L1 entry beyond the end', damage: (i) => i.setU64(i.l1(), COPIED | 0x100000n) },
  { name: 'L1 entry far beyond the end', damage: (i) => i.setU64(i.l1(), COPIED | 0xfffffffffffe00n) },
  { name: 'L1 entry without copied', damage: (i) => i.setU64(i.l1(), i.u64(i.l1()) & ~COPIED) },
  { name: 'L1 entries for one table', size: '1M', damage: (i) => i.setU64(i.l1(3), i.u64(i.l1())) },
  {
    name: 'L1 entry is the refcount block',
    size: '1M',
    damage: (i) => i.setU64(i.l1(3), COPIED | i.u64(i.reftable())),
  },
  {
    name: 'L2 entry unaligned',
    options: 'cluster_size=1024',
    damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) + 512n),
  },
  {
    name: 'L2 entry unaligned, preallocated zero',
    options: 'cluster_size=1024',
    damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) + 513n),
  },
  {
    name: 'L2 entry with reserved bits',
    damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) | 6n | (1n << 59n)),
  },
  { name: 'L2 entry with reserved bits, no offset', damage: (i) => i.setU64(i.l2(7), 1n << 59n) },
  { name: 'L2 entry at the end of file', damage: (i) => i.setU64(i.l2(0), COPIED | BigInt(i.size)) },
  { name: 'L2 entry beyond the end', damage: (i) => i.setU64(i.l2(0), COPIED | 0x100000n) },
  { name: 'L2 entry beyond the end, zero', damage: (i) => i.setU64(i.l2(0), COPIED | 0x100001n) },
  { name: 'L2 entry without copied', damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) & ~COPIED) },
  {
    name: 'L2 entry without copied, zero',
    damage: (i) => i.setU64(i.l2(0), (i.u64(i.l2(0)) & ~COPIED) | 1n),
  },
  {
    name: 'L2 entry without copied and a leak',
    damage: (i) => {
      i.setU64(i.l2(0), i.u64(i.l2(0)) & ~COPIED);
      leak(i);
    },
  },
  { name: 'L2 zero plain with copied', damage: (i) => i.setU64(i.l2(7), COPIED | 1n) },
  { name: 'L2 copied without offset', damage: (i) => i.setU64(i.l2(7), COPIED) },
  { name: 'L2 entry on the header', damage: (i) => i.setU64(i.l2(0), COPIED | 512n) },
  { name: 'last cluster of the file is short', damage: (i) => i.truncate(i.size - 200) },
  { name: 'file cut off', damage: (i) => i.truncate(i.size - 1024) },
  { name: 'file with a tail', damage: (i) => i.truncate(i.size + 10_000) },
  {
    name: 'dirty',
    options: 'cluster_size=512,lazy_refcounts=on',
    io: ['write 0 2k', 'write 8k 2k', 'flush'],
    damage: (i) => {
      i.setU64(72, 1);
      i.put(i.refcount(6), new Uint8Array(6));
    },
  },
  { name: 'dirty, sound', damage: (i) => i.setU64(72, 1) },
  { name: 'corrupt bit', damage: (i) => i.setU64(72, 2) },
  {
    name: 'corrupt bit and a leak',
    damage: (i) => {
      i.setU64(72, 2);
      leak(i);
    },
  },
  { name: 'autoclear bits', damage: (i) => i.setU64(88, 0x8000000000000001n) },
  {
    name: 'version 2',
    options: 'cluster_size=512,compat=0.10',
    damage: (i) => {
      leak(i);
      i.setU64(i.l2(0), i.u64(i.l2(0)) & ~COPIED);
    },
  },
  {
    name: 'version 2, zero flag',
    options: 'cluster_size=512,compat=0.10',
    damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) | 1n),
  },
  ...[1, 2, 4, 8, 32, 64].map(
    (bits): CheckCase => ({
      name: `refcount_bits=${bits}, a leak`,
      options: `cluster_size=512,refcount_bits=${bits}`,
      damage: (i) => {
        i.truncate(20_000);
        i.put(
          Number(i.u64(i.reftable())) + Math.floor((20 * bits) / 8) + (bits === 64 ? 1 : 0),
          Uint8Array.of(bits < 8 ? 1 << ((20 * bits) % 8) : 1),
        );
      },
    }),
  ),
  ...[1, 2, 4, 8, 32, 64].map(
    (bits): CheckCase => ({
      name: `refcount_bits=${bits}, too low`,
      options: `cluster_size=512,refcount_bits=${bits}`,
      damage: (i) => {
        for (const k of [9, 10, 11, 12]) i.setU64(i.l2(k), i.u64(i.l2(0)));
      },
    }),
  ),
  {
    name: 'refcount overflow of 8 bits',
    options: 'cluster_size=512,refcount_bits=8',
    size: '1M',
    damage: (i) => {
      for (let k = 0; k < 8; k++)
        for (let e = 0; e < 64; e++) {
          if (k > 0) i.setU64(i.l1(k), i.u64(i.l1()));
          i.setU64(i.l2(e), i.u64(i.l2(0)));
        }
    },
  },
  {
    name: 'many references',
    size: '2M',
    damage: (i) => {
      for (let k = 0; k < 12; k++)
        for (let e = 0; e < 64; e++) {
          if (k > 0) i.setU64(i.l1(k), i.u64(i.l1()));
          i.setU64(i.l2(e), i.u64(i.l2(0)));
        }
    },
  },
  {
    name: 'refcount 64 bits with the top bit',
    options: 'cluster_size=512,refcount_bits=64',
    damage: (i) => i.setU64(Number(i.u64(i.reftable())) + 6 * 8, 1n << 63n),
  },
  {
    name: 'refcount 64 bits, huge',
    options: 'cluster_size=512,refcount_bits=64',
    damage: (i) => i.setU64(Number(i.u64(i.reftable())) + 6 * 8, 0xffffffffffffffffn),
  },
  { name: 'compressed', io: ['write -c -P 1 0 4k', 'write -P 2 8k 2k'], options: 'cluster_size=4096' },
  {
    name: 'compressed with copied',
    io: ['write -c -P 1 0 4k'],
    options: 'cluster_size=4096',
    damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) | COPIED),
  },
  {
    name: 'compressed beyond the end',
    io: ['write -c -P 1 0 4k'],
    options: 'cluster_size=4096',
    damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) + 0x100000n),
  },
  {
    name: 'compressed across the end',
    io: ['write -c -P 1 0 4k'],
    options: 'cluster_size=4096',
    damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) + (7n << 58n) + 0xe00n),
  },
  {
    name: 'compressed leak',
    io: ['write -c -P 1 0 4k', 'write -c -P 2 4k 4k'],
    options: 'cluster_size=4096',
    damage: (i) => i.setU64(i.l2(0), 0),
  },
  { name: 'snapshots', commands: [['snapshot', '-c', 'one', 'IMAGE']], ioAfter: ['write -P 3 1k 4k'] },
  {
    name: 'snapshot with a lost refcount',
    commands: [['snapshot', '-c', 'one', 'IMAGE']],
    ioAfter: ['write -P 3 1k 4k'],
    damage: (i) => i.setU16(i.refcount(6), 1),
  },
  {
    name: 'snapshot table is the header, and reaches over the end',
    options: 'cluster_size=4096,compat=0.10',
    damage: (i) => i.setU32(60, 2000),
  },
  {
    name: 'snapshot L1 unaligned',
    commands: [['snapshot', '-c', 'one', 'IMAGE']],
    damage: (i) => i.setU64(i.snapshots, i.u64(i.snapshots) + 8n),
  },
  {
    name: 'snapshot L1 too large',
    commands: [['snapshot', '-c', 'one', 'IMAGE']],
    damage: (i) => i.setU32(i.snapshots + 8, 0x7fffffff),
  },
  {
    name: 'snapshot L1 beyond the end',
    commands: [['snapshot', '-c', 'one', 'IMAGE']],
    damage: (i) => i.setU64(i.snapshots, 0x100000),
  },
  {
    name: 'snapshot without extra data',
    commands: [['snapshot', '-c', 'one', 'IMAGE']],
    damage: (i) => {
      const e = i.bytes(i.snapshots, 40);
      const tail = i.bytes(i.snapshots + 40 + i.u32(i.snapshots + 36), 16);
      e.writeUInt32BE(0, 36);
      i.put(i.snapshots, Buffer.concat([e, tail, Buffer.alloc(24)]));
    },
  },
  {
    name: 'snapshot with much extra data',
    options: 'cluster_size=4096',
    commands: [['snapshot', '-c', 'one', 'IMAGE']],
    damage: (i) => {
      const e = i.bytes(i.snapshots, 64);
      const tail = i.bytes(i.snapshots + 40 + i.u32(i.snapshots + 36), 16);
      e.writeUInt32BE(2000, 36);
      i.put(i.snapshots, Buffer.concat([e, Buffer.alloc(2000 - 24), tail]));
    },
  },
  {
    name: 'two snapshots, the count too large',
    commands: [
      ['snapshot', '-c', 'one', 'IMAGE'],
      ['snapshot', '-c', 'two', 'IMAGE'],
    ],
    damage: (i) => i.setU32(60, 70000),
  },
  {
    name: 'snapshot refcount 1 bit too many',
    commands: [['snapshot', '-c', 'one', 'IMAGE']],
    damage: (i) => i.setU64(i.l2(0), i.u64(i.l2(0)) | COPIED),
  },
  {
    name: 'extended L2',
    size: '128k',
    options: 'cluster_size=16k,extended_l2=on',
    io: ['write 0 512', 'write 20k 9k', 'write -z 40k 512', 'write -z 64k 16k'],
  },
  {
    name: 'extended L2, allocated and zero',
    options: 'cluster_size=16k,extended_l2=on',
    io: ['write 0 16k', 'write 16k 16k'],
    damage: (i) => i.setU64(i.l2(0, 0, 2) + 8, 0x0000000100000001n),
  },
  {
    name: 'extended L2, allocated without cluster',
    options: 'cluster_size=16k,extended_l2=on',
    io: ['write 0 16k'],
    damage: (i) => i.setU64(i.l2(3, 0, 2) + 8, 0x0000000000000001n),
  },
  {
    name: 'extended L2, zero and allocated without cluster',
    options: 'cluster_size=16k,extended_l2=on',
    io: ['write 0 16k'],
    damage: (i) => i.setU64(i.l2(3, 0, 2) + 8, 0x0000000100000001n),
  },
  {
    name: 'extended L2, unaligned data',
    options: 'cluster_size=16k,extended_l2=on',
    io: ['write 0 16k'],
    damage: (i) => i.setU64(i.l2(0, 0, 2), i.u64(i.l2(0, 0, 2)) + 512n),
  },
  {
    name: 'extended L2, unaligned without data',
    options: 'cluster_size=16k,extended_l2=on',
    io: ['write 0 16k'],
    damage: (i) => {
      i.setU64(i.l2(0, 0, 2), i.u64(i.l2(0, 0, 2)) + 512n);
      i.setU64(i.l2(0, 0, 2) + 8, 0xffffffff00000000n);
    },
  },
  {
    name: 'extended L2, zero flag',
    options: 'cluster_size=16k,extended_l2=on',
    io: ['write 0 16k'],
    damage: (i) => i.setU64(i.l2(0, 0, 2), i.u64(i.l2(0, 0, 2)) + 1n),
  },
  {
    name: 'extended L2, compressed with a bitmap',
    options: 'cluster_size=16k,extended_l2=on',
    io: ['write -c 0 16k'],
    damage: (i) => i.setU64(i.l2(0, 0, 2) + 8, 1n),
  },
  { name: 'data file', options: 'cluster_size=512,data_file=DATA' },
  {
    name: 'data file, a leak and a lost copied flag',
    options: 'cluster_size=512,data_file=DATA',
    damage: (i) => {
      leak(i);
      i.setU64(i.l2(0), i.u64(i.l2(0)) & ~COPIED);
    },
  },
  {
    name: 'data file, entry beyond the end',
    options: 'cluster_size=512,data_file=DATA',
    damage: (i) => i.setU64(i.l2(0), COPIED | 0x10000000n),
  },
  {
    name: 'data file, compressed',
    options: 'cluster_size=512,data_file=DATA',
    damage: (i) => i.setU64(i.l2(0), (1n << 62n) | 0x1000n),
  },
  {
    name: 'bitmaps',
    size: '1M',
    options: 'cluster_size=512',
    commands: [
      ['bitmap', '--add', '-g', '512', 'IMAGE', 'b0'],
      ['bitmap', '--add', '-g', '512', 'IMAGE', 'b1'],
    ],
    ioAfter: ['write 3k 4k'],
  },
  {
    name: 'bitmap table entry invalid',
    size: '1M',
    options: 'cluster_size=512',
    commands: [['bitmap', '--add', '-g', '512', 'IMAGE', 'b0']],
    ioAfter: ['write 3k 4k'],
    damage: (i) => i.setU64(bitmapTable(i), i.u64(bitmapTable(i)) | 2n),
  },
  {
    name: 'bitmap table entry lost',
    size: '1M',
    options: 'cluster_size=512',
    commands: [['bitmap', '--add', '-g', '512', 'IMAGE', 'b0']],
    ioAfter: ['write 3k 4k'],
    damage: (i) => i.setU64(bitmapTable(i), 0),
  },
  {
    name: 'bitmap table beyond the end',
    size: '1M',
    options: 'cluster_size=512',
    commands: [['bitmap', '--add', '-g', '512', 'IMAGE', 'b0']],
    damage: (i) => i.setU64(bitmapDirectory(i), 0x100000),
  },
  {
    name: 'bitmap entry of an unknown type',
    size: '1M',
    options: 'cluster_size=512',
    commands: [['bitmap', '--add', '-g', '512', 'IMAGE', 'b0']],
    damage: (i) => i.put(bitmapDirectory(i) + 16, Uint8Array.of(9)),
  },
  {
    name: 'bitmaps without the autoclear bit',
    size: '1M',
    options: 'cluster_size=512',
    commands: [['bitmap', '--add', '-g', '512', 'IMAGE', 'b0']],
    damage: (i) => i.setU64(88, 0),
  },
];

/** Offset of the bitmap directory, found in the header extensions. */
function bitmapDirectory(image: ImagePatch): number {
  for (let at = image.u32(100); ; ) {
    const type = image.u32(at);
    if (type === 0x23852875) return Number(image.u64(at + 24));
    if (type === 0) throw new Error('no bitmaps extension');
    at += 8 + Math.ceil(image.u32(at + 4) / 8) * 8;
  }
}

function bitmapTable(image: ImagePatch): number {
  return Number(image.u64(bitmapDirectory(image)));
}

export const defaultIo = WRITES;

/** A sound image of some variety, for damage at random places: many tables, snapshots, compressed clusters, bitmaps. */
export const variedImages: readonly CheckCase[] = [
  {
    name: 'small clusters',
    options: 'cluster_size=512',
    size: '1M',
    io: ['write -P 1 0 100k', 'write -P 2 300k 700', 'write -z 64k 8k', 'discard 90k 4k'],
    commands: [['snapshot', '-c', 'one', 'IMAGE']],
    ioAfter: ['write -P 3 50k 30k', 'write -P 4 500k 3k'],
  },
  {
    name: 'compressed clusters and wide refcounts',
    options: 'cluster_size=4096,refcount_bits=64',
    size: '8M',
    io: ['write -c -P 1 0 64k', 'write -P 2 100k 90k', 'write -c -P 3 1M 32k', 'write -P 3 8k 4k'],
  },
  {
    name: 'extended L2 and narrow refcounts',
    options: 'cluster_size=16k,extended_l2=on,refcount_bits=2',
    size: '8M',
    io: ['write -P 1 1k 40k', 'write -z 100k 100k', 'write -P 2 1M 5k'],
  },
  {
    name: 'bitmaps',
    options: 'cluster_size=1024',
    size: '1M',
    commands: [['bitmap', '--add', '-g', '512', 'IMAGE', 'b0']],
    ioAfter: ['write 3k 80k', 'write 500k 4k'],
  },
];
