/** measure, dd, bench and amend against the reference: outputs, exit codes, and what was written. */
import { cpSync, mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop, reference, run } from '../support/reference.js';
import { golden, ours, theirs, words } from './harness.js';

const IMAGES = `
create -q -f raw r.raw 4M
io -f raw r.raw write -P 5 1M 100k
create -q -f qcow2 -o cluster_size=4k a.qcow2 16M
io a.qcow2 write -P 3 1M 3M
io a.qcow2 write -z 2M 1M
snapshot -c s1 a.qcow2
io a.qcow2 write -P 4 8M 300k
create -q -f qcow2 -o compat=0.10 v2.qcow2 4M
create -q -f qcow2 -o preallocation=metadata,extended_l2=on m.qcow2 20M
create -q -f qcow2 -o data_file=d.raw dd.qcow2 4M
create -q -f qcow2 -b a.qcow2 -F qcow2 ov.qcow2 20M
io ov.qcow2 write -z 1M 1M
create -q -f qcow2 bm.qcow2 16M
bitmap --add -g 512 bm.qcow2 b0
create -q -f vmdk v.vmdk 4M
`;

const MEASURE = [
  '',
  '--size 1G',
  '--size 100',
  '--size 1x',
  '--size -1',
  '--size 1E',
  '--size 9223372036854775807',
  '--size 9223372036854775808',
  '--size 1G a.qcow2',
  '--size 1G -f raw',
  'a.qcow2 r.raw',
  '-O qcow2 --size 1G --output json',
  '-O qcow2 --size 2E',
  '-O xx --size 1G',
  '-O qcow2 -o help --size 1G',
  '-O qcow2 -o compat=v2 --size 1G',
  '-O qcow2 -o cluster_size=xx --size 1G',
  '-O qcow2 -o extended_l2=on,cluster_size=4k --size 1G',
  '-O qcow2 -o compat=0.10,refcount_bits=8 --size 1G',
  '-O qcow2 -o preallocation=xx --size 1G',
  '-O qcow2 -o preallocation=full --size 1G',
  '-O qcow2 -l s1 a.qcow2',
  '-O qcow2 -l nosnap a.qcow2',
  '-O qcow2 -o backing_file=r.raw a.qcow2',
  '-U --image-opts -O qcow2 driver=qcow2,file.filename=a.qcow2',
  ...['a.qcow2', 'r.raw', 'v2.qcow2', 'm.qcow2', 'ov.qcow2', 'bm.qcow2', 'v.vmdk'].flatMap((file) => [
    `-O raw --output json ${file}`,
    `-O qcow2 ${file}`,
    `-O qcow2 -o cluster_size=512,refcount_bits=64 ${file}`,
    `-O qcow2 -o extended_l2=on,cluster_size=16k,compat=0.10 ${file}`,
  ]),
];

const DD = [
  '',
  'if=r.raw',
  'foo=1 if=r.raw of=o',
  'if=r.raw of=o bs=0',
  'if=r.raw of=o bs=2147483648',
  'if=r.raw of=o count=xx',
  'if=r.raw of=o -O xx',
  '-f qcow2 if=r.raw of=o',
  'if=nofile of=o',
  '--image-opts -f raw if=driver=raw,file.filename=r.raw of=o',
];

const DD_WRITING = [
  'if=r.raw of=o bs=1M',
  'if=r.raw of=o bs=777 count=300 skip=2',
  'if=r.raw of=o bs=1k skip=4096',
  'if=r.raw of=o bs=1k skip=4095 count=3',
  'if=r.raw of=o bs=1k count=9223372036854775807',
  '-U if=ov.qcow2 of=o',
  '--image-opts if=driver=qcow2,file.filename=a.qcow2 of=o',
];

const BENCH = [
  '',
  '-f raw -c 0 r.raw',
  '-f raw -c 20k r.raw',
  '-f raw -d x r.raw',
  '-f raw -s 0 r.raw',
  '-f raw -S x r.raw',
  '-f raw -o -1 r.raw',
  '-f raw -c 20 -s 513 -o 0x200 -S 1k r.raw',
  '-f raw -c 20 -o 8M r.raw',
  '-f raw -c 010 -d 3 -U r.raw',
  '-f raw -q -c 20 -i threads r.raw',
  '-f raw -c 20 -n r.raw',
  '-f raw -c 20 -n -t none r.raw',
  '-f raw -c 20 -i xx r.raw',
  '-f raw -c 20 -t xx r.raw',
  '-f raw -w -U -c 20 r.raw',
  '-f raw -w --pattern 256 r.raw',
  '-f raw --flush-interval 64 r.raw',
  '-f raw -w --flush-interval 3 r.raw',
  '--image-opts -c 20 driver=raw,file.filename=r.raw',
  '-c 20 nofile',
];

