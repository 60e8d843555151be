/** Dry runs of all that writes: nothing changes, and the operation itself goes as its plan says. */
import { spawn } from 'node:child_process';
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { type Answer, Peer, type RunningDaemon, startDaemon } from './support/daemon.js';

const MiB = 1024 * 1024;
const folder = tempDir();
/** Made once; each case works on a copy. */
const seed = join(folder, 'seed');
let cases = 0;
let cwd = '';
let running: RunningDaemon;
let peer: Peer;

const img = (...args: string[]) => {
  const { status, stderr } = run(reference.qemuImg!, args);
  if (status !== 0) throw new Error(`${args.join(' ')}: ${stderr}`);
};
const io = (file: string, ...commands: string[]) =>
  run(reference.qemuIo!, ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), file]);

interface Plan {
  ok: boolean;
  checks: { name: string; status: string; kind?: string; text?: string }[];
  required?: number;
  free?: number;
}

/** All that a file is, but for the time of its last reading. */
function state(): unknown {
  return readdirSync(cwd)
    .sort()
    .map((name) => {
      const { size, mtimeNs, ctimeNs, blocks, ino } = statSync(join(cwd, name), { bigint: true });
      return [name, size, mtimeNs, ctimeNs, blocks, ino, readFileSync(join(cwd, name)).toString('latin1')];
    });
}

const allocated = () =>
  readdirSync(cwd).reduce((sum, name) => sum + statSync(join(cwd, name)).blocks * 512, 0);

function fresh(): void {
  cwd = join(folder, `case${++cases}`);
  mkdirSync(cwd);
  run('cp', ['-r', '--sparse=always', `${seed}/.`, cwd]);
  // Until then the host has not counted all that it takes.
  for (const name of readdirSync(cwd)) {
    const file = openSync(join(cwd, name), 'r+');
    fsyncSync(file);
    closeSync(file);
  }
}

async function dry(method: string, params: object): Promise<Answer> {
  const before = state();
  const answer = await peer.call(method, { cwd, ...params, 'dry-run': true });
  expect(state()).toEqual(before);
  return answer;
}

const failures = ({ checks }: Plan) => checks.filter(({ status }) => status === 'failed');

const qcow2 = (filename: string) => ({ filename, format: 'qcow2' });
const raw = (filename: string) => ({ filename, format: 'raw' });

type Case = readonly [name: string, method: string, params: object, checks: string];

