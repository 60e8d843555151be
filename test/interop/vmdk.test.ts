/** VMDK against the reference: what it writes we read, and what neither of us writes we read alike. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname, isAbsolute, join } from 'node:path';
import { expect, test } from 'vitest';
import { vmdk } from '../../src/engine/formats/vmdk/index.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { openFile } from '../../src/engine/storage/file.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { cowd, descriptor, grainsOf, hosted, seSparse, stamp } from '../unit/vmdk-images.js';

const dir = tempDir();
const MIB = 2 ** 20;
const BLOCK = 4096;

/** An image and its chain, without locks or gate: this is about the driver. */
async function open(path: string): Promise<ImageNode> {
  const opener = (name: string) => openFile({ path: name, writable: false });
  const named = (name: string) => (isAbsolute(name) ? name : join(dirname(path), name));
  const file = await opener(path);
  try {
    const format = await vmdk.open({
      file,
      writable: false,
      options: {},
      forCheck: false,
      metadataOnly: false,
      openChild: (_child, recorded) => opener(named(recorded!)),
      warn: () => {},
    });
    const backing = format.backing === undefined ? undefined : await open(named(format.backing.filename));
    return new ImageNode({ filename: path, path, driver: vmdk, format, file, backing, writable: false });
  } catch (error) {
    await file.close();
    throw error;
  }
}

function qemuImg(...args: string[]): string {
  const { status, stdout, stderr } = run(reference.qemuImg!, args, { cwd: dir });
  if (status !== 0) throw new Error(`qemu-img ${args.join(' ')}: ${stderr}`);
  return stdout;
}

function qemuIo(file: string, ...commands: string[]): void {
  const args = ['-f', 'vmdk', ...commands.flatMap((command) => ['-c', command]), file];
  const { status, stdout, stderr } = run(reference.qemuIo!, args, { cwd: dir });
  if (status !== 0 || /failed|ERROR/.test(stdout)) throw new Error(`qemu-io ${commands}: ${stdout}${stderr}`);
}

/** A raw file of a size, with the 4 KiB blocks named, each stamped with its number. */
function makeRaw(name: string, size: number, blocks: Iterable<number>): void {
  const fd = openSync(join(dir, name), 'w');
  ftruncateSync(fd, size);
  for (const block of blocks) {
    const at = block * BLOCK;
    writeSync(fd, stamp(Math.min(BLOCK, size - at), block + 1), 0, Math.min(BLOCK, size - at), at);
  }
  closeSync(fd);
}

function* patches(size: number): Generator<number> {
  const count = Math.ceil(size / BLOCK);
  for (let block = 0; block < count; block++) {
    // Dense, single blocks, holes of several grains, and the very end.
    if (block < 40 || block % 37 === 0 || (block % 500 > 400 && block % 3 > 0) || block >= count - 2)
      yield block;
  }
}

interface Entry {
  start: number;
  length: number;
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
  compressed: boolean;
  offset?: number;
}

/** What the reference's `map --output=json` says, from our answers. */
async function mapOf(image: ImageNode): Promise<Entry[]> {
  const entries: Entry[] = [];
  for (let at = 0; at < image.size; ) {
    const { kind, length, depth, extent } = await image.status({ at, length: image.size - at });
    const entry: Entry = {
      start: at,
      length,
      depth,
      present: kind !== 'none',
      zero: kind === 'zero' || kind === 'none',
      data: kind === 'data' || kind === 'packed',
      compressed: kind === 'packed',
      ...(extent?.kind === 'data' ? { offset: extent.at } : {}),
    };
    const last = entries.at(-1);
    if (
      last !== undefined &&
      last.depth === entry.depth &&
      last.present === entry.present &&
      last.zero === entry.zero &&
      last.data === entry.data &&
      last.compressed === entry.compressed &&
      (entry.offset === undefined ? last.offset === undefined : entry.offset === last.offset! + last.length)
    ) {
      last.length += length;
    } else entries.push(entry);
    at += length;
  }
  return entries;
}