const BENCH_WRITING = [
  '-f raw -w --pattern 0x41 -c 100 -d 8 -s 1000 r.raw',
  '-f qcow2 -w --pattern 7 -c 300 -d 8 --flush-interval 50 a.qcow2',
  '-f qcow2 -w -c 300 -d 8 --flush-interval 50 --no-drain -t directsync a.qcow2',
];

const AMEND = [
  '',
  'a.qcow2',
  '-o help a.qcow2',
  '-o help',
  '-f qcow2 -o help',
  '-f raw -o help',
  '-f xx -o help',
  '-f raw -o size=1 r.raw',
  '-o size=8M v.vmdk',
  '-o compat=0.42 a.qcow2',
  '-o compat=0.10 m.qcow2',
  '-o compat=0.10 dd.qcow2',
  '-o lazy_refcounts=on v2.qcow2',
  '-o refcount_bits=8 v2.qcow2',
  '-o refcount_bits=7 a.qcow2',
  '-o refcount_bits=1 a.qcow2',
  '-o cluster_size=4096 a.qcow2',
  '-o foo=on a.qcow2',
  '-o size=1000 v2.qcow2',
  '-o backing_file=r.raw a.qcow2',
  '-o data_file=foo a.qcow2',
  '-o data_file_raw=on dd.qcow2',
  '-o encrypt.state=active a.qcow2',
  '-t xx -o compat=1.1 a.qcow2',
  '-o compat=1.1 a.qcow2 b',
  '--image-opts -f qcow2 -o compat=1.1 driver=qcow2,file.filename=a.qcow2',
];

const AMEND_WRITING = [
  '-o compat=0.10 a.qcow2',
  '-o compat=1.1,refcount_bits=64,lazy_refcounts=on v2.qcow2',
  '-q -p --force -t none -o refcount_bits=64 a.qcow2',
  '-f qcow2 -o size=32M v2.qcow2',
  '-o data_file_raw=off,lazy_refcounts=on dd.qcow2',
  '--image-opts -o refcount_bits=2 driver=qcow2,file.filename=a.qcow2',
];

const untimed = (text: string) => text.replace(/completed in [0-9.]+/, 'completed in T');

describeInterop('measure, dd, bench and amend as the reference has them', () => {
  const { folder, same, sameWriting } = golden();
  for (const line of IMAGES.trim().split('\n')) {
    const args = words(line);
    if (args[0] === 'io') {
      const at = args[1] === '-f' ? 3 : 1;
      const rest = ['-c', args.slice(at + 1).join(' '), ...args.slice(1, at), args[at]!];
      run(reference.qemuIo!, rest, { cwd: folder });
    } else run(reference.qemuImg!, args, { cwd: folder });
  }
  for (const rest of MEASURE) same(`measure ${rest}`);
  for (const rest of DD) same(`dd ${rest}`);
  for (const rest of DD_WRITING)
    sameWriting(`dd ${rest}`, 'measure -f raw o', 'compare -f raw o -F raw r.raw');
  sameWriting('dd if=a.qcow2 of=o.qcow2 -O qcow2 bs=1M', 'check o.qcow2', 'compare o.qcow2 a.qcow2');
  for (const rest of BENCH) same(`bench ${rest}`, untimed);
  for (const rest of AMEND) same(`amend ${rest}`);
  for (const rest of AMEND_WRITING) {
    const file = /\w+\.qcow2$/.exec(rest)![0];
    sameWriting(`amend ${rest}`, `compare -s ${file} ${file}`, `check -q ${file}`, `measure -O raw ${file}`);
  }
  for (const rest of BENCH_WRITING) {
    it(`qemu-img bench ${rest}: writes what the reference writes`, () => {
      const [a, b] = [mkdtempSync(join(folder, '../a-')), mkdtempSync(join(folder, '../b-'))];
      for (const name of ['r.raw', 'a.qcow2']) {
        for (const into of [a, b]) cpSync(join(folder, name), join(into, name));
      }
      const args = words(`bench ${rest}`);
      expect(untimed(ours(args, a).stdout)).toBe(untimed(theirs(args, b).stdout));
      const file = args.at(-1)!;
      const compared = run(reference.qemuImg!, ['compare', join(a, file), join(b, file)]);
      expect(compared.stdout).toBe('Images are identical.\n');
    });
  }
});
