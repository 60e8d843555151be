/** VDI against the reference: damaged headers and maps, options, and what each makes of the other's images. */
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { golden } from '../golden/harness.js';
import { describeInterop } from '../support/reference.js';

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

describeInterop('vdi: as the reference', () => {
  const g = golden();
  const base = join(g.folder, 'base.vdi');
  spawnSync('qemu-img', ['create', '-q', '-f', 'vdi', base, '5M']);
  spawnSync('qemu-io', [
    '-f',
    'vdi',
    '-c',
    'write -P 1 0 1M',
    '-c',
    'write -P 2 4M 1M',
    '-c',
    'write 2M 5k',
    base,
  ]);
  spawnSync('qemu-img', [
    'create',
    '-q',
    '-f',
    'vdi',
    '-o',
    'static=on',
    join(g.folder, 'static.vdi'),
    '2049k',
  ]);
  const bytes = readFileSync(base);
  const damaged = (name: string, at: number, value: Buffer) => {
    const copy = Buffer.from(bytes);
    copy.set(value, at);
    writeFileSync(join(g.folder, `${name}.vdi`), copy);
  };
  for (const name of ['base', 'static']) {
    g.same(`info ${name}.vdi`);
    g.same(`map --output json ${name}.vdi`);
    g.same(`check ${name}.vdi`);
    g.same(`check -r all ${name}.vdi`);
    g.same(`resize ${name}.vdi 20M`);
  }
  g.same('info --output json base.vdi');
  g.same('measure -O vdi --size 10M');
  g.same('create -f vdi -o help');
  g.same('create -f vdi -o size=562949819203585 x');
  g.same('create -f vdi -o block_size=64k x 1M');
  g.same('create -f vdi -b base.vdi x 1M');
  g.sameWriting('convert -O vdi base.vdi out', 'check out', 'compare out base.vdi', 'map --output json out');
  g.sameWriting('convert -O vdi -o static=on base.vdi out', 'check out', 'compare out base.vdi');
  g.sameWriting('convert -n -O vdi base.vdi static.vdi', 'check static.vdi');

  for (const [name, at, value] of [
    ['signature', 0x40, u32(5)],
    ['version', 0x44, u32(0x20001)],
    ['map-offset', 0x154, u32(0x201)],
    ['data-offset', 0x158, u32(0x401)],
    ['sector-size', 0x168, u32(4096)],
    ['odd-size', 0x170, u64(5242879n)],
    ['large-size', 0x170, u64(5242881n)],
    ['huge-size', 0x170, u64(1n << 62n)],
    ['block-size', 0x178, u32(0)],
    ['many-blocks', 0x180, u32(0x2000_0000)],
    ['more-blocks', 0x180, u32(9)],
    ['count', 0x184, u32(99)],
    ['link', 0x1a8, u32(1)],
    ['parent', 0x1b8, u32(1)],
    ['twice', 0x204, u32(0)],
    ['too-large', 0x204, u32(77)],
    ['discarded', 0x204, u32(0xffff_fffe)],
  ] as const) {
    damaged(name, at, value);
    g.same(`check -f vdi ${name}.vdi`);
  }
  g.same('map --output json discarded.vdi');
});
