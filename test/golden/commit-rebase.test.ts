/** commit and rebase: outputs, exit codes, and the images after, against the reference. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { describeInterop, reference, run } from '../support/reference.js';
import { golden, words } from './harness.js';

const IMAGES = `
create -q -f qcow2 base.qcow2 4M
io base.qcow2 write -P 1 0 1M
create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2
io mid.qcow2 write -P 2 512k 1M
create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 6M
io top.qcow2 write -P 3 1M 64k
io top.qcow2 write -z 2M 64k
create -q -f qcow2 whole.qcow2 6M
io whole.qcow2 write -P 1 0 512k
io whole.qcow2 write -P 2 512k 1M
io whole.qcow2 write -P 3 1M 64k
create -q -f raw r.raw 4M
create -q -f qcow2 -b r.raw -F raw onraw.qcow2 5M
io onraw.qcow2 write -P 3 4608k 64k
create -q -f vmdk base.vmdk 2M
create -q -f qcow2 -b base.vmdk -F vmdk onvmdk.qcow2 4M
io onvmdk.qcow2 write -P 3 1M 64k
create -q -f qcow2 -u -b nofile -F qcow2 lost.qcow2 4M
create -q -f qcow2 -o compat=0.10 v2.qcow2 2M
snapshot -c a v2.qcow2
create -q -f qcow2 -o compat=0.10 -b v2.qcow2 -F qcow2 onv2.qcow2 4M
create -q -f qcow2 -b mid.qcow2 -F qcow2 sub/top.qcow2
`;

function prepare(folder: string): void {
  mkdirSync(join(folder, 'sub'));
  for (const name of ['base.qcow2', 'mid.qcow2']) {
    const line =
      name === 'base.qcow2'
        ? `create -q -f qcow2 sub/${name} 4M`
        : `create -q -f qcow2 -b base.qcow2 -F qcow2 sub/${name}`;
    run(reference.qemuImg!, words(line), { cwd: folder });
  }
  for (const line of IMAGES.trim().split('\n')) {
    const args = words(line);
    const [program, rest] =
      args[0] === 'io'
        ? [reference.qemuIo!, ['-c', args.slice(2).join(' '), args[1]!]]
        : [reference.qemuImg!, args];
    const { status, stderr } = run(program, rest, { cwd: folder });
    if (status !== 0) throw new Error(`${line}: ${stderr}`);
  }
}

const COMMIT_FAILS = [
  '',
  'a b',
  'nofile',
  'base.qcow2',
  '-f raw r.raw',
  '-b top.qcow2 top.qcow2',
  '-b r.raw top.qcow2',
  "-b '' top.qcow2",
  '-b sub/mid.qcow2 sub/top.qcow2',
  '-t zz top.qcow2',
  '-r zz top.qcow2',
  '-r -1 top.qcow2',
  '--image-opts -f qcow2 top.qcow2',
  '-f zz top.qcow2',
  '-f raw top.qcow2',
  '-p base.qcow2',
  '-p -f zz top.qcow2',
  '-p -b x top.qcow2',
  '-p -t zz top.qcow2',
  '--= x',
  '--object secret,id=x top.qcow2',
  'onvmdk.qcow2',
  'onv2.qcow2',
  'lost.qcow2',
];

const REBASE_FAILS = [
  '',
  'a b',
  'top.qcow2',
  '-F qcow2 top.qcow2',
  '-u -f raw r.raw',
  "-b '' -f raw r.raw",
  '-b base.qcow2 -F qcow2 r.raw',
  '-b base.qcow2 top.qcow2',
  '-u -b base.qcow2 top.qcow2',
  '-b base.qcow2 -F zz top.qcow2',
  "-u -b x -F '' top.qcow2",
  '-b nofile -F qcow2 top.qcow2',
  '-b sub/base.qcow2 -F qcow2 sub/top.qcow2',
  '-b top.qcow2 -F qcow2 top.qcow2',
  '-b top.qcow2 -F qcow2 mid.qcow2',
  "-c -b '' -f raw r.raw",
  "-t zz -b '' top.qcow2",
  "-p -T zz -b '' top.qcow2",
  "-f zz -b '' top.qcow2",
  "-p -f zz -b '' top.qcow2",
  "--image-opts -f raw -b '' top.qcow2",
  "-b '' nofile",
  "-b '' lost.qcow2",
  '--back x top.qcow2',
  '--f top.qcow2',
  '--= x',
  `-u -b ${'x'.repeat(1024)} -F qcow2 top.qcow2`,
];

const BOTH = ['check -q top.qcow2', 'compare top.qcow2 whole.qcow2', 'map top.qcow2'];

describeInterop('commit and rebase as the reference has them', () => {
  const { folder, same, sameWriting } = golden();
  prepare(folder);
  for (const each of COMMIT_FAILS) same(`commit ${each}`.trim());
  for (const each of REBASE_FAILS) sameWriting(`rebase ${each}`.trim());

  const chain = ['compare top.qcow2 whole.qcow2', 'check -q top.qcow2', 'check -q mid.qcow2'];
  sameWriting('commit top.qcow2', ...chain, 'compare mid.qcow2 whole.qcow2');
  sameWriting('commit -q top.qcow2', ...chain);
  sameWriting('commit -d top.qcow2', ...chain);
  sameWriting('commit -t none -r 100M top.qcow2', ...chain);
  sameWriting('commit -b base.qcow2 top.qcow2', 'compare base.qcow2 whole.qcow2', 'check -q base.qcow2');
  sameWriting('commit -b ./base.qcow2 top.qcow2', 'compare base.qcow2 whole.qcow2');
  sameWriting('commit -b mid.qcow2 sub/top.qcow2', 'check -q sub/mid.qcow2');
  sameWriting('commit --image-opts driver=qcow2,file.filename=top.qcow2', ...chain);
  sameWriting('commit --object secret,id=s,data=x mid.qcow2', 'check -q mid.qcow2');
  sameWriting('commit onraw.qcow2', 'check -q onraw.qcow2', 'compare -f raw -F raw r.raw r.raw');

  sameWriting("rebase -b '' top.qcow2", ...BOTH.slice(0, 2));
  sameWriting("rebase -c -b '' top.qcow2", ...BOTH.slice(1, 2));
  sameWriting('rebase -b base.qcow2 -F qcow2 top.qcow2', ...BOTH.slice(0, 2));
  sameWriting('rebase -b mid.qcow2 -F qcow2 top.qcow2', ...BOTH);
  sameWriting('rebase -q -p -b mid.qcow2 -F qcow2 top.qcow2', ...BOTH);
  sameWriting('rebase -b base.qcow2 -F raw top.qcow2', 'check -q top.qcow2');
  sameWriting('rebase -t none -T none -U -b r.raw -F raw top.qcow2', ...BOTH.slice(0, 2));
  sameWriting("rebase -b '' --image-opts driver=qcow2,file.filename=top.qcow2", ...BOTH.slice(0, 2));
  sameWriting('rebase -b r.raw -F raw base.qcow2', 'map base.qcow2', 'check -q base.qcow2');
  sameWriting(
    `rebase -b json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}} -F qcow2 top.qcow2`,
    ...BOTH.slice(0, 2),
  );
  sameWriting('rebase -u top.qcow2', 'map top.qcow2');
  sameWriting("rebase -u -c -b '' top.qcow2", 'map top.qcow2');
  sameWriting('rebase -u -b nofile -F qcow2 top.qcow2', 'map top.qcow2', 'info --backing-chain top.qcow2');
  sameWriting(`rebase -u -b ${'x'.repeat(1023)} -F qcow2 top.qcow2`, 'map top.qcow2');
  sameWriting('rebase -u -b base.qcow2 -F qcow2 lost.qcow2', 'map lost.qcow2');
  sameWriting('rebase -b base.qcow2 -F qcow2 sub/top.qcow2', 'check -q sub/top.qcow2');
});
