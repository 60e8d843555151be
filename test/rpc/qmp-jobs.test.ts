/** Jobs and held images over QMP. */
import { describe, expect, it } from 'vitest';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { Peer } from './support/daemon.js';
import { createFile, holdImage, QmpPeer, type Reply, serveQmp } from './support/qmp.js';

const folder = tempDir();
const serve = () => serveQmp(folder);

describe('jobs', () => {
  it('are the same on both sockets, and can be ended out of band', async () => {
    const { socket, daemon, at } = await serve();
    const qmp = await QmpPeer.ready(socket, ['oob']);
    await createFile(qmp, 'f', at('a.raw'), 64 * 2 ** 20);
    const convert = {
      sources: [{ filename: at('a.raw'), format: 'raw' }],
      target: { filename: at('b.raw'), format: 'raw' },
      job: { id: 'copy', paused: true },
    };
    qmp.write(JSON.stringify({ execute: 'x-imgd-image-convert', arguments: convert, id: 'waits' }));
    await qmp.status('copy', 'paused');
    const rpc = await Peer.connect(daemon.socket);
    const { result } = await rpc.call('query-jobs', { id: 'copy' });
    expect(result[0]).toMatchObject({ id: 'copy', type: 'image-convert', status: 'paused' });
    const other = await QmpPeer.ready(socket);
    expect(await other.ok('query-block-jobs')).toMatchObject([{ device: 'copy', paused: true, speed: 0 }]);
    await other.ok('block-job-set-speed', { device: 'copy', speed: 1000 });
    expect(await other.ok('query-block-jobs')).toMatchObject([{ speed: 1000 }]);
    expect((await other.call('job-finalize', { id: 'copy' })).error.desc).toBe(
      "Job 'copy' in state 'paused' cannot accept command verb 'finalize'",
    );
    expect(await qmp.call('block-job-cancel', { device: 'copy' }, 'exec-oob')).toMatchObject({ return: {} });
    const failed = await qmp.until((reply) => reply.id === 'waits');
    expect(failed.error).toEqual({ class: 'GenericError', desc: 'Operation cancelled' });
    const names = qmp.lines
      .filter((line) => line.includes('copy') && line.includes('"event"'))
      .map((line) => JSON.parse(line) as Reply)
      .map(({ event, data }) => (event === 'JOB_STATUS_CHANGE' ? data.status : event));
    expect(names.slice(-4)).toEqual(['aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null']);
  });

  it("of imgd's own commands answer with their result, and tell of it as block jobs do", async () => {
    const { socket, at } = await serve();
    const qmp = await QmpPeer.ready(socket);
    await createFile(qmp, 'f', at('a.raw'), 2 ** 20);
    const image = { filename: at('a.raw'), format: 'raw' };
    const { images } = await qmp.ok('x-imgd-image-info', { image });
    expect(images).toMatchObject([{ 'virtual-size': 2 ** 20, format: 'raw' }]);
    const target = { filename: at('b.qcow2'), format: 'qcow2' };
    await qmp.ok('x-imgd-image-convert', { sources: [image], target, job: { id: 'c' } });
    const told = qmp.lines.map((line) => JSON.parse(line) as Reply);
    const end = told.find(({ event }) => event === 'BLOCK_JOB_COMPLETED');
    expect(end?.data).toMatchObject({ device: 'c', type: 'image-convert', speed: 0 });
    expect(end?.data.error).toBeUndefined();
    const bad = await qmp.call('x-imgd-image-convert', { sources: [{ ...image, colour: 1 }], target });
    expect(bad.error.desc).toBe("Parameter 'sources[0].colour' is unexpected");
  });

  it('keep their ids apart', async () => {
    const { socket, at } = await serve();
    const qmp = await QmpPeer.ready(socket);
    await createFile(qmp, 'j', at('a'), 4096);
    // Over JSON-RPC the same again would be a retry; QMP knows none.
    const options = { driver: 'file', filename: at('a'), size: 4096 };
    const again = await qmp.call('blockdev-create', { 'job-id': 'j', options });
    expect(again.error.desc).toBe("Job ID 'j' already in use");
  });
});

