/** The six operations on small images: outputs, exit codes and what was written, against the reference. */
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describeInterop, reference, run } from '../support/reference.js';
import { golden, words } from './harness.js';

const IMAGES = `
create -q -f raw r.raw 4M
create -q -f raw r5.raw 5M
create -q -f qcow2 empty.qcow2 4M
create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 1500M
create -q -f qcow2 -o extended_l2=on,refcount_bits=1,lazy_refcounts=on,cluster_size=2M ext.qcow2 10G
create -q -f qcow2 -o data_file=d.raw,data_file_raw=on dd.qcow2 4M
create -q -f qcow2 base.qcow2 4M
io base.qcow2 write -P 1 0 1M
create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2
io mid.qcow2 write -P 2 512k 1M
snapshot -c first mid.qcow2
snapshot -c 'second one' mid.qcow2
bitmap --add mid.qcow2 b0
create -q -f qcow2 -b ./mid.qcow2 -F qcow2 top.qcow2 6M
io top.qcow2 write -z 1M 256k
create -q -f qcow2 -b r.raw -F raw 'odd"né.qcow2'
convert -c -O qcow2 mid.qcow2 packed.qcow2
create -q -f qcow2 leaks.qcow2 4M
io leaks.qcow2 write 0 1M
create -q -f qcow2 bad.qcow2 64M
io bad.qcow2 write 0 3M
create -q -f qcow2 ./mid:dle.qcow2 4M
create -q -f vmdk -o subformat=twoGbMaxExtentSparse split.vmdk 5G
create -q -f vmdk mono.vmdk 4M
io mono.vmdk write -P 3 64k 64k
create -q -f qcow2 apart.qcow2 128M
io apart.qcow2 write 0 1M
io apart.qcow2 write 2M 1M
io apart.qcow2 write 32M 1M
create -q -f qcow2 long.qcow2 100M
io long.qcow2 write 3k 9M
io long.qcow2 write 50001k 7000k
`;

/** Two files that are equal down to the blocks they take: the reference makes them. */
function prepare(folder: string): void {
  for (const line of IMAGES.trim().split('\n')) {
    const args = words(line);
    const [program, rest] =
      args[0] === 'io'
        ? [reference.qemuIo!, ['-c', args.slice(2).join(' '), args[1]!]]
        : [reference.qemuImg!, args];
    const { status, stderr } = run(program, rest, { cwd: folder });
    if (status !== 0) throw new Error(`${line}: ${stderr}`);
  }
  truncateSync(join(folder, 'leaks.qcow2'), 2 * 2 ** 20);
  damage(join(folder, 'bad.qcow2'));
}

/** Makes the second data cluster the first one's, and the third none: one cluster in use twice, two leaked. */
function damage(path: string): void {
  const bytes = readFileSync(path);
  const l1 = Number(bytes.readBigUInt64BE(40));
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
  bytes.copy(bytes, l2 + 8, l2, l2 + 8);
  bytes.fill(0, l2 + 16, l2 + 24);
  writeFileSync(path, bytes);
}

const FILES =
  'r.raw empty.qcow2 v2.qcow2 ext.qcow2 dd.qcow2 mid.qcow2 top.qcow2 packed.qcow2 split.vmdk mono.vmdk'.split(
    ' ',
  );

const INFO = [
  'nofile',
  '-f zz r.raw',
  "-f '' r.raw",
  '-f qcow2 r.raw',
  '-f raw mid.qcow2',
  '--backing-chain r.raw',
  "'odd\"né.qcow2'",
  "--output=json 'odd\"né.qcow2'",
  '-U mid.qcow2',
  '--image-opts driver=qcow2,file.driver=file,file.filename=mid.qcow2',
  '--image-opts driver=qcow2,file.filename=nofile',
  '--image-opts driver=zz,file.filename=r.raw',
  '--image-opts driver=qcow2,lazy-refcounts,nopass-discard-other,file.filename=mid.qcow2',
  'file:mid.qcow2',
  'file:mid:dle.qcow2',
  'no_such_protocol:mid.qcow2',
  'host_device:/dev/null',
  'host_device:mid.qcow2',
  'file:/dev/null',
  '/dev/null',
  '--image-opts driver=file,filename=/dev/null',
  '--image-opts driver=raw,file.filename=/dev/null',
  // A data file is not opened to tell of an image.
  '--image-opts driver=qcow2,file.filename=dd.qcow2,data-file=none',
  '--image-opts driver=qcow2,file.filename=dd.qcow2,data-file.filename=none',
  '--image-opts driver=qcow2,file.filename=mid.qcow2,data-file.filename=none',
  '--image-opts x',
  '--object secret,id=a,data=b r.raw',
  'json:{"driver":"null-co"}',
  '--output=json json:{"driver":"null-co"}',
  'json:{"driver":"null-co","size":5}',
  'json:{"driver":"raw","file":{"driver":"null-aio","read-zeroes":false}}',
  'json:{"driver":"nope"}',
  '--image-opts driver=raw,file.filename=r.raw,file.aio=native',
  '--image-opts driver=raw,file.filename=r.raw,file.pr-manager=p',
];

