/** Images that the daemon holds: blockdev-add and what can be done with a node, and with its file meanwhile. */
import { mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { lockedBytes } from '../support/locked-bytes.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { type Answer, Peer, startDaemon } from './support/daemon.js';

const folder = tempDir();
const at = (name: string) => join(folder, name);
let sockets = 0;

const img = (...args: string[]) => run(reference.qemuImg!, args);
const io = (format: string, file: string, ...commands: string[]) =>
  run(reference.qemuIo!, ['-f', format, ...commands.flatMap((command) => ['-c', command]), file]);

const file = (filename: string, more = {}) => ({ driver: 'file', filename, ...more });
const qcow2 = (name: string, filename: string, more = {}) => ({
  driver: 'qcow2',
  'node-name': name,
  file: file(filename),
  ...more,
});

async function daemon(flags: readonly string[] = [], options = { real: true }) {
  const running = await startDaemon(at(`b${++sockets}.sock`), flags, options);
  const peer = await Peer.connect(running.socket);
  await peer.call('events-subscribe');
  return {
    running,
    peer,
    ok: async (method: string, params?: unknown) => result(await peer.call(method, params)),
  };
}

function result(answer: Answer) {
  expect(answer.error).toBeUndefined();
  return answer.result;
}

const message = async (answer: Promise<Answer>) => (await answer).error?.message;

const locks = (pid: number, name: string) => lockedBytes(pid, at(name));

describeInterop('held images', () => {
  beforeAll(() => {
    img('create', '-q', '-f', 'raw', at('base.raw'), '8M');
    io('raw', at('base.raw'), 'write -q -P 1 0 4M');
  });

  function create(name: string, ...args: string[]): string {
    img('create', '-q', '-f', 'qcow2', ...args, at(name), ...(args.includes('-b') ? [] : ['8M']));
    return at(name);
  }

  it('are used by their names, and closed to others until they are let go', async () => {
    const path = create('use.qcow2');
    io('qcow2', path, 'write -q -P 5 1M 2M');
    const { running, peer, ok } = await daemon();
    await ok('blockdev-add', qcow2('n', path));
    expect((await ok('query-status', {})).nodes).toBe(1);
    const { images } = await ok('image-info', { image: { node: 'n' } });
    expect(images[0]).toMatchObject({ filename: path, format: 'qcow2', 'virtual-size': 8 << 20 });
    expect((await ok('image-info', { image: { 'image-opts': 'n' } })).images[0].filename).toBe(path);
    const { entries } = await ok('image-map', { image: { node: 'n' } });
    expect(
      entries.some((entry: { start: number; data: boolean }) => entry.start === 1 << 20 && entry.data),
    ).toBe(true);
    expect((await ok('image-check', { image: { node: 'n' } })).check['check-errors']).toBe(0);
    await ok('image-convert', { sources: [{ node: 'n' }], target: { filename: at('use.raw') } });
    expect(img('compare', '-U', at('use.raw'), path).status).toBe(0);

    expect(img('info', path).stderr).toContain('Failed to get shared "write" lock');
    const refused = await peer.call('image-info', { image: { filename: path } });
    expect(refused.error).toMatchObject({
      message: `Could not open '${path}': Failed to get shared "write" lock`,
      data: { kind: 'locked', holder: { pid: running.process.pid, node: 'n' }, job: expect.any(String) },
    });
    await ok('blockdev-del', { 'node-name': 'n' });
    expect(img('info', path).status).toBe(0);
    const names = peer
      .events()
      .map(({ event }) => event)
      .filter((event) => event.startsWith('BLOCKDEV'));
    expect(names).toEqual(['BLOCKDEV_ADDED', 'BLOCKDEV_REMOVED']);
    expect((await ok('query-status', {})).nodes).toBe(0);
  });

  it('are changed by jobs, and are what they were changed to', async () => {
    const path = create('change.qcow2');
    const { ok } = await daemon();
    await ok('blockdev-add', qcow2('n', path));
    await ok('image-convert', {
      sources: [{ filename: at('base.raw') }],
      target: { node: 'n' },
      create: false,
    });
    await ok('image-snapshot', { image: { node: 'n' }, action: 'create', snapshot: 's' });
    await ok('image-bitmap', { image: { node: 'n' }, bitmap: 'b', actions: [{ action: 'add' }] });
    await ok('image-resize', { image: { node: 'n' }, size: 16 << 20 });
    await ok('image-bench', {
      image: { node: 'n' },
      write: true,
      count: 64,
      'buffer-size': 65_536,
      step: 65_536,
    });
    const { images } = await ok('image-info', { image: { node: 'n' } });
    expect(images[0]).toMatchObject({ 'virtual-size': 16 << 20, snapshots: [{ name: 's' }] });
    expect((await ok('query-named-block-nodes'))[0].image['virtual-size']).toBe(16 << 20);
    await ok('image-bitmap', { image: { node: 'n' }, bitmap: 'b', actions: [{ action: 'remove' }] });
    await ok('image-snapshot', { image: { node: 'n' }, action: 'apply', snapshot: 's' });
    await ok('image-check', { image: { node: 'n' }, repair: 'all' });
    await ok('blockdev-del', { 'node-name': 'n' });
    expect(img('check', path).stdout).toContain('No errors');
    expect(img('compare', at('base.raw'), path).status).toBe(0);
  });

  it('are not used by two jobs that do not go together, nor let go under one', async () => {
    const path = create('busy.qcow2');
    io('qcow2', path, 'write -q -P 5 0 8M');
    const { peer, ok } = await daemon();
    await ok('blockdev-add', qcow2('n', path));
    await ok('image-convert', {
      sources: [{ node: 'n' }],
      target: { filename: at('busy.copy'), format: 'qcow2' },
      'rate-limit': 1 << 17,
      job: { id: 'slow', wait: false },
    });
    await peer.status('slow', 'running');
    await peer.until(() => peer.events('JOB_PROGRESS')[0]);
    const bitmap = peer.call('image-bitmap', {
      image: { node: 'n' },
      bitmap: 'b',
      actions: [{ action: 'add' }],
    });
    expect((await bitmap).error).toMatchObject({
      message:
        "Could not open 'n': Node 'n' is busy: block device is in use by block job: image-convert (job 'slow')",
      data: { kind: 'locked', holder: { node: 'n', job: 'slow' }, job: expect.stringMatching(/^job-/) },
    });
    const writer = peer.call('image-bench', { image: { node: 'n' }, write: true, count: 1 });
    expect(await message(writer)).toMatch(
      /Permission conflict on node 'n': permissions 'write' are both required by image-bench job 'job-\d+' .* and unshared by image-convert job 'slow'/,
    );
    expect(await message(peer.call('blockdev-del', { 'node-name': 'n' }))).toBe(
      "Node 'n' is busy: block device is in use by block job: image-convert (job 'slow')",
    );
    const reopened = peer.call('blockdev-reopen', { options: [qcow2('n', path, { 'read-only': true })] });
    expect(await message(reopened)).toContain("Node 'n' is busy");
    await ok('image-info', { image: { node: 'n' } });
    const open: { filename: string; users: unknown[] }[] = await ok('query-image-users');
    const held = open.find(({ filename }) => filename === path)!;
    const target = open.find(({ filename }) => filename === at('busy.copy'));
    expect(held.users).toMatchObject([{ kind: 'node', node: 'n', jobs: ['slow'] }]);
    expect(target).toMatchObject({ filename: at('busy.copy'), users: [{ kind: 'job', job: 'slow' }] });
    const over = peer.call('image-create', { filename: at('busy.copy'), format: 'qcow2', size: 512 });
    expect((await over).error?.data).toMatchObject({ kind: 'locked', holder: { job: 'slow' } });
    await ok('job-cancel', { id: 'slow' });
    await peer.status('slow', 'concluded');
    await ok('blockdev-del', { 'node-name': 'n' });
  });

  it('are read and written by several jobs at once', async () => {
    const path = create('mix.qcow2');
    io('qcow2', path, 'write -q -c -P 3 0 1M', 'write -q -P 3 1M 7M');
    const { ok } = await daemon();
    await ok('blockdev-add', qcow2('n', path, { discard: 'unmap', 'detect-zeroes': 'unmap' }));
    const image = { node: 'n' };
    // Zeros give clusters back, which the next writes take; readers must see one byte's value or the other's.
    const size = { 'buffer-size': 65_536, step: 65_536, depth: 8, count: 256 };
    const writing = (async () => {
      for (const pattern of [9, 0, 9, 0, 3])
        await ok('image-bench', { image, write: true, pattern, ...size, count: 128 });
    })();
    const reading = Promise.all([
      ok('image-bench', { image, ...size }),
      ok('image-compare', { a: image, b: image }),
      ok('image-map', { image }),
      ok('image-dd', { image, target: { filename: at('mix.raw') } }),
    ]);
    await Promise.all([writing, reading]);
    expect((await ok('image-check', { image })).check['check-errors']).toBe(0);
    await ok('blockdev-del', { 'node-name': 'n' });
    expect(img('check', path).stdout).toContain('No errors');
    expect(io('qcow2', path, 'read -P 3 0 8M').stdout).not.toContain('Pattern verification failed');
    const copied = [...new Set(readFileSync(at('mix.raw')))].sort();
    expect([0, 3, 9]).toEqual(expect.arrayContaining(copied));
  });

  it('are not changed under those that stand on them', async () => {
    const low = create('under.qcow2');
    io('qcow2', low, 'write -q -P 3 0 8M');
    const top = create('over.qcow2', '-b', low, '-F', 'qcow2');
    const { peer, ok } = await daemon();
    await ok('blockdev-add', qcow2('low', low));
    await ok('blockdev-add', qcow2('top', top, { backing: 'low' }));
    const bitmap = (name: string) => ({ image: { node: 'low' }, bitmap: name, actions: [{ action: 'add' }] });
    await ok('image-bitmap', bitmap('one'));
    await ok('image-dd', {
      image: { node: 'top' },
      target: { filename: at('over.raw') },
      job: { id: 'dd', wait: false, 'rate-limit': 1 << 20 },
    });
    await peer.status('dd', 'running');
    await peer.until(() =>
      peer.events('JOB_PROGRESS').find(({ data }) => (data as { id: string }).id === 'dd'),
    );
    expect(await message(peer.call('image-bitmap', bitmap('two')))).toMatch(
      /Permission conflict on node 'low': permissions 'consistent read' are both required by node 'top' \(uses node 'low' as 'backing' child\) and unshared by image-bitmap job 'job-\d+'/,
    );
    await ok('job-set-speed', { id: 'dd', speed: 0 });
    await peer.status('dd', 'concluded');
    await ok('image-bitmap', bitmap('two'));
    expect(img('compare', '-U', at('over.raw'), low).status).toBe(0);
  });

  it('are not to be named by an image', async () => {
    const path = create('secret.qcow2');
    const name = 'json:{"driver":"raw","file":"secret"}';
    img('create', '-q', '-u', '-f', 'qcow2', '-F', 'raw', '-b', name, at('spy.qcow2'), '1M');
    const { peer, ok } = await daemon();
    await ok('blockdev-add', qcow2('secret', path));
    const spy = await peer.call('blockdev-add', qcow2('spy', at('spy.qcow2')));
    expect(spy.error?.data).toMatchObject({ kind: 'denied', check: 'node-in-image' });
    expect((await peer.call('image-map', { image: { filename: at('spy.qcow2') } })).error).toBeDefined();
    // The caller may.
    await ok('image-map', { image: { 'image-opts': 'driver=raw,file=secret' } });
    expect(await ok('query-named-block-nodes')).toHaveLength(2);
  });

  it('share what their holder says', async () => {
    img('create', '-q', '-f', 'raw', at('share.raw'), '1M');
    const { running, peer, ok } = await daemon();
    const raw = { driver: 'raw', 'node-name': 'r', file: file(at('share.raw')) };
    await ok('blockdev-add', raw);
    expect(locks(running.process.pid!, 'share.raw')).toBe('');
    expect(io('raw', at('share.raw'), 'write -q 0 512').status).toBe(0);
    await ok('blockdev-del', { 'node-name': 'r' });
    await ok('blockdev-add', { ...raw, share: ['consistent-read'] });
    expect(locks(running.process.pid!, 'share.raw')).toBe('201 202 203');
    expect(io('raw', at('share.raw'), 'write -q 0 512').stderr).toContain('Failed to get "write" lock');
    expect(io('raw', at('share.raw'), 'read -q 0 512').stderr).toContain('Failed to get "write" lock');
    expect(run(reference.qemuIo!, ['-r', '-f', 'raw', '-c', 'read -q 0 512', at('share.raw')]).status).toBe(
      0,
    );
    const writer = peer.call('image-bench', { image: { node: 'r' }, write: true, count: 1 });
    expect(await message(writer)).toMatch(
      /required by image-bench job .* unshared by its holder \(blockdev-add of node 'r'/,
    );
    await ok('image-bench', { image: { node: 'r' }, count: 1 });
    expect(await message(peer.call('blockdev-add', { ...raw, 'node-name': 'x', share: ['all'] }))).toContain(
      'share',
    );
  });

  it('are two names of one file: a second open by another name is refused', async () => {
    const path = create('names.qcow2');
    symlinkSync(path, at('alias.qcow2'));
    const { peer, ok } = await daemon();
    await ok('blockdev-add', qcow2('n', path));
    const second = await peer.call('blockdev-add', qcow2('m', at('alias.qcow2')));
    expect(second.error).toMatchObject({
      message: 'Failed to get "write" lock',
      data: { holder: { node: 'n' } },
    });
    await ok('blockdev-add', qcow2('m', at('alias.qcow2'), { 'read-only': true, 'force-share': true }));
    expect((await ok('query-image-users', { filename: at('alias.qcow2') }))[0].users).toHaveLength(2);
  });

  it('are reopened with their locks kept', async () => {
    const path = create('reopen.qcow2', '-b', at('base.raw'), '-F', 'raw');
    const { running, peer, ok } = await daemon();
    const pid = running.process.pid!;
    const options = qcow2('n', path, { backing: null });
    await ok('blockdev-add', options);
    expect(locks(pid, 'reopen.qcow2')).toBe('100 101 103 201 203');
    await ok('blockdev-reopen', { options: [{ ...options, 'read-only': true }] });
    expect(locks(pid, 'reopen.qcow2')).toBe('100 201 203');
    const write = { image: { node: 'n' }, write: true, count: 1 };
    expect(await message(peer.call('image-bench', write))).toContain('Block node is read-only');
    await ok('blockdev-add', {
      driver: 'raw',
      'node-name': 'b',
      'read-only': true,
      file: file(at('base.raw')),
    });
    await ok('blockdev-reopen', {
      options: [{ ...options, backing: 'b', 'detect-zeroes': 'on', 'lazy-refcounts': true }],
    });
    await ok('image-bench', write);
    const [, , top] = await ok('query-named-block-nodes');
    expect(top).toMatchObject({ 'node-name': 'n', ro: false, detect_zeroes: 'on', backing_file_depth: 1 });
    expect(await message(peer.call('blockdev-del', { 'node-name': 'b' }))).toBe(
      "Node 'b' is busy: node is used as backing hd of 'n'",
    );
    // All or none.
    const both = [
      { ...options, 'read-only': true, backing: 'b' },
      { ...options, 'node-name': 'nobody' },
    ];
    expect(await message(peer.call('blockdev-reopen', { options: both }))).toBe(
      "Failed to find node with node-name='nobody'",
    );
    await ok('image-bench', write);
    await ok('blockdev-reopen', { options: [options] });
    await ok('blockdev-del', { 'node-name': 'b' });
  });

  it('are committed into their backing file, which is as before then', async () => {
    img('create', '-q', '-f', 'qcow2', at('low.qcow2'), '8M');
    const path = create('top.qcow2', '-b', at('low.qcow2'), '-F', 'qcow2');
    io('qcow2', path, 'write -q -P 7 1M 1M');
    const { running, ok } = await daemon();
    const pid = running.process.pid!;
    await ok('blockdev-add', qcow2('n', path));
    const before = [locks(pid, 'top.qcow2'), locks(pid, 'low.qcow2')];
    expect(before[1]).toBe('100 201 203');
    const done = await ok('image-commit', { image: { node: 'n' } });
    expect(done).toMatchObject({ written: 1 << 20, emptied: true });
    expect([locks(pid, 'top.qcow2'), locks(pid, 'low.qcow2')]).toEqual(before);
    const nodes = await ok('query-named-block-nodes', { flat: true });
    expect(nodes.map(({ drv, ro }: { drv: string; ro: boolean }) => `${drv} ${ro}`)).toEqual([
      'qcow2 true',
      'file true',
      'qcow2 false',
      'file false',
    ]);
    await ok('image-rebase', { image: { node: 'n' }, backing: '' });
    expect((await ok('query-named-block-nodes')).length).toBe(2);
    await ok('blockdev-del', { 'node-name': 'n' });
    expect(io('qcow2', at('low.qcow2'), 'read -P 7 1M 1M').stdout).not.toContain(
      'Pattern verification failed',
    );
    expect(io('qcow2', path, 'read -P 7 1M 1M').stdout).not.toContain('Pattern verification failed');
  });

  it('are closed cleanly when the daemon stops', async () => {
    const path = create('stop.qcow2', '-o', 'lazy_refcounts=on');
    const { running, ok } = await daemon();
    await ok('blockdev-add', qcow2('n', path));
    await ok('image-bench', {
      image: { node: 'n' },
      write: true,
      count: 64,
      'buffer-size': 65_536,
      step: 65_536,
    });
    running.process.kill('SIGTERM');
    expect(await running.exited).toBe(0);
    const { stdout } = img('info', '--output=json', path);
    expect(JSON.parse(stdout)['dirty-flag']).toBe(false);
    expect(img('check', path).stdout).toContain('No errors');
  });

  it('keeps to the image roots, for each file of a chain', async () => {
    mkdirSync(at('inside'), { recursive: true });
    img('create', '-q', '-f', 'qcow2', '-b', at('base.raw'), '-F', 'raw', at('inside/out.qcow2'));
    const { peer, ok } = await daemon(['--root', at('inside')]);
    const denied = await peer.call('blockdev-add', {
      driver: 'raw',
      'node-name': 'r',
      file: file(at('base.raw')),
    });
    expect(denied.error?.data).toMatchObject({ kind: 'denied', check: 'image-root' });
    const below = await peer.call('blockdev-add', qcow2('n', at('inside/out.qcow2')));
    expect(below.error?.data).toMatchObject({ kind: 'denied', check: 'image-root-backing' });
    const named = await peer.call('blockdev-add', qcow2('n', at('inside/../base.raw')));
    expect(named.error?.data).toMatchObject({ kind: 'denied' });
    expect((await peer.call('query-image-users', { filename: at('base.raw') })).error?.data?.kind).toBe(
      'denied',
    );
    await ok('blockdev-add', qcow2('n', at('inside/out.qcow2'), { backing: null }));
  });
});

describeInterop('the engine thread', () => {
  it('takes its images with it when it dies, and not the daemon', async () => {
    img('create', '-q', '-f', 'qcow2', at('crash.qcow2'), '1M');
    const { running, peer, ok } = await daemon([], { real: false });
    await ok('blockdev-add', qcow2('n', at('crash.qcow2')));
    expect(img('info', at('crash.qcow2')).status).toBe(1);
    const crashed = await peer.call('image-check', { image: { filename: 'crash', node: 'n' } });
    expect(crashed.error?.data).toMatchObject({ kind: 'worker-lost' });
    const lost = await peer.until(() => peer.events('BLOCKDEV_LOST')[0]);
    expect(lost.data).toMatchObject({
      'node-name': 'n',
      reason: expect.stringContaining('crash on purpose'),
    });
    expect(await ok('query-named-block-nodes')).toEqual([]);
    expect(img('info', at('crash.qcow2')).status).toBe(0);
    await ok('blockdev-add', qcow2('n', at('crash.qcow2')));
    expect(running.process.exitCode).toBeNull();
  });

  it('that hangs is ended with the job that hangs it', async () => {
    img('create', '-q', '-f', 'qcow2', at('hang.qcow2'), '1M');
    const { peer, ok } = await daemon(['--kill-timeout', '0'], { real: false });
    await ok('blockdev-add', qcow2('n', at('hang.qcow2')));
    await ok('image-check', { image: { filename: 'spin', node: 'n' }, job: { id: 'spin', wait: false } });
    await peer.status('spin', 'running');
    await ok('job-cancel', { id: 'spin' });
    await peer.until(() => peer.events('BLOCKDEV_LOST')[0]);
    expect(img('info', at('hang.qcow2')).status).toBe(0);
  });
});

describe('without any image held', () => {
  it('the commands about them answer', async () => {
    const { peer, ok } = await daemon();
    expect(await ok('query-named-block-nodes')).toEqual([]);
    expect(await ok('query-image-users')).toEqual([]);
    expect(await message(peer.call('blockdev-del', { 'node-name': 'n' }))).toBe(
      "Failed to find node with node-name='n'",
    );
    expect(await message(peer.call('image-info', { image: { node: 'n' } }))).toBe(
      "Could not open 'n': Cannot find device='n' nor node-name='n'",
    );
    expect((await peer.call('image-info', { image: { node: 'n', filename: 'x' } })).error?.data?.kind).toBe(
      'invalid',
    );
    expect(await message(peer.call('blockdev-add', { driver: 'qcow2' }))).toBe("Parameter 'file' is missing");
    expect((await peer.call('blockdev-add', { driver: 'raw', cwd: 'x' })).error?.data?.member).toBe('cwd');
  });
});