describeInterop('blockdev-create', () => {
  const images: readonly [string, object, object][] = [
    ['parallels', { 'cluster-size': 65536 }, {}],
    ['qcow', { 'backing-file': 'base.raw' }, { 'backing-filename': 'base.raw' }],
    ['qcow2', { version: 'v2' }, { 'format-specific': { data: { compat: '0.10' } } }],
    [
      'qcow2',
      {
        'cluster-size': 131072,
        'extended-l2': true,
        'lazy-refcounts': true,
        'refcount-bits': 8,
        'compression-type': 'zstd',
      },
      {
        'cluster-size': 131072,
        'format-specific': {
          data: {
            compat: '1.1',
            'extended-l2': true,
            'lazy-refcounts': true,
            'refcount-bits': 8,
            'compression-type': 'zstd',
          },
        },
      },
    ],
    ['qcow2', { 'backing-file': 'none.raw', 'backing-fmt': 'raw' }, { 'backing-filename-format': 'raw' }],
    ['qed', { 'cluster-size': 4096, 'table-size': 2 }, { 'cluster-size': 4096 }],
    ['vdi', { preallocation: 'metadata' }, {}],
    ['vhdx', { 'log-size': 2 ** 20, 'block-size': 2 ** 21, subformat: 'fixed' }, { 'cluster-size': 2 ** 21 }],
    [
      'vmdk',
      { subformat: 'streamOptimized', 'adapter-type': 'lsilogic', hwversion: '7' },
      { 'format-specific': { data: { 'create-type': 'streamOptimized' } } },
    ],
    ['vpc', { subformat: 'dynamic', 'force-size': true }, {}],
  ];

  it('makes images of every format with the options that QAPI has for it', async () => {
    const { socket, at } = await serve();
    const qmp = await QmpPeer.ready(socket);
    for (const [i, [driver, more]] of images.entries()) {
      const file = { driver: 'file', filename: at(`${i}.${driver}`) };
      await qmp.ok('blockdev-create', {
        'job-id': `c${i}`,
        options: { driver, file, size: 2 ** 22, ...more },
      });
    }
    for (const [i, [driver, , expected]] of images.entries()) {
      await qmp.status(`c${i}`, 'concluded');
      const info = run(reference.qemuImg!, ['info', '--output=json', '-f', driver, at(`${i}.${driver}`)]);
      expect(info.stderr).toBe('');
      expect(JSON.parse(info.stdout)).toMatchObject({ format: driver, 'virtual-size': 2 ** 22, ...expected });
    }
    expect(((await qmp.ok('query-jobs')) as Reply[]).filter((job) => job.error !== undefined)).toEqual([]);
  });
});

describeInterop('held images over QMP', () => {
  const bitmaps = (info: Reply): Reply[] => info['format-specific']?.data?.bitmaps ?? [];
  const stored = async (qmp: QmpPeer) =>
    bitmaps((await qmp.ok('x-imgd-image-info', { image: { node: 'disk' } })).images[0]);

  it('are created in a held file, listed, and sound', async () => {
    const { socket, at } = await serve();
    const qmp = await QmpPeer.ready(socket);
    await holdImage(qmp, at('a.qcow2'));
    const nodes = (await qmp.ok('query-named-block-nodes', { flat: true })) as Reply[];
    expect(nodes.map((node) => node['node-name'])).toEqual(['disk', 'disk-file']);
    const busy = await qmp.call('blockdev-create', {
      'job-id': 'again',
      options: { driver: 'qcow2', file: 'disk-file', size: 512 },
    });
    // In use by the image above it: the job fails, the image is as it was.
    expect(busy.error).toBeUndefined();
    await qmp.status('again', 'concluded');
    expect((await qmp.ok('query-jobs'))[0].error).toContain('disk-file');
    await qmp.ok('blockdev-del', { 'node-name': 'disk' });
    await qmp.ok('blockdev-del', { 'node-name': 'disk-file' });
    const check = run(reference.qemuImg!, ['check', at('a.qcow2')]);
    expect(check.stdout).toContain('No errors were found');
    expect(check.status).toBe(0);
  });

  it('have bitmaps, and transactions of their changes leave all or nothing', async () => {
    const { socket, at } = await serve();
    const qmp = await QmpPeer.ready(socket);
    await holdImage(qmp, at('a.qcow2'));
    const add = (name: string, more = {}) => ({ node: 'disk', name, persistent: true, ...more });
    await qmp.ok('block-dirty-bitmap-add', add('one', { granularity: 32768 }));
    await qmp.ok('block-dirty-bitmap-add', add('two', { disabled: true }));
    const before = await stored(qmp);
    expect(before.map(({ name, flags }) => [name, flags])).toEqual([
      ['one', ['auto']],
      ['two', []],
    ]);
    const action = (kind: string, data: object) => ({ type: `block-dirty-bitmap-${kind}`, data });
    const actions = [
      action('add', add('three')),
      action('disable', { node: 'disk', name: 'one' }),
      action('enable', { node: 'disk', name: 'two' }),
      action('merge', { node: 'disk', target: 'one', bitmaps: ['two'] }),
      action('clear', { node: 'disk', name: 'two' }),
      action('remove', { node: 'disk', name: 'two' }),
    ];
    const failed = await qmp.call('transaction', { actions: [...actions, { type: 'abort', data: {} }] });
    expect(failed.error.desc).toBe('Transaction aborted using Abort action');
    expect(await stored(qmp)).toEqual(before);
    await qmp.ok('transaction', { actions });
    expect((await stored(qmp)).map(({ name, flags }) => [name, flags])).toEqual([
      ['one', []],
      ['three', ['auto']],
    ]);
    // None of this is a job that anybody has started.
    expect(await qmp.ok('query-jobs')).toEqual([]);
    await qmp.ok('quit');
    await qmp.closed;
    const check = run(reference.qemuImg!, ['check', at('a.qcow2')]);
    expect(check.stdout).toContain('No errors were found');
  });
});
