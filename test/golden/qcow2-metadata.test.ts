/** What happens inside qcow2's metadata writes, against the reference: injected errors, snapshot tables, long runs, sizes. */
import {
  closeSync,
  ftruncateSync,
  openSync,
  readSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop, reference, run } from '../support/reference.js';
import { golden, ours } from './harness.js';

/** Places in the header. */
const SNAPSHOT_COUNT = 60;
const SNAPSHOTS_OFFSET = 64;
/** Where these tests put their snapshot tables. */
const TABLE_AT = 1 << 20;
const CLUSTER = 65536;

/** A snapshot table entry with so many bytes of extra data. */
function entry(id: string, name: string, extraBytes: number): Buffer {
  const length = 40 + extraBytes + id.length + name.length;
  const bytes = Buffer.alloc(Math.ceil(length / 8) * 8);
  bytes.writeUInt16BE(id.length, 12);
  bytes.writeUInt16BE(name.length, 14);
  bytes.writeUInt32BE(extraBytes, 36);
  bytes.write(id + name, 40 + extraBytes, 'latin1');
  return bytes;
}

/** Puts a snapshot table into an image, counted, in clusters that were not in use. */
function setSnapshots(path: string, count: number, table: Buffer): void {
  const fd = openSync(path, 'r+');
  const read64 = (at: number): number => {
    const bytes = Buffer.alloc(8);
    readSync(fd, bytes, 0, 8, at);
    return Number(bytes.readBigUInt64BE());
  };
  const block = read64(read64(48));
  const end = Math.ceil((TABLE_AT + table.length) / CLUSTER);
  ftruncateSync(fd, end * CLUSTER);
  writeSync(fd, table, 0, table.length, TABLE_AT);
  for (let cluster = TABLE_AT / CLUSTER; cluster < end; cluster++) {
    writeSync(fd, Buffer.from([0, 1]), 0, 2, block + cluster * 2);
  }
  const pointer = Buffer.alloc(12);
  pointer.writeUInt32BE(count, 0);
  pointer.writeBigUInt64BE(BigInt(TABLE_AT), SNAPSHOTS_OFFSET - SNAPSHOT_COUNT);
  writeSync(fd, pointer, 0, 12, SNAPSHOT_COUNT);
  closeSync(fd);
}

const EVENTS = ['l1_update', 'empty_image_prepare', 'reftable_update', 'refblock_alloc', 'cluster_free'];

