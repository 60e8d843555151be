/** Small qcow2 images, ways in which they are damaged, and command lines that meet the damage; all of it from a seed. */
import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../support/reference.js';
import { generator } from '../support/stamped.js';
import { ImagePatch } from './check-cases.js';

/**
 * What an image is made with, and what is in it beside data. None has snapshots and bitmaps: the reference's repair takes all
 * snapshots of such an image away, sound as it may be.
 */
const KINDS: Readonly<Record<string, { readonly options: string; readonly parts: string }>> = {
  plain: { options: 'cluster_size=4k', parts: 'snapshot compressed' },
  default: { options: 'cluster_size=64k', parts: 'snapshot' },
  bitmaps: { options: 'cluster_size=4k', parts: 'bitmap compressed' },
  backed: { options: 'cluster_size=4k', parts: 'backing snapshot' },
  v2: { options: 'cluster_size=4k,compat=0.10', parts: 'snapshot compressed' },
  extended: { options: 'cluster_size=16k,extended_l2=on', parts: 'snapshot compressed' },
  external: { options: 'cluster_size=4k,data_file=ext.raw', parts: 'bitmap' },
  narrow: { options: 'cluster_size=4k,refcount_bits=1', parts: 'bitmap compressed' },
};
const SIZE = '3M';

