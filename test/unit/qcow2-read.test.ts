/** Reading qcow2 images that the reference made. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop, tempDir } from '../support/reference.js';
import { load, openImage, qemuImg, qemuImgIn, qemuIo, random, readAll } from './qcow2-support.js';

const MiB = 1 << 20;

/** Random qemu-io commands: writes, compressed writes, zeroes, discards. */
function commands(seed: number, size: number, compressed: boolean, unit: number): string[] {
  const pick = random(seed);
  const list: string[] = [];
  for (let i = 0; i < 60; i++) {
    const at = pick(size / 512) * 512;
    const length = Math.min(size - at, (1 + pick(300)) * 512);
    const aligned = Math.min(at - (at % unit), size - unit);
    switch (pick(6)) {
      case 0:
        list.push(`write -z ${at} ${length}`);
        break;
      case 1:
        list.push(`write -z -u ${at} ${length}`);
        break;
      case 2:
        list.push(`discard ${aligned} ${unit}`);
        break;
      case 3:
        if (compressed) {
          // clusters that are mapped cannot be written compressed
          list.push(`discard ${aligned} ${unit}`, `write -c -P ${pick(255) + 1} ${aligned} ${unit}`);
          break;
        }
        list.push(`write -P ${pick(255) + 1} ${at} ${length}`);
        break;
      default:
        list.push(`write -P ${pick(255) + 1} ${at} ${length}`);
    }
  }
  return list;
}

const variants: readonly (readonly [string, number])[] = [
  ['', 65536],
  ['compat=0.10', 65536],
  ['cluster_size=512', 512],
  ['cluster_size=4k,refcount_bits=1', 4096],
  ['cluster_size=4k,refcount_bits=64', 4096],
  ['cluster_size=2M', 2 * MiB],
  ['compression_type=zstd', 65536],
  ['extended_l2=on', 65536],
  ['extended_l2=on,cluster_size=16k,compression_type=zstd', 16384],
  ['preallocation=metadata', 65536],
  ['lazy_refcounts=on', 65536],
  ['data_file=there.raw', 65536],
];

