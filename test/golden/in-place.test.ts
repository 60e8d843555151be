/** Subcommands that change an image where it is (snapshot, resize, bitmap): the same as the reference's, texts and images. */
import { join } from 'node:path';
import { describeInterop, reference, run } from '../support/reference.js';
import { golden, words } from './harness.js';

const IMAGES = `
create -q -f raw r.raw 4M
create -q -f qcow2 a.qcow2 4M
io a.qcow2 write -P 1 0 1M
snapshot -c one a.qcow2
io a.qcow2 write -P 2 512k 1M
snapshot -c two a.qcow2
io a.qcow2 write -P 3 64k 64k
create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 4M
io v2.qcow2 write -P 1 0 1M
snapshot -c 7 v2.qcow2
create -q -f qcow2 -o data_file=d.raw dd.qcow2 4M
create -q -f qcow2 small.qcow2 4M
snapshot -c one small.qcow2
resize -q small.qcow2 6M
create -q -f qcow2 base.qcow2 8M
io base.qcow2 write -P 1 0 8M
create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 4M
create -q -f qcow2 -o compat=0.10 -b base.qcow2 -F qcow2 topv2.qcow2 4M
create -q -f vmdk v.vmdk 4M
create -q -f qcow2 bm.qcow2 4M
bitmap --add bm.qcow2 b0
bitmap --add -g 4k --disable bm.qcow2 b1
io bm.qcow2 write 1M 300k
create -q -f qcow2 other.qcow2 4M
bitmap --add -g 512 other.qcow2 o
io other.qcow2 write 3M 1k
`;

function prepare(folder: string): void {
  for (const line of IMAGES.trim().split('\n')) {
    const args = words(line);
    const [program, rest] =
      args[0] === 'io'
        ? [reference.qemuIo!, ['-c', args.slice(2).join(' '), join(folder, args[1]!)]]
        : [reference.qemuImg!, args];
    const { status, stderr } = run(program, rest, { cwd: folder });
    if (status !== 0) throw new Error(`${line}: ${stderr}`);
  }
}

const SNAPSHOT = [
  '',
  'a.qcow2',
  '-l a.qcow2 b',
  '-l -c x a.qcow2',
  '-c x -c y a.qcow2',
  '-l a.qcow2',
  '-q -l a.qcow2',
  '-U -l a.qcow2',
  '-l r.raw',
  '-l dd.qcow2',
  '-l nofile',
  '-c x nofile',
  '-f zz a.qcow2',
  '-f qcow2 --image-opts driver=qcow2,file.filename=a.qcow2',
  '--image-opts driver=qcow2,file.filename=a.qcow2',
  '-T none -l a.qcow2',
  '-U -c x a.qcow2',
];

const RESIZE = [
  '',
  'a.qcow2',
  '5M',
  'a.qcow2 5M x',
  'a.qcow2 -1x',
  'a.qcow2 -.5M',
  '-1M a.qcow2',
  'a.qcow2 --1M',
  'a.qcow2 -foo',
  'a.qcow2 foo',
  'a.qcow2 +',
  'nofile 5M',
  'nofile x',
  '-f zz a.qcow2 5M',
  '-T none a.qcow2 5M',
  '-U a.qcow2 5M',
  '--preallocation=foo a.qcow2 8M',
  '--preallocation',
];

const BITMAP = [
  '',
  'bm.qcow2',
  'bm.qcow2 b0',
  '--add bm.qcow2',
  '--add bm.qcow2 b c',
  '--add -g x bm.qcow2 b',
  '--add -g -1 bm.qcow2 b',
  '-g 64k --clear bm.qcow2 b0',
  '--clear -b a.qcow2 bm.qcow2 b0',
  '--clear -F qcow2 bm.qcow2 b0',
  '--merge b0 -F qcow2 bm.qcow2 b0',
  '--add nofile b',
  '--add -f zz bm.qcow2 b',
  '-q --add bm.qcow2 b',
  '-U --add bm.qcow2 b',
];

