/** Parallels against the reference: damaged headers and BATs, the extension, options, and a real image. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, it } from 'vitest';
import { golden, ours, words } from '../golden/harness.js';
import { describeInterop, tempDir } from '../support/reference.js';
import { parallelsImage } from '../unit/parallels-images.js';

const u32 = (value: number) => {
  const out = Buffer.alloc(4);
  out.writeUInt32LE(value);
  return out;
};
const u64 = (value: bigint) => {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(value);
  return out;
};

describeInterop('parallels: as the reference', () => {
  const g = golden();
  const base = join(g.folder, 'base.hds');
  spawnSync('qemu-img', ['create', '-q', '-f', 'parallels', '-o', 'cluster_size=64k', base, '640k']);
  const writes = ['write -P 1 0 64k', 'write -P 2 320k 64k', 'write -P 3 192k 512', 'write -P 4 256k 1k'];
  spawnSync('qemu-io', ['-f', 'parallels', ...writes.flatMap((write) => ['-c', write]), base]);
  const bytes = readFileSync(base);
  const damaged = (name: string, ...changes: readonly (readonly [number, Buffer])[]) => {
    const copy = Buffer.from(bytes);
    for (const [at, value] of changes) copy.set(value, at);
    writeFileSync(join(g.folder, `${name}.hds`), copy);
  };
  writeFileSync(join(g.folder, 'leak.hds'), Buffer.concat([bytes, Buffer.alloc(100_000)]));
  writeFileSync(join(g.folder, 'v1.hds'), parallelsImage({ v1: true, bat: [2, 3, 0, 1] }));
  const bitmap = parallelsImage({ bat: [0, 1, 0], clusters: 4, extension: 2 });
  writeFileSync(join(g.folder, 'bitmap.hds'), bitmap);
  bitmap[2 * 4096 + 30] = 1;
  writeFileSync(join(g.folder, 'checksum.hds'), bitmap);

  for (const name of ['base', 'leak', 'v1', 'bitmap', 'checksum']) {
    g.same(`info ${name}.hds`);
    g.same(`check ${name}.hds`);
  }
  g.same('check --output json leak.hds');
  g.same('map --output json v1.hds');
  g.same('resize base.hds 20M');
  g.same('measure -O parallels --size 10M');
  g.same('create -f parallels -o help');
  for (const size of ['0', '2G', '9G']) g.same(`create -f parallels -o cluster_size=${size} x 10M`);
  g.same('create -f parallels -o cluster_size=512 x 3T');
  g.same('create -f parallels -b base.hds x 1M');
  g.same('info --image-opts driver=parallels,prealloc-mode=full,file.filename=base.hds');
  for (const options of ['', '-o cluster_size=4k', '-o cluster_size=63k', '-o cluster_size=513']) {
    g.sameWriting(`convert -O parallels ${options} base.hds out`, 'check out', 'compare out base.hds');
  }
  g.sameWriting('check -r all leak.hds', 'check leak.hds');
  g.sameWriting('check -r leaks leak.hds', 'check leak.hds');

  for (const [name, ...changes] of [
    ['magic', [0, u32(0)]],
    ['version', [16, u32(3)]],
    ['tracks', [28, u32(0)]],
    ['large-tracks', [28, u32(0x7fff_ffff)]],
    ['large-bat', [32, u32(0x2000_0000)]],
    ['short-bat', [32, u32(5)]],
    ['huge', [36, u64(1n << 54n)]],
    ['in-use', [44, u32(0x746f6e59)]],
    ['closed', [44, u32(0x312e3276)]],
    ['no-data-off', [48, u32(0)]],
    ['data-off', [48, u32(0xffff_ffff)]],
    ['extension', [56, u64(1n)]],
    ['duplicate', [68, u32(1)]],
    ['last-duplicate', [64 + 36, u32(1)]],
    ['all', [44, u32(0x746f6e59)], [48, u32(1)], [68, u32(1)]],
  ] as const) {
    damaged(name, ...changes);
    g.same(`check -f parallels ${name}.hds`);
  }
  for (const name of ['in-use', 'data-off', 'duplicate', 'all']) {
    g.sameWriting(`check -f parallels -r all ${name}.hds`, `check -f parallels ${name}.hds`);
  }
  // Opened for writing it is repaired first, in as many words.
  for (const name of ['closed', 'all']) {
    g.sameWriting(
      `convert -n -f parallels -O parallels base.hds ${name}.hds`,
      `compare base.hds ${name}.hds`,
    );
  }
  g.differs(
    'convert -n -f parallels -O parallels base.hds short-bat.hds',
    'the reference fails its own assertion',
  );
  damaged('outside', [72, u32(50)]);
  g.sameWriting('check -r all outside.hds', 'check outside.hds');
  g.differs('check outside.hds', 'the reference fails its own assertion');
});

const sample = resolve('../shared/corpus/parallels-v1.bz2');
it.skipIf(!existsSync(sample))('a real image of the old kind', () => {
  const folder = tempDir();
  const image = spawnSync('bzip2', ['-dc', sample], { maxBuffer: 2 ** 28 }).stdout;
  writeFileSync(join(folder, 'v1.hds'), image);
  expect(ours(words('convert -O raw v1.hds raw'), folder)).toEqual({ status: 0, stdout: '', stderr: '' });
  const hash = createHash('sha256')
    .update(readFileSync(join(folder, 'raw')))
    .digest('hex');
  expect(hash).toBe('15faf41ebc93b5f734341cb7a2d909001e3f7306960f9d8bc63894f2a8e5bc45');
});