/** Our reading of an image equals a raw file; only what we take for data, where the file is huge. */
async function expectContent(image: ImageNode, raw: string, onlyData = false): Promise<void> {
  const fd = openSync(join(dir, raw), 'r');
  try {
    for (let at = 0; at < image.size; ) {
      const run = onlyData
        ? await image.status({ at, length: image.size - at })
        : { kind: 'data', length: image.size - at };
      const length = Math.min(run.length, run.kind === 'data' || run.kind === 'packed' ? MIB : run.length);
      if (run.kind === 'data' || run.kind === 'packed') {
        const ours = Buffer.alloc(length, 0xee);
        const theirs = Buffer.alloc(length);
        await image.read(at, ours);
        readSync(fd, theirs, 0, length, at);
        if (!ours.equals(theirs)) throw new Error(`content differs in the MiB at ${at}`);
      }
      at += length;
    }
  } finally {
    closeSync(fd);
  }
}

/** Converts by the reference, reads by us, and compares maps and format-specific information too. */
async function expectSame(name: string, options: { map?: boolean; onlyData?: boolean } = {}): Promise<void> {
  qemuImg('convert', '-f', 'vmdk', '-O', 'raw', name, 'reference.raw');
  const image = await open(join(dir, name));
  try {
    const info = JSON.parse(qemuImg('info', '--output=json', '-f', 'vmdk', join(dir, name)));
    const ours = await image.format.info();
    expect(image.size).toBe(info['virtual-size']);
    expect(JSON.stringify(ours.specific)).toBe(JSON.stringify(info['format-specific']));
    expect(ours.clusterSize).toBe(info['cluster-size']);
    expect(ours.dirty).toBe(info['dirty-flag']);
    expect(image.format.backing?.filename).toBe(info['backing-filename']);
    if (options.map !== false) {
      expect(await mapOf(image)).toEqual(JSON.parse(qemuImg('map', '--output=json', '-f', 'vmdk', name)));
    }
    await expectContent(image, 'reference.raw', options.onlyData);
  } finally {
    await image.close();
  }
}

const SUBFORMATS = [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
  'streamOptimized',
] as const;

describeInterop('vmdk: images by the reference', () => {
  for (const subformat of SUBFORMATS) {
    for (const size of [512, 65536, 10 * MIB + 3 * 512, 70 * MIB - 512]) {
      test(`${subformat}, ${size} bytes`, async () => {
        makeRaw('source.raw', size, patches(size));
        const name = `${subformat}-${size}.vmdk`;
        qemuImg('convert', '-f', 'raw', '-O', 'vmdk', '-o', `subformat=${subformat}`, 'source.raw', name);
        await expectSame(name, { map: !subformat.endsWith('Flat') });
        const image = await open(join(dir, name));
        await expectContent(image, 'source.raw');
        await image.close();
      });
    }
  }

  test.each(['monolithicSparse', 'twoGbMaxExtentSparse'])('%s with zeroed grains', async (subformat) => {
    const name = `zeroed-${subformat}.vmdk`;
    qemuImg('create', '-q', '-f', 'vmdk', '-o', `subformat=${subformat},zeroed_grain=on`, name, `${3 * MIB}`);
    qemuIo(name, 'write -P 17 0 1M', 'write -z 256k 384k', 'write -z 2M 192k', 'write -P 3 64k 4k');
    await expectSame(name);
  });

  test('compat6, hardware and tools version', async () => {
    const options = 'compat6=on,toolsversion=7,adapter_type=lsilogic';
    qemuImg('create', '-q', '-f', 'vmdk', '-o', options, 'compat6.vmdk', '5M');
    qemuIo('compat6.vmdk', 'write -P 17 1M 1M');
    await expectSame('compat6.vmdk');
  });

  test.each(['twoGbMaxExtentSparse', 'twoGbMaxExtentFlat'])('%s of 5 GiB', async (subformat) => {
    const name = `big-${subformat}.vmdk`;
    qemuImg('create', '-q', '-f', 'vmdk', '-o', `subformat=${subformat}`, name, `${5 * 1024 * MIB + 1536}`);
    const edges = [0, 2 ** 31 - 65536, 2 ** 31 - 512, 2 ** 31, 2 ** 32 - 4096, 2 ** 32, 5 * 2 ** 30 - 4096];
    qemuIo(
      name,
      ...edges.map((at, n) => `write -P ${n + 1} ${at} 64k`.replace('64k', n === 6 ? '5632' : '64k')),
    );
    if (subformat.endsWith('Sparse')) await expectSame(name, { onlyData: true });
    const image = await open(join(dir, name));
    expect(image.format.children.size).toBe(3);
    for (const [n, at] of edges.entries()) {
      const probe = Buffer.alloc(512);
      await image.read(at, probe);
      expect(probe.every((byte) => byte === n + 1)).toBe(true);
    }
    await image.close();
  });

  test('a chain of backing files', async () => {
    qemuImg('create', '-q', '-f', 'vmdk', 'base.vmdk', `${4 * MIB}`);
    qemuIo('base.vmdk', 'write -P 1 0 1M', 'write -P 2 2M 512k');
    qemuImg(
      'create',
      '-q',
      '-f',
      'vmdk',
      '-o',
      'zeroed_grain=on',
      '-b',
      'base.vmdk',
      '-F',
      'vmdk',
      'mid.vmdk',
    );
    qemuIo('mid.vmdk', 'write -P 3 512k 64k', 'write -z 128k 64k');
    const split = 'subformat=twoGbMaxExtentSparse';
    qemuImg('create', '-q', '-f', 'vmdk', '-o', split, '-b', 'mid.vmdk', '-F', 'vmdk', 'top.vmdk');
    qemuIo('top.vmdk', 'write -P 4 3M 1k', 'write -P 5 2M 1k');
    await expectSame('top.vmdk');
    const image = await open(join(dir, 'top.vmdk'));
    expect(image.format.backing!.contentId).toBe(image.backing!.format.contentId);
    expect(image.backing!.format.backing!.contentId).toBe(image.backing!.backing!.format.contentId);
    await image.close();
  });
});