const WELL: readonly Case[] = [
  [
    'an image',
    'image-create',
    { filename: 'new.qcow2', format: 'qcow2', size: 64 * MiB },
    'format options backing size target layout space',
  ],
  [
    'one over another, with its metadata in advance',
    'image-create',
    {
      ...{ filename: 'leaky.qcow2', format: 'qcow2', backing: 'base.qcow2', 'backing-format': 'qcow2' },
      options: { preallocation: 'metadata', extended_l2: true },
    },
    'format options backing size target layout space',
  ],
  [
    'one that is allocated, under a temporary name',
    'image-create',
    { filename: 'new.raw', format: 'raw', size: 8 * MiB, options: { preallocation: 'falloc' }, atomic: true },
    'format options backing size target layout space',
  ],
  [
    'one of several files',
    'image-create',
    { filename: 'new.vmdk', format: 'vmdk', size: 8 * MiB, options: { subformat: 'monolithicFlat' } },
    'format options backing size target layout space',
  ],
  ['a commit', 'image-commit', { image: qcow2('top.qcow2') }, 'image base resize copy empty space'],
  [
    'a commit that empties nothing',
    'image-commit',
    { image: qcow2('top.qcow2'), base: 'base.qcow2' },
    'image base resize copy space',
  ],
  [
    'a commit into a smaller base',
    'image-commit',
    { image: qcow2('longer.qcow2') },
    'image base resize copy empty space',
  ],
  [
    'a rebase to another file',
    'image-rebase',
    { image: qcow2('top.qcow2'), backing: 'other.qcow2', 'backing-format': 'qcow2' },
    'image options backing changeable copy name space',
  ],
  [
    'a rebase to none',
    'image-rebase',
    { image: qcow2('top.qcow2') },
    'image options backing changeable copy name space',
  ],
  [
    'a rebase of the name alone',
    'image-rebase',
    { image: qcow2('top.qcow2'), backing: 'missing', 'backing-format': 'raw', unsafe: true },
    'image options backing changeable copy name space',
  ],
  ['growth', 'image-resize', { image: qcow2('base.qcow2'), size: 2 ** 40 }, 'image size resize space'],
  [
    'growth that is allocated',
    'image-resize',
    { image: qcow2('base.qcow2'), size: 24 * MiB, preallocation: 'falloc' },
    'image size resize space',
  ],
  [
    'growth of a raw image that is written',
    'image-resize',
    { image: raw('plain.raw'), size: 8 * MiB, preallocation: 'full' },
    'image size resize space',
  ],
  [
    'shrinking',
    'image-resize',
    { image: qcow2('base.qcow2'), size: -4 * MiB, relative: true, shrink: true },
    'image size resize space',
  ],
  [
    'a snapshot',
    'image-snapshot',
    { image: qcow2('base.qcow2'), action: 'create', snapshot: 's' },
    'image create space',
  ],
  [
    'a snapshot made present',
    'image-snapshot',
    { image: qcow2('kept.qcow2'), action: 'apply', snapshot: 'old' },
    'image apply space',
  ],
  [
    'a snapshot let go',
    'image-snapshot',
    { image: qcow2('kept.qcow2'), action: 'delete', snapshot: 'old' },
    'image delete space',
  ],
  [
    'other options',
    'image-amend',
    { image: qcow2('base.qcow2'), options: { compat: '0.10' } },
    'image options amend space',
  ],
  [
    'wider refcounts',
    'image-amend',
    { image: qcow2('base.qcow2'), options: { refcount_bits: 64, lazy_refcounts: true } },
    'image options amend space',
  ],
  [
    'a bitmap',
    'image-bitmap',
    { image: qcow2('base.qcow2'), bitmap: 'b', actions: [{ action: 'add' }, { action: 'disable' }] },
    'image source actions space',
  ],
  [
    'a bitmap with what another image has',
    'image-bitmap',
    {
      ...{ image: qcow2('marked.qcow2'), bitmap: 'm', source: qcow2('other.qcow2') },
      actions: [{ action: 'merge', source: 'o' }],
    },
    'image source actions space',
  ],
  ['repair', 'image-check', { image: qcow2('leaky.qcow2'), repair: 'all' }, 'image repair space'],
  [
    'dd',
    'image-dd',
    {
      image: qcow2('base.qcow2'),
      target: { filename: 'd.qcow2', format: 'qcow2' },
      'block-size': MiB,
      count: 4,
    },
    'format image target layout space',
  ],
  [
    'dd over another file',
    'image-dd',
    { image: qcow2('base.qcow2'), target: { filename: 'plain.raw' }, skip: 4096 },
    'format image target layout space',
  ],
];

/** What the plan says first; `data.kind` and the message of the operation are the same. */
type Refused = readonly [name: string, method: string, params: object, check: string, kind: string];