function must(folder: string, program: string, ...args: string[]): void {
  const { status, stdout, stderr } = run(program, args, { cwd: folder });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${stdout}${stderr}`);
}

/** Makes the sound images in a folder. */
export function makeImages(folder: string): void {
  writeFileSync(join(folder, 'new.raw'), Buffer.alloc(1 << 20, 'n'));
  must(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', 'base.qcow2', SIZE);
  must(folder, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 9 1M 1M', 'base.qcow2');
  for (const [kind, { options, parts }] of Object.entries(KINDS)) {
    const name = `${kind}.qcow2`;
    const img = (...args: string[]) => must(folder, 'qemu-img', ...args);
    const io = (...lines: string[]) =>
      must(folder, 'qemu-io', '-f', 'qcow2', ...lines.flatMap((line) => ['-c', line]), name);
    const backing = parts.includes('backing') ? ['-b', 'base.qcow2', '-F', 'qcow2'] : [];
    img('create', '-q', '-f', 'qcow2', '-o', options, ...backing, name, SIZE);
    io('write -P 1 0 200k', 'write -P 2 2500k 100k', 'write -z 300k 64k');
    if (parts.includes('compressed')) io('write -c -P 3 1M 128k');
    if (parts.includes('bitmap')) {
      img('bitmap', '--add', '-g', '4k', name, 'b0');
      img('bitmap', '--add', '--disable', name, 'b1');
    }
    if (parts.includes('snapshot')) {
      img('snapshot', '-c', 's0', name);
      io('write -P 4 64k 64k');
      img('snapshot', '-c', 's1', name);
    }
    io('write -P 5 100k 100k');
  }
}

/** Where things are in an image that is still sound. */
class Places {
  readonly #patch: ImagePatch;
  constructor(patch: ImagePatch) {
    this.#patch = patch;
  }
  #named(at: number): number {
    return Number(this.#patch.u64(at) & 0x00ff_ffff_ffff_fe00n);
  }
  get version(): number {
    return this.#patch.u32(4);
  }
  get l1(): number {
    return this.#named(40);
  }
  get l2(): number {
    return this.#named(this.l1);
  }
  get refcountTable(): number {
    return this.#named(48);
  }
  get refcountBlock(): number {
    return this.#named(this.refcountTable);
  }
  get snapshots(): number {
    return this.#named(64);
  }
  get snapshotL1(): number {
    return this.snapshots === 0 ? 0 : this.#named(this.snapshots);
  }
  get snapshotL2(): number {
    return this.snapshotL1 === 0 ? 0 : this.#named(this.snapshotL1);
  }
  /** Offset of a header extension's data, 0: none. */
  extension(type: number): number {
    let at = this.version === 2 ? 72 : this.#patch.u32(100);
    for (;;) {
      const found = this.#patch.u32(at);
      if (found === 0) return 0;
      if (found === type) return at + 8;
      at += 8 + Math.ceil(this.#patch.u32(at + 4) / 8) * 8;
    }
  }
  get bitmapExtension(): number {
    return this.extension(0x23852875);
  }
  get bitmaps(): number {
    return this.bitmapExtension === 0 ? 0 : this.#named(this.bitmapExtension + 16);
  }
  get bitmapTable(): number {
    return this.bitmaps === 0 ? 0 : this.#named(this.bitmaps);
  }
  /** All of these, those that the image has. */
  all(): number[] {
    const { l1, l2, refcountTable, refcountBlock, snapshots, snapshotL1, snapshotL2, bitmaps, bitmapTable } =
      this;
    return [
      ...[0, l1, l2, refcountTable, refcountBlock],
      ...[snapshots, snapshotL1, snapshotL2, bitmaps, bitmapTable].filter((at) => at !== 0),
    ];
  }
}

interface Field {
  readonly name: string;
  /** Undefined where the image has none. */
  readonly at: (places: Places) => number | undefined;
  readonly bytes: 2 | 4 | 8;
}

const header = (name: string, at: number, bytes: 4 | 8): Field => ({ name, bytes, at: () => at });
const newer = (name: string, at: number, bytes: 4 | 8): Field => ({
  name,
  bytes,
  at: ({ version }) => (version === 2 ? undefined : at),
});
const inside = (name: string, start: keyof Places, at: number, bytes: 2 | 4 | 8): Field => ({
  name,
  bytes,
  at: (places) => (places[start] === 0 ? undefined : (places[start] as number) + at),
});

const FIELDS: readonly Field[] = [
  header('backing offset', 8, 8),
  header('backing length', 16, 4),
  header('cluster bits', 20, 4),
  header('size', 24, 8),
  header('crypt method', 32, 4),
  header('L1 size', 36, 4),
  header('L1 offset', 40, 8),
  header('refcount table offset', 48, 8),
  header('refcount table clusters', 56, 4),
  header('snapshot count', 60, 4),
  header('snapshots offset', 64, 8),
  newer('incompatible', 72, 8),
  newer('compatible', 80, 8),
  newer('autoclear', 88, 8),
  newer('refcount order', 96, 4),
  newer('header length', 100, 4),
  newer('compression type', 104, 4),
  ...[0, 1].map((i) => inside(`L1 entry ${i}`, 'l1', i * 8, 8)),
  ...[0, 1, 17, 26, 31, 75, 80].map((i) => inside(`L2 entry ${i}`, 'l2', i * 8, 8)),
  inside('refcount table entry 0', 'refcountTable', 0, 8),
  inside('refcount table entry 1', 'refcountTable', 8, 8),
  ...[0, 2, 6, 9, 14, 30].map((i) => inside(`refcount ${i}`, 'refcountBlock', i * 2, 2)),
  inside('snapshot L1 offset', 'snapshots', 0, 8),
  inside('snapshot L1 size', 'snapshots', 8, 4),
  inside('snapshot id and name size', 'snapshots', 12, 4),
  inside('snapshot state size', 'snapshots', 32, 4),
  inside('snapshot extra size', 'snapshots', 36, 4),
  inside('snapshot disk size', 'snapshots', 48, 8),
  inside('snapshot L1 entry 0', 'snapshotL1', 0, 8),
  inside('snapshot L2 entry 0', 'snapshotL2', 0, 8),
  inside('snapshot L2 entry 20', 'snapshotL2', 160, 8),
  inside('bitmaps extension length', 'bitmapExtension', -4, 4),
  inside('bitmap count', 'bitmapExtension', 0, 4),
  inside('bitmap reserved', 'bitmapExtension', 4, 4),
  inside('bitmap directory size', 'bitmapExtension', 8, 8),
  inside('bitmap directory offset', 'bitmapExtension', 16, 8),
  inside('bitmap table offset', 'bitmaps', 0, 8),
  inside('bitmap table size', 'bitmaps', 8, 4),
  inside('bitmap flags', 'bitmaps', 12, 4),
  inside('bitmap type, granularity and name size', 'bitmaps', 16, 4),
  inside('bitmap extra size', 'bitmaps', 20, 4),
  inside('bitmap table entry 0', 'bitmapTable', 0, 8),
];

const LINES = [
  'info D',
  'info --output=json D',
  'check D',
  'check --output=json D',
  'check -r leaks D',
  'check -r all D',
  'check -r all D',
  'map D',
  'map --output=json D',
  'convert -O raw D out.raw',
  'convert -O raw -l snapshot.name=s0 D out.raw',
  'compare D new.raw',
  'snapshot -l D',
  'snapshot -c s2 D',
  'snapshot -d s0 D',
  'snapshot -a s1 D',
  'bitmap --add D b2',
  'bitmap --remove D b0',
  'bitmap --merge b1 D b0',
  'resize D +1M',
  'resize --shrink D 1M',
  'convert -n -O qcow2 -f raw new.raw D',
  'commit D',
  'commit -d D',
  'rebase -u -F qcow2 -b base.qcow2 D',
  'amend -o refcount_bits=64 D',
  'amend -o compat=0.10 D',
];

export interface Damaged {
  readonly kind: string;
  readonly damage: string;
  readonly line: string;
}

/** Puts the image of this seed, damaged in one way, as `name` into a folder that has the sound ones. */
export function damage(seed: number, folder: string, name: string): Damaged {
  const random = generator(seed * 7919 + 1);
  const below = (limit: number) => Math.floor(random() * limit);
  const pick = <T>(values: readonly T[]): T => values[below(values.length)]!;
  const kind = pick(Object.keys(KINDS));
  copyFileSync(join(folder, `${kind}.qcow2`), join(folder, name));
  const patch = new ImagePatch(join(folder, name));
  try {
    const places = new Places(patch);
    const line = pick(LINES).replace('D', name);
    if (random() < 0.35) {
      const at = pick(places.all()) + below(random() < 0.5 ? 24 : 200);
      const bit = below(8);
      patch.put(at, new Uint8Array([patch.bytes(at, 1)[0]! ^ (1 << bit)]));
      return { kind, line, damage: `bit ${bit} of byte ${at}` };
    }
    for (;;) {
      const field = pick(FIELDS);
      const at = field.at(places);
      if (at === undefined) continue;
      const old =
        field.bytes === 8 ? patch.u64(at) : BigInt(patch.bytes(at, field.bytes).readUIntBE(0, field.bytes));
      const most = (1n << BigInt(field.bytes * 8)) - 1n;
      const flags = old & 0xff00_0000_0000_0000n;
      const value =
        pick([
          () => 0n,
          () => most,
          () => old + 1n,
          () => old - 1n,
          () => old ^ (1n << BigInt(below(field.bytes * 8))),
          () => old * 2n,
          () => BigInt(below(256)),
          // Over something else.
          () => flags | BigInt(pick(places.all())),
          () => flags | BigInt(pick(places.all()) + 512),
          // Behind the file.
          () =>
            flags | BigInt(Math.ceil(patch.size / patch.cluster) * patch.cluster + below(2) * patch.cluster),
          () => flags | (1n << BigInt(30 + below(24))),
        ])() & most;
      if (value === old) continue;
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64BE(value);
      patch.put(at, bytes.subarray(8 - field.bytes));
      return { kind, line, damage: `${field.name}: 0x${old.toString(16)} -> 0x${value.toString(16)}` };
    }
  } finally {
    patch.close();
  }
}