describeInterop('vmdk: hand-made images, read alike', () => {
  const make = (name: string, content: Buffer | string) =>
    writeFileSync(join(dir, name), typeof content === 'string' ? Buffer.from(content, 'latin1') : content);
  const grains = grainsOf(
    [0, stamp(65536, 1)],
    [2, stamp(65536, 2)],
    [3, stamp(65536, 3)],
    [515, stamp(65536, 4)],
    [1300, stamp(65536, 5)],
  );

  test.each([
    { footer: true },
    { footer: true, version: 1 },
    { footer: false, markers: false },
    { footer: false, capacity: 1300 * 128 + 1 },
  ])('stream %j', async (how) => {
    make('stream.vmdk', hosted({ capacity: 1301 * 128, grains, compress: true, ...how }));
    await expectSame('stream.vmdk');
  });

  test('a stream of 4,000 small grains, read at once', async () => {
    const many = grainsOf(...Array.from({ length: 4000 }, (_, n) => [n, stamp(1024, n)] as const));
    make('small.vmdk', hosted({ capacity: 8000, grains: many, grainSectors: 2, compress: true }));
    await expectSame('small.vmdk');
    const image = await open(join(dir, 'small.vmdk'));
    const whole = Buffer.alloc(image.size);
    await image.read(0, whole);
    expect(whole.equals(readFileSync(join(dir, 'reference.raw')))).toBe(true);
    await image.close();
  });

  test.each([
    { grainSectors: 8, entriesPerTable: 512, version: 2 },
    { grainSectors: 8, entriesPerTable: 7, version: 3 },
    { grainSectors: 3, entriesPerTable: 100, version: 1 },
    { grainSectors: 1, entriesPerTable: 1, version: 0 },
    { grainSectors: 128, entriesPerTable: 512, version: 1, flags: 1 },
  ])('hosted sparse %j', async (how) => {
    const bytes = how.grainSectors * 512;
    const own = grainsOf(
      [0, stamp(bytes, 1)],
      [1, 'zero'],
      [2, 'zero'],
      [3, stamp(bytes, 2)],
      [99, stamp(bytes, 3)],
      [519, stamp(bytes, 4)],
    );
    make('hosted.vmdk', hosted({ capacity: 520 * how.grainSectors, grains: own, ...how }));
    await expectSame('hosted.vmdk');
  });

  test.each([1, 8, 128])('vmfsSparse, grains of %i sectors', async (grainSectors) => {
    const bytes = grainSectors * 512;
    const own = grainsOf(
      [1, stamp(bytes, 1)],
      [2, stamp(bytes, 2)],
      [4095, stamp(bytes, 3)],
      [4096, stamp(bytes, 4)],
      [12289, stamp(bytes, 5)],
    );
    const capacity = 12290 * grainSectors;
    make('cow.vmdk', cowd({ capacity, grains: own, grainSectors }));
    make(
      'vmfssparse.vmdk',
      descriptor({ type: 'vmfsSparse', lines: [`RW ${capacity} VMFSSPARSE "cow.vmdk"`] }),
    );
    await expectSame('vmfssparse.vmdk', { onlyData: true });
  });

  test('seSparse', async () => {
    const own = grainsOf(
      [0, stamp(4096, 1)],
      [1, 'zero'],
      [2, 'unmapped'],
      [3, stamp(4096, 3)],
      [4096, stamp(4096, 4)],
      ...Array.from({ length: 4200 }, (_, n) => [20000 + n, stamp(4096, 100 + n)] as const),
    );
    make('se.vmdk', seSparse({ capacity: 250000, grains: own }));
    make('sesparse.vmdk', descriptor({ type: 'seSparse', lines: ['RW 250000 SESPARSE "se.vmdk"'] }));
    await expectSame('sesparse.vmdk', { onlyData: true });
  });

  // Sparse extents but the last are whole grains here: the reference's convert takes a hole in a last grain that is cut
  // short for a hole in the extent after it too (its read does not).
  test('a descriptor of extents of several kinds', async () => {
    make('flat.bin', stamp(64 * 512, 77));
    make('part.vmdk', hosted({ capacity: 384, grains: grainsOf([2, stamp(65536, 8)]) }));
    make('packed.vmdk', hosted({ capacity: 200, grains: grainsOf([0, stamp(65536, 9)]), compress: true }));
    const text = descriptor({
      type: 'vmfs',
      cid: 'abc',
      parentCid: '0x12',
      lines: [
        'RW 20 FLAT "flat.bin" 10',
        'RW 1 SPARSE "part.vmdk"',
        '  RW   30 VMFS "flat.bin"',
        'RW 0 FLAT "flat.bin" 0',
        'RW 200 FLAT "flat.bin" 60',
        'RW 200 SPARSE "packed.vmdk"',
      ],
    });
    make('mixed.vmdk', text.replaceAll('\n', '\r\n'));
    await expectSame('mixed.vmdk', { map: false });
  });

  test('directory, tables and grains past the end of the file are holes and zeros', async () => {
    const whole = hosted({ capacity: 1301 * 128, grains });
    make('cut.vmdk', whole.subarray(0, whole.length - 100_000));
    await expectSame('cut.vmdk');
    const far = Buffer.from(whole);
    far.writeBigUInt64LE(1n << 40n, 56);
    make('far.vmdk', far);
    await expectSame('far.vmdk');
    const tables = Buffer.from(whole);
    tables.writeUInt32LE(0xfffffff0, 21 * 512);
    make('tables.vmdk', tables);
    await expectSame('tables.vmdk');
  });
});