const MAP = [
  'nofile',
  '-f zz r.raw',
  '-s 1 mid.qcow2',
  '-s 1M -l 100k --output json mid.qcow2',
  '-s 10M mid.qcow2',
  '-s 10M --output json mid.qcow2',
  '-l 0 mid.qcow2',
  '-l 1k mid.qcow2',
  '-f raw mid.qcow2',
  '--image-opts driver=qcow2,file.filename=top.qcow2',
];

const CHECK = [
  'nofile',
  '-f raw nofile',
  '-f zz r.raw',
  'r.raw',
  '--output json r.raw',
  '-f raw mid.qcow2',
  'leaks.qcow2',
  '--output=json leaks.qcow2',
  'bad.qcow2',
  '--output=json bad.qcow2',
  '-q bad.qcow2',
  '-q mid.qcow2',
  '-U mid.qcow2',
  '-T none mid.qcow2',
  '-r all -U mid.qcow2',
  '--image-opts driver=qcow2,file.filename=mid.qcow2',
];

const COMPARE = [
  'nofile r.raw',
  'r.raw nofile',
  'r.raw empty.qcow2',
  '-q r.raw empty.qcow2',
  '-s r.raw empty.qcow2',
  'r.raw r5.raw',
  '-q r.raw r5.raw',
  '-s r.raw r5.raw',
  'r5.raw r.raw',
  'base.qcow2 mid.qcow2',
  'mid.qcow2 base.qcow2',
  '-q base.qcow2 mid.qcow2',
  'mid.qcow2 packed.qcow2',
  '-s mid.qcow2 packed.qcow2',
  'mid.qcow2 top.qcow2',
  '-f raw base.qcow2 base.qcow2',
  '-f raw -F zz base.qcow2 base.qcow2',
  '-p r.raw empty.qcow2',
  '-pq r.raw empty.qcow2',
  '-p nofile r.raw',
  '-U -T none mid.qcow2 mid.qcow2',
  '--image-opts driver=qcow2,file.filename=mid.qcow2 driver=qcow2,file.filename=packed.qcow2',
];

const CREATE = [
  'x 1M',
  '-q x 1M',
  'x',
  'x .5k',
  'x 0x10',
  '-f zz x 1M',
  '-o foo=1 x 1M',
  '-o size=1M x',
  '-o size=1M x 2M',
  '-f qcow2 -o size=x x',
  '-f qcow2 -o size=-1024 x',
  '-f qcow2 -o size=-1k x',
  '-f qcow2 -o size=.5k x',
  '-f qcow2 x 1P',
  '-f qcow2 -o cluster_size=4k -o lazy_refcounts x 1M',
  '-f qcow2 -o nolazy_refcounts x 1M',
  '-f qcow2 -o cluster_size=3k x 1M',
  '-f qcow2 -o cluster_size=4k,, x 1M',
  '-f qcow2 -o compat=zz x 1M',
  '-f qcow2 -o preallocation=metadata x 1M',
  '-f qcow2 -o preallocation=zz x 1M',
  '-f qcow2 -b nofile x',
  '-f qcow2 -F qcow2 -b nofile x 1M',
  '-f qcow2 -b r.raw x 1M',
  '-f qcow2 -b mid.qcow2 x',
  '-f qcow2 -b mid.qcow2 -F zz x',
  '-f qcow2 -b mid.qcow2 -F qcow2 x',
  '-f qcow2 -b mid.qcow2 -F qcow2 x 1G',
  '-f qcow2 -u -b nofile -F raw x 1M',
  '-b mid.qcow2 x',
  '-F qcow2 x 1M',
  'nofolder/x 1M',
  '-o help',
  '-o help x',
  '-f qcow2 -o help',
  '-f qcow2 -o cluster_size=4k,help',
  "-f qcow2 -o '?' x",
  '-f zz -o help',
];