const create = (more: object) => ({ filename: 'new.qcow2', format: 'qcow2', size: MiB, ...more });
const REFUSED: readonly Refused[] = [
  ['no such format', 'image-create', create({ format: 'bogus' }), 'format', 'invalid'],
  ['no such option', 'image-create', create({ options: { bogus: 1 } }), 'options', 'invalid'],
  ['two sizes', 'image-create', create({ options: { size: 1 } }), 'options', 'invalid'],
  [
    'a missing backing file',
    'image-create',
    create({ backing: 'none', 'backing-format': 'raw' }),
    'backing',
    'not-found',
  ],
  [
    'its own backing file',
    'image-create',
    create({ filename: './top.qcow2', backing: 'top.qcow2', 'backing-format': 'qcow2' }),
    'backing',
    'invalid',
  ],
  [
    'a backing file of another format',
    'image-create',
    create({ backing: 'plain.raw', 'backing-format': 'qcow2' }),
    'backing',
    'invalid',
  ],
  ['no size', 'image-create', { filename: 'new.qcow2', format: 'qcow2' }, 'backing', 'invalid'],
  ['clusters of three bytes', 'image-create', create({ options: { cluster_size: 3 } }), 'layout', 'invalid'],
  ['too large', 'image-create', create({ size: 2 ** 52, options: { cluster_size: 512 } }), 'layout', 'limit'],
  ['no such folder', 'image-create', create({ filename: 'nowhere/new.qcow2' }), 'target', 'not-found'],
  ['a folder', 'image-create', create({ filename: '.' }), 'target', 'io'],
  ['a target in use', 'image-create', create({ filename: 'held.qcow2' }), 'target', 'locked'],
  [
    'a target in use, to be replaced',
    'image-create',
    create({ filename: 'held.qcow2', atomic: true }),
    'target',
    'locked',
  ],
  [
    'several files under a temporary name',
    'image-create',
    create({ format: 'vmdk', options: { subformat: 'monolithicFlat' }, atomic: true }),
    'layout',
    'unsupported',
  ],
  ['no backing file', 'image-commit', { image: qcow2('base.qcow2') }, 'base', 'invalid'],
  ['no such layer', 'image-commit', { image: qcow2('top.qcow2'), base: 'other.qcow2' }, 'base', 'invalid'],
  ['a base in use', 'image-commit', { image: qcow2('over-held.qcow2') }, 'image', 'locked'],
  ['an image in use', 'image-commit', { image: qcow2('held.qcow2') }, 'image', 'locked'],
  ['a base that cannot grow', 'image-commit', { image: qcow2('over-window.qcow2') }, 'resize', 'unsupported'],
  [
    'nothing to compress with',
    'image-rebase',
    { image: { ...raw('plain.raw') }, compress: true },
    'options',
    'unsupported',
  ],
  [
    'no such format to rebase to',
    'image-rebase',
    { image: qcow2('top.qcow2'), backing: 'base.qcow2', 'backing-format': 'bogus' },
    'options',
    'invalid',
  ],
  [
    'a missing new backing file',
    'image-rebase',
    { image: qcow2('top.qcow2'), backing: 'none', 'backing-format': 'raw' },
    'backing',
    'not-found',
  ],
  [
    'the image itself below it',
    'image-rebase',
    { image: qcow2('top.qcow2'), backing: 'top.qcow2', 'backing-format': 'qcow2' },
    'backing',
    'locked',
  ],
  [
    'an overlay of the image below it',
    'image-rebase',
    { image: qcow2('base.qcow2'), backing: 'top.qcow2', 'backing-format': 'qcow2' },
    'backing',
    'locked',
  ],
  [
    'another format below it',
    'image-rebase',
    { image: qcow2('top.qcow2'), backing: 'plain.raw', 'backing-format': 'qcow2' },
    'backing',
    'invalid',
  ],
  [
    'no format of the new backing file',
    'image-rebase',
    { image: qcow2('top.qcow2'), backing: 'other.qcow2' },
    'changeable',
    'invalid',
  ],
  [
    'a name that does not fit',
    'image-rebase',
    { image: qcow2('top.qcow2'), backing: 'x'.repeat(1024), 'backing-format': 'raw', unsafe: true },
    'name',
    'invalid',
  ],
  [
    'smaller, without being allowed to',
    'image-resize',
    { image: qcow2('base.qcow2'), size: MiB },
    'size',
    'invalid',
  ],
  [
    'nothing left',
    'image-resize',
    { image: qcow2('base.qcow2'), size: -16 * MiB, relative: true, shrink: true },
    'size',
    'invalid',
  ],
  [
    'allocated but not grown',
    'image-resize',
    { image: qcow2('base.qcow2'), size: MiB, shrink: true, preallocation: 'full' },
    'size',
    'invalid',
  ],
  [
    'larger than the format has it',
    'image-resize',
    { image: qcow2('base.qcow2'), size: 2 ** 52 },
    'resize',
    'limit',
  ],
  [
    'metadata of a raw image',
    'image-resize',
    { image: raw('plain.raw'), size: 8 * MiB, preallocation: 'metadata' },
    'resize',
    'unsupported',
  ],
  ['no such image', 'image-resize', { image: qcow2('nothing.qcow2'), size: MiB }, 'image', 'not-found'],
  [
    'a file for reading alone',
    'image-resize',
    {
      image: { 'image-opts': 'driver=qcow2,read-only=on,file.driver=file,file.filename=base.qcow2' },
      size: 64 * MiB,
    },
    'image',
    'read-only',
  ],
  ['another format', 'image-resize', { image: qcow2('plain.raw'), size: 64 * MiB }, 'image', 'invalid'],
  [
    'no such snapshot to apply',
    'image-snapshot',
    { image: qcow2('kept.qcow2'), action: 'apply', snapshot: 'new' },
    'apply',
    'not-found',
  ],
  [
    'no such snapshot to delete',
    'image-snapshot',
    { image: qcow2('kept.qcow2'), action: 'delete', snapshot: 'new' },
    'delete',
    'not-found',
  ],
  [
    'no snapshots in raw images',
    'image-snapshot',
    { image: raw('plain.raw'), action: 'create', snapshot: 's' },
    'create',
    'unsupported',
  ],
  [
    'snapshots beside bitmaps',
    'image-snapshot',
    { image: qcow2('marked.qcow2'), action: 'apply', snapshot: 's' },
    'apply',
    'unsupported',
  ],
  [
    'an option of creation',
    'image-amend',
    { image: qcow2('base.qcow2'), options: { cluster_size: 4096 } },
    'options',
    'invalid',
  ],
  [
    'a level that there is not',
    'image-amend',
    { image: qcow2('base.qcow2'), options: { compat: '7' } },
    'amend',
    'invalid',
  ],
  [
    'lazy refcounts in the old format',
    'image-amend',
    { image: qcow2('base.qcow2'), options: { compat: '0.10', lazy_refcounts: true } },
    'amend',
    'invalid',
  ],
  [
    'options of a raw image',
    'image-amend',
    { image: raw('plain.raw'), options: { size: MiB } },
    'options',
    'unsupported',
  ],
  [
    'a bitmap twice',
    'image-bitmap',
    { image: qcow2('marked.qcow2'), bitmap: 'm', actions: [{ action: 'add' }] },
    'actions',
    'invalid',
  ],
  [
    'no such bitmap',
    'image-bitmap',
    { image: qcow2('marked.qcow2'), bitmap: 'x', actions: [{ action: 'remove' }] },
    'actions',
    'not-found',
  ],
  [
    'granularity of three bytes',
    'image-bitmap',
    { image: qcow2('base.qcow2'), bitmap: 'x', granularity: 3, actions: [{ action: 'add' }] },
    'actions',
    'invalid',
  ],
  [
    'bitmaps of a missing image',
    'image-bitmap',
    {
      image: qcow2('marked.qcow2'),
      bitmap: 'm',
      source: qcow2('none'),
      actions: [{ action: 'merge', source: 'o' }],
    },
    'source',
    'not-found',
  ],
  [
    'bitmaps of the same image, named twice',
    'image-bitmap',
    {
      image: qcow2('marked.qcow2'),
      bitmap: 'm',
      source: qcow2('marked.qcow2'),
      actions: [{ action: 'merge', source: 'm' }],
    },
    'source',
    'locked',
  ],
  [
    'repair of a raw image',
    'image-check',
    { image: raw('plain.raw'), repair: 'leaks' },
    'repair',
    'unsupported',
  ],
  [
    'repair of an image in use',
    'image-check',
    { image: qcow2('held.qcow2'), repair: 'all' },
    'image',
    'locked',
  ],
  [
    'dd from nothing',
    'image-dd',
    { image: qcow2('none'), target: { filename: 'd.raw' } },
    'image',
    'not-found',
  ],
  [
    'dd to no format',
    'image-dd',
    { image: qcow2('base.qcow2'), target: { filename: 'd.raw', format: 'bogus' } },
    'format',
    'invalid',
  ],
  [
    'dd to what is in use',
    'image-dd',
    { image: qcow2('base.qcow2'), target: { filename: 'held.qcow2' } },
    'target',
    'locked',
  ],
  [
    'dd to no folder',
    'image-dd',
    { image: qcow2('base.qcow2'), target: { filename: 'nowhere/d.raw' } },
    'target',
    'not-found',
  ],
];