const CORPUS = join(import.meta.dirname, '../../../shared/corpus');
const SAMPLE = 'iotest-version3.vmdk';

/** The sample unpacked into the scratch folder, or why it cannot be. */
function unpackSample(): string | undefined {
  const packed = join(CORPUS, `${SAMPLE}.bz2`);
  if (!existsSync(packed)) return `no ${packed}`;
  const { status, stdout } = spawnSync('bzip2', ['-dc', packed], { maxBuffer: 256 * MIB });
  if (status !== 0) return 'no bzip2 to unpack it';
  writeFileSync(join(dir, SAMPLE), stdout);
  return undefined;
}

test('the corpus image of version 3 has its listed checksum', async ({ skip }) => {
  const reason = unpackSample();
  if (reason !== undefined) {
    process.stderr.write(`\nSKIPPED ${SAMPLE}: ${reason}\n`);
    skip(reason);
  }
  const readme = readFileSync(join(CORPUS, 'README.md'), 'utf8');
  const [, size, sum] = new RegExp(`${SAMPLE}\\S* \\| vmdk \\| (\\d+) \\| ([0-9a-f]{64})`).exec(readme)!;
  const image = await open(join(dir, SAMPLE));
  expect(image.size).toBe(Number(size));
  const hash = createHash('sha256');
  const zeros = Buffer.alloc(4 * MIB);
  const buffer = Buffer.alloc(4 * MIB);
  for (let at = 0; at < image.size; ) {
    const run = await image.status({ at, length: image.size - at });
    const stored = run.kind === 'data' || run.kind === 'packed';
    const length = Math.min(run.length, buffer.length);
    if (stored) await image.read(at, buffer.subarray(0, length));
    hash.update((stored ? buffer : zeros).subarray(0, length));
    at += length;
  }
  expect(hash.digest('hex')).toBe(sum);
  await image.close();
}, 180_000);