describeInterop('qcow2 metadata as the reference has it', () => {
  const { folder, same, sameWriting } = golden();
  const at = (name: string) => join(folder, name);
  const create = (...args: string[]) =>
    expect(run(reference.qemuImg!, ['create', '-q', '-f', 'qcow2', ...args], { cwd: folder }).status).toBe(0);
  const write = (name: string, what: string) =>
    run(reference.qemuIo!, ['-c', what, at(name)], { cwd: folder });

  // Errors at the events that blkdebug knows.
  for (const event of EVENTS)
    writeFileSync(at(`${event}.conf`), `[inject-error]\nevent = "${event}"\nerrno = "5"\n`);
  create('base.qcow2', '64M');
  create('-b', 'base.qcow2', '-F', 'qcow2', 'top.qcow2');
  write('top.qcow2', 'write 0 64k');
  for (const event of EVENTS.slice(0, 4)) {
    sameWriting(`commit blkdebug:${event}.conf:top.qcow2`, 'check top.qcow2', 'check -r all top.qcow2');
  }
  sameWriting('commit top.qcow2', 'check top.qcow2', 'map top.qcow2');
  create('snap.qcow2', '64M');
  write('snap.qcow2', 'write 0 64k');
  run(reference.qemuImg!, ['snapshot', '-c', 'foo', 'snap.qcow2'], { cwd: folder });
  sameWriting('snapshot -d foo blkdebug:cluster_free.conf:snap.qcow2', 'snapshot -l snap.qcow2');
  sameWriting('snapshot -d foo blkdebug:cluster_free.conf:snap.qcow2', 'check -r leaks snap.qcow2');

  // Writes are events of blkdebug's own; entries of a map before an error, and its heading.
  for (const event of ['pwritev', 'l2_load']) {
    writeFileSync(at(`${event}.conf`), `[inject-error]\nevent = "${event}"\nerrno = "5"\n`);
  }
  writeFileSync(at('plain.raw'), '');
  truncateSync(at('plain.raw'), 64 << 20);
  sameWriting('convert -n -O raw top.qcow2 blkdebug:pwritev.conf:plain.raw');
  same('map blkdebug:l2_load.conf:top.qcow2');
  same('map --output=json blkdebug:l2_load.conf:top.qcow2');

  // Bitmaps that some other program made inconsistent: told of until the image is opened for writing, and gone then.
  create('stale.qcow2', '1M');
  run(reference.qemuImg!, ['bitmap', '--add', 'stale.qcow2', 'b'], { cwd: folder });
  const stale = openSync(at('stale.qcow2'), 'r+');
  writeSync(stale, Buffer.from([0]), 0, 1, 95);
  closeSync(stale);
  create('old.qcow2', '1M');
  run(reference.qemuImg!, ['bitmap', '--add', 'old.qcow2', 'b'], { cwd: folder });
  run(reference.qemuImg!, ['amend', '-o', 'compat=0.10', 'old.qcow2'], { cwd: folder });
  for (const name of ['stale.qcow2', 'old.qcow2']) {
    same(`info ${name}`, (text) => text.replace(/disk size: .*/, ''));
    same(`check ${name}`);
    sameWriting(`resize ${name} 2M`, `check ${name}`, `map ${name}`);
    sameWriting(`check -r leaks ${name}`, `check ${name}`);
  }

  // A data file is named where no feature bit says that it counts, too.
  create('-o', 'data_file=apart.raw', 'bitless.qcow2', '1M');
  const bitless = openSync(at('bitless.qcow2'), 'r+');
  writeSync(bitless, Buffer.from([0]), 0, 1, 79);
  closeSync(bitless);
  same('info bitless.qcow2', (text) => text.replace(/disk size: .*/, ''));

  // A size that ends within a sector ends before it; one that 64 bits do not hold is too big.
  for (const [name, byte, value] of [
    ['odd', 30, 1],
    ['vast', 24, 255],
  ] as const) {
    create(`${name}.qcow2`, '1M');
    const fd = openSync(at(`${name}.qcow2`), 'r+');
    writeSync(fd, Buffer.from([value]), 0, 1, byte);
    writeSync(fd, Buffer.from([7]), 0, 1, 31);
    closeSync(fd);
    same(`check ${name}.qcow2`);
    same(`map --output=json ${name}.qcow2`);
  }

  // A list of snapshots is of an image that can be opened, with all its files.
  create('-b', 'base.qcow2', '-F', 'qcow2', 'lost.qcow2');
  create('-o', 'data_file=gone.raw', 'dataless.qcow2', '1M');
  run(reference.qemuImg!, ['rebase', '-u', '-b', 'nowhere', '-F', 'qcow2', 'lost.qcow2'], { cwd: folder });
  unlinkSync(at('gone.raw'));
  same('snapshot -l lost.qcow2');
  same('snapshot -l dataless.qcow2');

  // Snapshot tables: what version 3 demands, what is too much, and names that end at a NUL.
  create('-o', 'compat=0.10', 'short.qcow2', '64M');
  const short = [entry('1', 'sn0', 0), entry('2', 'sn1', 50), entry('3', 'sn2', 8)];
  setSnapshots(at('short.qcow2'), 3, Buffer.concat(short));
  sameWriting('amend -o compat=1.1 short.qcow2', 'check short.qcow2', 'snapshot -l short.qcow2');
  sameWriting('amend -p -o compat=1.1 short.qcow2');
  create('-o', 'compat=0.10', 'many.qcow2', '64M');
  setSnapshots(at('many.qcow2'), 65546, Buffer.alloc(40 * 65546));
  sameWriting('check -r all many.qcow2', 'check many.qcow2');
  create('nul.qcow2', '64M');
  setSnapshots(at('nul.qcow2'), 1, entry('\0'.repeat(40), 'a\0b', 24));
  same('snapshot -l nul.qcow2');

  it('a snapshot table that is only too long stays where it is', () => {
    expect(ours(['check', '-r', 'all', 'many.qcow2'], folder).status).toBe(0);
    const fd = openSync(at('many.qcow2'), 'r');
    const pointer = Buffer.alloc(12);
    readSync(fd, pointer, 0, 12, SNAPSHOT_COUNT);
    closeSync(fd);
    expect([pointer.readUInt32BE(0), Number(pointer.readBigUInt64BE(4))]).toEqual([65536, TABLE_AT]);
  });

  // Progress of amend, over several operations.
  create('zeros.qcow2', '4G');
  for (const gigabyte of [0, 1, 2, 3]) write('zeros.qcow2', `write -z ${gigabyte}G 64k`);
  sameWriting('amend -p -o compat=0.10 zeros.qcow2', 'check -q zeros.qcow2');
  sameWriting('amend -p -o refcount_bits=1 zeros.qcow2', 'check -q zeros.qcow2');
  sameWriting('amend -p -o refcount_bits=3 zeros.qcow2');
  sameWriting('amend -p -o cluster_size=4k zeros.qcow2');
  sameWriting('amend -o cluster_size=none zeros.qcow2');
  create('-o', 'cluster_size=512,refcount_bits=1', 'small.qcow2', '64k');
  write('small.qcow2', 'write 0 29696');
  sameWriting('amend -p -o refcount_bits=64 small.qcow2', 'check -q small.qcow2');

  it('an L1 table that is longer than what a refcount block counts', () => {
    create('-o', 'cluster_size=512,refcount_bits=64', 'wide.qcow2', '1M');
    expect(ours(['amend', '-o', 'size=1G', 'wide.qcow2'], folder).status).toBe(0);
    expect(run(reference.qemuImg!, ['check', '-q', 'wide.qcow2'], { cwd: folder }).status).toBe(0);
  });

  // Numbers and sizes of 64 bits.
  sameWriting('create -f qcow2 -o refcount_bits=-1 n.qcow2 1G');
  sameWriting('create -f qcow2 -o refcount_bits=-42 n.qcow2 1G');
  sameWriting('create -f qcow2 n.qcow2 1E');
  sameWriting('create -f raw n.raw 32P');
  sameWriting('create -f qcow2 -o cluster_size=256k n.qcow2 32P', 'snapshot -l n.qcow2');

  // A data file's name belongs to the caller's folder, not to the image's.
  run('mkdir', ['sub'], { cwd: folder });
  sameWriting('create -f qcow2 -o data_file=d.raw sub/d.qcow2 1M', 'map sub/d.qcow2', 'info d.raw');
  create('-o', 'data_file=e.raw', 'sub/e.qcow2', '1M');
  same('map --output=json sub/e.qcow2');
  same('info --image-opts driver=qcow2,file.filename=sub/e.qcow2,data-file.filename=none');

  // A dirty image tells of its repair.
  create('-o', 'lazy_refcounts=on', 'dirty.qcow2', '64M');
  run(reference.qemuIo!, ['-c', 'write 0 128k', '-c', 'flush', '-c', 'sigraise 9', at('dirty.qcow2')]);
  sameWriting('amend -o compat=0.10 dirty.qcow2', 'check -q dirty.qcow2');
});