describeInterop('dry runs', () => {
  beforeAll(async () => {
    mkdirSync(seed);
    const at = (name: string) => join(seed, name);
    const make = (name: string, size: string, ...more: string[]) =>
      img('create', '-q', '-f', 'qcow2', ...more, at(name), size);
    const over = (name: string) => ['-b', name, '-F', 'qcow2'];
    make('base.qcow2', '16M');
    io(at('base.qcow2'), 'write -q -P 1 0 4M');
    make('other.qcow2', '16M');
    io(at('other.qcow2'), 'write -q -P 1 0 2M', 'write -q -P 2 8M 3M');
    img('bitmap', '--add', at('other.qcow2'), 'o');
    make('top.qcow2', '16M', ...over('base.qcow2'));
    io(at('top.qcow2'), 'write -q -P 3 2M 1M', 'write -q -P 3 8M 64k', 'write -q -z 1M 1M');
    make('longer.qcow2', '32M', ...over('base.qcow2'));
    io(at('longer.qcow2'), 'write -q -P 4 24M 1M');
    make('kept.qcow2', '16M');
    io(at('kept.qcow2'), 'write -q -P 5 0 1M');
    img('snapshot', '-c', 'old', at('kept.qcow2'));
    io(at('kept.qcow2'), 'write -q -P 6 0 2M');
    make('marked.qcow2', '16M');
    img('snapshot', '-c', 's', at('marked.qcow2'));
    img('bitmap', '--add', at('marked.qcow2'), 'm');
    make('held.qcow2', '16M');
    make('over-held.qcow2', '16M', ...over('held.qcow2'));
    writeFileSync(at('plain.raw'), Buffer.alloc(4 * MiB, 7));
    const window = `json:{"driver":"raw","size":"${MiB}","file":{"driver":"file","filename":"plain.raw"}}`;
    run(
      reference.qemuImg!,
      ['create', '-q', '-f', 'qcow2', '-u', '-b', window, '-F', 'raw', 'over-window.qcow2', '16M'],
      { cwd: seed },
    );
    leak(at('leaky.qcow2'));
    running = await startDaemon(join(folder, 'd.sock'), [], { real: true });
    peer = await Peer.connect(running.socket);
  });
  afterAll(() => void running.process.kill('SIGKILL'));

  /** A cluster at the end that is counted and that nobody refers to. */
  function leak(path: string): void {
    img('create', '-q', '-f', 'qcow2', path, '16M');
    io(path, 'write -q 0 1M');
    const bytes = readFileSync(path);
    const table = Number(bytes.readBigUInt64BE(48));
    const block = Number(bytes.readBigUInt64BE(table));
    bytes.writeUInt16BE(1, block + 2 * (bytes.length / 65536));
    writeFileSync(path, Buffer.concat([bytes, Buffer.alloc(65536)]));
  }

  it.each(WELL)('%s: nothing is in the way, and then it is done', async (_, method, params, names) => {
    fresh();
    const told = await dry(method, params);
    expect(told.error).toBeUndefined();
    const { plan, ...result } = told.result as { plan: Plan };
    expect(plan.checks.map(({ name }) => name).join(' ')).toBe(names);
    expect(failures(plan)).toEqual([]);
    expect(plan.checks.filter(({ status }) => status !== 'ok')).toEqual([]);
    expect(plan.ok).toBe(true);
    expect(plan.free).toBeGreaterThan(0);
    const before = allocated();
    const done = await peer.call(method, { cwd, ...params });
    expect(done.error).toBeUndefined();
    if (method !== 'image-commit' && method !== 'image-rebase' && method !== 'image-snapshot')
      expect(result).toEqual(done.result);
    expect(allocated() - before).toBeLessThanOrEqual(plan.required!);
  });

  it.each(REFUSED)(
    '%s: said before, and in the same words as after',
    async (_, method, params, check, kind) => {
      fresh();
      const needsHolder = JSON.stringify(params).includes('held');
      const holder = needsHolder
        ? spawn(reference.qemuIo!, ['-f', 'qcow2', join(cwd, 'held.qcow2')], {
            stdio: ['pipe', 'pipe', 'ignore'],
          })
        : undefined;
      try {
        // Its prompt says that the image is open.
        if (holder !== undefined) await new Promise((resolve) => holder.stdout.once('data', resolve));
        const told = await dry(method, params);
        expect(told.error).toBeUndefined();
        const { plan } = told.result as { plan: Plan };
        const [first] = failures(plan);
        expect(first).toMatchObject({ name: check, kind });
        expect(plan.ok).toBe(false);
        const done = await peer.call(method, { cwd, ...params });
        expect(done.error?.message).toBe(first!.text);
        expect(done.error?.data).toMatchObject({ kind });
      } finally {
        holder?.kill('SIGKILL');
      }
    },
  );
});