const CONVERT: readonly (readonly [string, ...string[]])[] = [
  // Progress counts data, by steps of what the reference reads at once.
  ['-p -O qcow2 apart.qcow2 x'],
  ['-p -c -O qcow2 apart.qcow2 x'],
  ['-p -O raw long.qcow2 x'],
  ['-p -S 0 -O raw long.qcow2 x'],
  ['-p -O qcow2 long.qcow2 empty.qcow2 apart.qcow2 x'],
  ['-p -O qcow2 empty.qcow2 x'],
  ['mid.qcow2 x', 'compare -f raw x mid.qcow2'],
  ['-O qcow2 top.qcow2 x', 'compare x top.qcow2', 'check x'],
  ['-O qcow2 -c top.qcow2 x', 'compare x top.qcow2', 'check x'],
  ['-O qcow2 -c -W top.qcow2 x', 'compare x top.qcow2', 'check x'],
  ['-O qcow2 -o compat=0.10,cluster_size=4k mid.qcow2 x', 'compare x mid.qcow2', 'check x'],
  ['-O qcow2 -l first mid.qcow2 x', 'compare x mid.qcow2'],
  ['-O qcow2 -l snapshot.id=2 mid.qcow2 x', 'compare x mid.qcow2'],
  ['-l zz mid.qcow2 x'],
  ['-l zz mid.qcow2 mid.qcow2 x'],
  ['-S 0 mid.qcow2 x', 'map --output=json x'],
  ['-S 64k -m 1 -t none -T none mid.qcow2 x', 'compare -f raw x mid.qcow2'],
  ['base.qcow2 mid.qcow2 x', 'compare -f raw x mid.qcow2'],
  ['-O qcow2 -B base.qcow2 -F qcow2 mid.qcow2 x', 'compare x mid.qcow2', 'map --output json x'],
  ['-O qcow2 -B base.qcow2 mid.qcow2 x'],
  ['-O qcow2 -o backing_file=base.qcow2 mid.qcow2 x'],
  ['-O qcow2 -B base.qcow2 -F qcow2 mid.qcow2 mid.qcow2 x'],
  ['-O qcow2 -F qcow2 mid.qcow2 x'],
  ['-B base.qcow2 mid.qcow2 x'],
  ['-F qcow2 mid.qcow2 x'],
  ['-n mid.qcow2 r.raw', 'compare -f raw r.raw mid.qcow2'],
  ['-n mid.qcow2 nofile'],
  ['-n -O qcow2 mid.qcow2 empty.qcow2', 'compare empty.qcow2 mid.qcow2'],
  ['-n -O qcow2 top.qcow2 empty.qcow2'],
  ['-n --target-is-zero mid.qcow2 r.raw', 'compare -f raw r.raw mid.qcow2'],
  ['-n --target-image-opts mid.qcow2 driver=raw,file.filename=r.raw', 'compare -f raw r.raw mid.qcow2'],
  ['--image-opts driver=qcow2,file.filename=mid.qcow2 x', 'compare -f raw x mid.qcow2'],
  ['--salvage -U mid.qcow2 x', 'compare -f raw x mid.qcow2'],
  ['-C mid.qcow2 x', 'compare -f raw x mid.qcow2'],
  ['-r 1G mid.qcow2 x', 'compare -f raw x mid.qcow2'],
  ['-p empty.qcow2 x'],
  ['-pq mid.qcow2 x'],
  ['-p nofile x'],
  ['nofile x'],
  ['-f zz mid.qcow2 x'],
  ['-O zz mid.qcow2 x'],
  ['-O zz nofile x'],
  ['-o zz=1 mid.qcow2 x'],
  ['-O qcow2 -o cluster_size=3k mid.qcow2 x'],
  ['-t zz mid.qcow2 x'],
  ['-c mid.qcow2 x'],
  ['mid.qcow2 nofolder/x'],
  ['-O qcow2 -o help'],
  ['-O qcow2 -o help a b'],
  ['-o help'],
  ['-O zz -o help a b'],
];

describeInterop('the operations', () => {
  const { folder, same, sameWriting, differs } = golden();
  prepare(folder);

  for (const file of FILES) {
    for (const form of ['human', 'json']) {
      same(`info --output ${form} ${file}`);
      same(`info --backing-chain --output ${form} ${file}`);
      same(`map --output ${form} ${file}`);
      same(`check --output ${form} ${file}`);
    }
  }
  for (const line of INFO) same(`info ${line}`);
  for (const line of MAP) same(`map ${line}`);
  for (const line of CHECK) same(`check ${line}`);
  for (const line of COMPARE) same(`compare ${line}`);
  for (const line of CREATE) sameWriting(`create ${line}`);
  sameWriting('create x 1M', 'map --output json x');
  for (const [line, ...after] of CONVERT) sameWriting(`convert ${line}`, ...after);
  sameWriting('check -r all leaks.qcow2', 'check leaks.qcow2');
  sameWriting('check -r leaks --output json leaks.qcow2', 'check leaks.qcow2');
  sameWriting('check -q -r all leaks.qcow2', 'check leaks.qcow2');
  sameWriting('check -r all r.raw');
  sameWriting('check -r leaks bad.qcow2', 'check bad.qcow2');
  sameWriting('check -r all bad.qcow2', 'check bad.qcow2', 'compare bad.qcow2 base.qcow2');
  sameWriting('check -q -r all --output=json bad.qcow2', 'check bad.qcow2');

  differs('convert -t zz nofile x', 'we look at -t before the sources are opened');
  same('convert --bitmaps -O qcow2 mid.qcow2 x');
  differs('convert -n --target-is-zero -B x mid.qcow2 r.raw', 'the reference fails here with exit code 0');
  sameWriting('create x 4E');
  differs('compare --image-opts -F raw a b', 'we look at all names before the first is opened');
});