/** Command lines that write, and what the reference is then asked about the result. */
const CHANGES: Readonly<Record<string, readonly string[]>> = {
  'snapshot -c x a.qcow2': ['check a.qcow2'],
  'snapshot -c x v2.qcow2': ['check v2.qcow2'],
  "snapshot -c '' a.qcow2": ['check a.qcow2'],
  'snapshot -c x dd.qcow2': [],
  'snapshot -a x dd.qcow2': [],
  'snapshot -d x dd.qcow2': [],
  'snapshot -c x -f raw r.raw': [],
  'snapshot -a x -f raw r.raw': [],
  'snapshot -d x -f raw r.raw': [],
  'snapshot -c x v.vmdk': [],
  'snapshot -a one a.qcow2': ['check a.qcow2', 'compare a.qcow2 a.qcow2', 'snapshot -l a.qcow2'],
  'snapshot -a 2 a.qcow2': ['check a.qcow2', 'snapshot -l a.qcow2'],
  'snapshot -a 7 v2.qcow2': ['check v2.qcow2'],
  'snapshot -a one small.qcow2': ['check small.qcow2', 'map --output json small.qcow2'],
  'snapshot -a nope a.qcow2': [],
  'snapshot -d nope a.qcow2': [],
  'snapshot -d one a.qcow2': ['check a.qcow2', 'snapshot -l a.qcow2'],
  'snapshot -d 2 a.qcow2': ['check a.qcow2', 'snapshot -l a.qcow2'],
  'snapshot -d 7 v2.qcow2': ['check v2.qcow2', 'snapshot -l v2.qcow2'],
  'snapshot -a one bm.qcow2': [],
  'resize a.qcow2 5M': ['check a.qcow2', 'map --output json a.qcow2'],
  'resize -q a.qcow2 5M': [],
  'resize a.qcow2 -1M': [],
  'resize --shrink a.qcow2 -1M': ['check a.qcow2', 'map --output json a.qcow2'],
  'resize a.qcow2 -1M --shrink': [],
  'resize --shrink -- a.qcow2 -1M': [],
  'resize a.qcow2 -5M': [],
  'resize a.qcow2 0': [],
  'resize a.qcow2 +0': [],
  'resize a.qcow2 ++1M': [],
  'resize a.qcow2 8E': [],
  'resize a.qcow2 7E': [],
  'resize a.qcow2 +8E': [],
  'resize a.qcow2 4200000': [],
  'resize a.qcow2 1P': ['check a.qcow2'],
  'resize --preallocation=metadata a.qcow2 6M': ['check a.qcow2'],
  'resize --preallocation=falloc a.qcow2 6M': ['check a.qcow2'],
  'resize --preallocation=full a.qcow2 6M': ['check a.qcow2'],
  'resize --preallocation=full a.qcow2 4M': [],
  'resize --preallocation=full --shrink a.qcow2 1M': [],
  'resize r.raw 5M': [],
  'resize -f raw r.raw 5M': ['info --output json -f raw r.raw'],
  'resize -f raw r.raw 5000001': ['info --output json -f raw r.raw'],
  'resize -f raw r.raw 1M': [],
  'resize -f raw r.raw 7E': [],
  'resize -f raw --shrink r.raw 1M': ['info --output json -f raw r.raw'],
  'resize -f raw --preallocation=metadata r.raw 5M': [],
  'resize -f raw --preallocation=falloc r.raw 5M': ['info --output json -f raw r.raw'],
  'resize -f raw --preallocation=full r.raw 5M': ['info --output json -f raw r.raw'],
  'resize dd.qcow2 5M': ['check dd.qcow2', 'info --output json -f raw d.raw'],
  'resize --shrink dd.qcow2 2M': ['check dd.qcow2'],
  'resize v.vmdk 5M': [],
  'resize v2.qcow2 5M': [],
  'resize --shrink v2.qcow2 1M': [],
  'resize top.qcow2 6M': ['check top.qcow2', 'map --output json top.qcow2'],
  'resize top.qcow2 4196864': ['check top.qcow2', 'map --output json top.qcow2'],
  'resize --preallocation=metadata top.qcow2 6M': ['check top.qcow2'],
  'resize topv2.qcow2 6M': [],
  'resize bm.qcow2 40M': ['check bm.qcow2', 'bitmap --merge b0 bm.qcow2 b1'],
  'resize --shrink bm.qcow2 1M': ['check bm.qcow2', 'bitmap --merge b0 bm.qcow2 b1'],
  'resize --image-opts driver=qcow2,file.filename=a.qcow2 5M': [],
  'resize --image-opts driver=raw,offset=512,size=1024,file.filename=r.raw 1M': [],
  'resize --image-opts driver=raw,offset=512,file.filename=r.raw 6M': [],
  'bitmap --add bm.qcow2 b0': [],
  "bitmap --add bm.qcow2 ''": [],
  'bitmap --add -g 256 bm.qcow2 n': [],
  'bitmap --add -g 300 bm.qcow2 n': [],
  'bitmap --add -g 4G bm.qcow2 n': [],
  'bitmap --add -g 2G bm.qcow2 n': ['check bm.qcow2'],
  'bitmap --add -g 0 bm.qcow2 n': ['check bm.qcow2'],
  'bitmap --add bm.qcow2 n': ['check bm.qcow2'],
  'bitmap --remove bm.qcow2 nope': [],
  'bitmap --clear bm.qcow2 nope': [],
  'bitmap --enable bm.qcow2 nope': [],
  'bitmap --disable bm.qcow2 nope': [],
  'bitmap --merge nope bm.qcow2 b0': [],
  'bitmap --merge b0 bm.qcow2 nope': [],
  'bitmap --merge b0 bm.qcow2 b0': ['check bm.qcow2'],
  'bitmap --remove bm.qcow2 b0': ['check bm.qcow2'],
  'bitmap --clear --enable bm.qcow2 b1': ['check bm.qcow2'],
  'bitmap --add --disable --add bm.qcow2 n': ['check bm.qcow2'],
  'bitmap --add --merge o -b other.qcow2 -F qcow2 bm.qcow2 n': ['check bm.qcow2'],
  'bitmap --add --merge nope -b other.qcow2 bm.qcow2 n': ['check bm.qcow2'],
  'bitmap --merge o -b nofile bm.qcow2 b0': [],
  'bitmap --add --merge b0 -b bm.qcow2 small.qcow2 n': [],
  'bitmap --clear -f raw r.raw b': [],
  'bitmap --add dd.qcow2 b': ['check dd.qcow2'],
  'bitmap --add --image-opts driver=qcow2,file.filename=bm.qcow2 n': [],
  'convert --bitmaps -O qcow2 bm.qcow2 x': ['check x', 'bitmap --merge b0 x b1'],
  'convert --bitmaps -O qcow2 v2.qcow2 x': [],
  'convert --bitmaps -O raw bm.qcow2 x': [],
  'convert --bitmaps -O qcow2 bm.qcow2 bm.qcow2 x': [],
  'convert --skip-broken-bitmaps -O qcow2 bm.qcow2 x': [],
  'convert -n -O qcow2 small.qcow2 bm.qcow2': [],
};

describeInterop('changing an image in place', () => {
  const { folder, same, sameWriting } = golden();
  prepare(folder);
  for (const line of SNAPSHOT) same(`snapshot ${line}`.trim());
  for (const line of RESIZE) same(`resize ${line}`.trim());
  for (const line of BITMAP) same(`bitmap ${line}`.trim());
  for (const [line, after] of Object.entries(CHANGES)) {
    // Where what lies in the file is not the same, the place of its end need not be.
    sameWriting(line, ...after.map((each) => each.replace(/^check /, 'check -q ')));
  }
});