describeInterop('qcow2: images that the reference wrote', () => {
  const folder = tempDir();
  const path = join(folder, 'theirs.qcow2');
  const rawPath = join(folder, 'theirs.raw');
  const expected = (...args: string[]) => {
    const done = qemuImgIn(folder, 'convert', '-O', 'raw', ...args, path, rawPath);
    if (done.status !== 0) throw new Error(done.stderr);
    return readFileSync(rawPath);
  };

  variants.forEach(([options, unit], index) => {
    it(`content: ${options || 'defaults'}`, async () => {
      const size = 6 * MiB;
      const text = options.replace('there.raw', join(folder, 'there.raw'));
      qemuImg('create', '-q', '-f', 'qcow2', ...(text === '' ? [] : ['-o', text]), path, String(size));
      qemuIo(path, ...commands(index + 1, size, !options.includes('data_file'), unit));
      const want = expected('-f', 'qcow2');
      const dataFile = options.includes('data_file') ? { dataFile: load(join(folder, 'there.raw')) } : {};
      const { image } = await openImage({ file: load(path), ...dataFile });
      expect(Buffer.compare(await readAll(image), want)).toBe(0);
      // small reads cut clusters, also compressed ones
      const pick = random(index);
      for (let i = 0; i < 200; i++) {
        const at = pick(size);
        const got = new Uint8Array(Math.min(size - at, 1 + pick(3000)));
        await image.read(at, got);
        expect(Buffer.compare(got, want.subarray(at, at + got.length))).toBe(0);
      }
    });
  });

  it('whole images compressed by the reference, zlib and zstd', async () => {
    const source = join(folder, 'source.raw');
    qemuImg('create', '-q', '-f', 'raw', source, '6M');
    const done = qemuImg('convert', '-O', 'raw', '-f', 'raw', process.execPath, source);
    expect(done.stderr).toBe('');
    qemuImg('resize', '-q', '-f', 'raw', '--shrink', source, '6M');
    for (const type of ['zlib', 'zstd']) {
      for (const cluster of ['4k', '64k', '2M']) {
        const options = `compression_type=${type},cluster_size=${cluster}`;
        qemuImg('convert', '-c', '-O', 'qcow2', '-f', 'raw', '-o', options, source, path);
        const { image } = await openImage({ file: load(path) });
        expect(Buffer.compare(await readAll(image), readFileSync(source)), options).toBe(0);
      }
    }
  });

  it('snapshots are listed, and their content is what it was; the image can be written beside them', async () => {
    const size = 4 * MiB;
    for (const options of ['', 'extended_l2=on', 'cluster_size=4k', 'compat=0.10']) {
      qemuImg('create', '-q', '-f', 'qcow2', ...(options === '' ? [] : ['-o', options]), path, String(size));
      const contents: Buffer[] = [];
      for (const [seed, name] of [
        [1, 'first'],
        [2, 'second'],
      ] as const) {
        qemuIo(path, ...commands(seed, size, true, 65536));
        contents.push(expected('-f', 'qcow2'));
        qemuImg('snapshot', '-c', name, path);
      }
      qemuIo(path, ...commands(3, size, false, 65536));
      contents.push(expected('-f', 'qcow2'));

      const file = load(path);
      const { image, node } = await openImage({ file });
      const list = node.snapshots.list();
      expect(list.map(({ id, name, diskSize }) => [id, name, diskSize])).toEqual([
        ['1', 'first', size],
        ['2', 'second', size],
      ]);
      for (const [index, snapshot] of list.entries()) {
        const view = image.withFormat(await node.snapshots.view(snapshot));
        expect(Buffer.compare(await readAll(view), contents[index]!)).toBe(0);
      }
      expect(Buffer.compare(await readAll(image), contents[2]!)).toBe(0);

      // shared clusters and shared tables are copied before they are changed
      const writable = await openImage({ file }, { writable: true });
      const now = Buffer.from(contents[2]!);
      const pick = random(9);
      for (let i = 0; i < 40; i++) {
        const at = pick(size / 512) * 512;
        const bytes = Buffer.alloc(Math.min(size - at, 512 * (1 + pick(200))), i + 1);
        bytes.copy(now, at);
        await writable.image.write(at, bytes);
      }
      await writable.image.zero({ at: MiB, length: MiB });
      now.fill(0, MiB, 2 * MiB);
      await writable.image.close();
      const after = join(folder, 'after.qcow2');
      writeFileSync(after, file.bytes());
      const check = qemuImg('check', '-f', 'qcow2', after);
      expect(check.stdout + check.stderr, options).toMatch(/No errors were found/);
      qemuImg('convert', '-f', 'qcow2', '-O', 'raw', after, rawPath);
      expect(Buffer.compare(readFileSync(rawPath), now)).toBe(0);
      for (const [index, name] of ['first', 'second'].entries()) {
        qemuImg('convert', '-f', 'qcow2', '-l', name, '-O', 'raw', after, rawPath);
        expect(Buffer.compare(readFileSync(rawPath), contents[index]!)).toBe(0);
      }
    }
  });

  it('info says what the reference says', async () => {
    const cases = [
      '',
      'compat=0.10',
      'lazy_refcounts=on,refcount_bits=32',
      'compression_type=zstd,extended_l2=on',
      `data_file=${join(folder, 'i.raw')},data_file_raw=on`,
    ];
    for (const options of cases) {
      qemuImg('create', '-q', '-f', 'qcow2', ...(options === '' ? [] : ['-o', options]), path, '1M');
      if (options === '') {
        qemuImg('bitmap', '--add', '-g', '32k', path, 'one');
        qemuImg('bitmap', '--add', '--disable', path, 'two');
      }
      const theirs = JSON.parse(qemuImg('info', '--output=json', path).stdout);
      const { node } = await openImage({ file: load(path) }, { metadataOnly: true });
      const ours = node.info();
      expect(JSON.stringify(ours.specific)).toBe(JSON.stringify(theirs['format-specific']));
      expect(ours.clusterSize).toBe(theirs['cluster-size']);
      expect(ours.dirty).toBe(theirs['dirty-flag']);
    }
  });
});
