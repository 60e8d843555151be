/** Dirty bitmaps over QMP: those in the image and those that are in memory alone, and what they record. */
import { truncateSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { DirtyBitmapInfo } from '../../src/protocol/commands/blockdev.js';
import { reference, run, tempDir } from '../support/reference.js';
import { besideReference, inTurn, QmpPeer, type Reply, serveQmp } from './support/qmp.js';

const folder = tempDir();
const KiB = 1024;
const MiB = 2 ** 20;

const bitmap = (verb: string, node: string, name: string, more = {}) =>
  [`block-dirty-bitmap-${verb}`, { node, name, ...more }] as const;
const merge = (node: string, target: string, ...bitmaps: unknown[]) =>
  ['block-dirty-bitmap-merge', { node, target, bitmaps }] as const;
const action = ([type, data]: readonly [string, object]) => ({ type, data });
const transaction = (...actions: (readonly [string, object])[]) =>
  ['transaction', { actions: actions.map(action) }] as const;
const QUERY = ['query-named-block-nodes', { flat: true }] as const;

async function bitmaps(qmp: QmpPeer): Promise<Record<string, DirtyBitmapInfo[] | undefined>> {
  const nodes = (await qmp.ok(...QUERY)) as unknown as Reply[];
  return Object.fromEntries(nodes.map((node) => [node['node-name'], node['dirty-bitmaps']]));
}

/** Dirty bytes by node and bitmap. */
async function counts(qmp: QmpPeer): Promise<Record<string, number>> {
  const found = Object.entries(await bitmaps(qmp));
  return Object.fromEntries(
    found.flatMap(([node, list]) => (list ?? []).map(({ name, count }) => [`${node}/${name}`, count])),
  );
}

const describeStorageDaemon = reference.qemuStorageDaemon === undefined ? describe.skip : describe;

describeStorageDaemon('dirty bitmaps, as the reference has them', () => {
  it('are made, merged, listed and removed, alone and in transactions', () =>
    besideReference(folder, 'bitmaps', async (qmp, at) => {
      const image = (...args: string[]) => run(reference.qemuImg!, args);
      image('create', '-q', '-f', 'qcow2', at('q'), '64M');
      for (const name of ['p1', 'p2']) image('bitmap', '--add', at('q'), name);
      run(reference.qemuIo!, ['-c', 'write 1M 200k', at('q')]);
      writeFileSync(at('r'), Buffer.alloc(10 * MiB));
      await qmp.ok('qmp_capabilities');
      const q = { driver: 'file', filename: at('q') };
      const r = { driver: 'file', filename: at('r'), 'node-name': 'rf' };
      await qmp.ok('blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: q });
      await qmp.ok('blockdev-add', { driver: 'raw', 'node-name': 'r', 'read-only': true, file: r });
      const script = [
        bitmap('add', 'q', 'm1'),
        bitmap('add', 'q', 'm2', { granularity: 512 }),
        bitmap('add', 'q', 'p1'),
        bitmap('add', 'q', 'p3', { persistent: true }),
        bitmap('add', 'q', 'p3'),
        bitmap('add', 'q', 'm1', { persistent: true }),
        bitmap('add', 'q', 'm3', { disabled: true }),
        bitmap('add', 'r', 'm1'),
        bitmap('add', 'rf', 'm1', { granularity: MiB }),
        bitmap('add', 'rf', 'm1'),
        bitmap('add', 'q', 'x'.repeat(1023)),
        bitmap('add', 'q', 'x'.repeat(1024)),
        bitmap('remove', 'q', 'x'.repeat(1023)),
        bitmap('add', 'q', 'm4', { granularity: 2 ** 31 }),
        bitmap('add', 'q', 'm5', { granularity: 2 ** 32 }),
        bitmap('add', 'q', 'm5', { granularity: 256 }),
        bitmap('add', 'r', 'p', { persistent: true }),
        bitmap('add', 'rf', 'p', { persistent: true }),
        bitmap('add', 'nope', 'p', { persistent: true }),
        merge('q', 'm1', 'p1'),
        merge('q', 'm2', 'p1'),
        merge('q', 'm2', 'p1', 'nope'),
        merge('q', 'm1', { node: 'r', name: 'm1' }),
        merge('r', 'm1', { node: 'q', name: 'm1' }),
        merge('nope', 'm1', 'm1'),
        merge('q', 'm1', { node: 'nope', name: 'm1' }),
        merge('q', 'p3', { node: 'q', name: 'm2' }),
        merge('q', 'm1', 'm1'),
        bitmap('clear', 'q', 'm1'),
        bitmap('disable', 'q', 'm1'),
        bitmap('disable', 'q', 'm1'),
        bitmap('enable', 'q', 'm3'),
        bitmap('disable', 'q', 'p2'),
        bitmap('remove', 'q', 'm2'),
        bitmap('remove', 'q', 'm2'),
        bitmap('clear', 'nope', 'm2'),
        bitmap('enable', 'nope', 'm2'),
        bitmap('clear', 'q', 'p1'),
        transaction(bitmap('add', 'q', 't1'), merge('q', 't1', 'm1', 'p3'), ['abort', {}]),
        transaction(
          bitmap('clear', 'q', 'p3'),
          bitmap('disable', 'q', 'm3'),
          merge('q', 'm4', 'p2'),
          bitmap('clear', 'q', 'nope'),
        ),
        transaction(
          bitmap('add', 'q', 't1'),
          bitmap('disable', 'q', 't1'),
          merge('q', 't1', 'm1', 'p3'),
          bitmap('remove', 'q', 'm1'),
        ),
        transaction(bitmap('clear', 'q', 't1'), bitmap('remove', 'q', 't1'), bitmap('clear', 'q', 't1')),
        transaction(bitmap('remove', 'q', 't1'), bitmap('add', 'q', 't1')),
        transaction(bitmap('remove', 'q', 't1'), bitmap('remove', 'q', 't1')),
        transaction(bitmap('add', 'q', 'u'), bitmap('remove', 'q', 't1'), merge('q', 'u', 't1')),
      ];
      const seen: unknown[] = [];
      for (const step of script) seen.push(await inTurn(qmp, [step]), await bitmaps(qmp));
      for (const name of ['q', 'r']) await qmp.ok('blockdev-del', { 'node-name': name });
      const left = JSON.parse(image('info', '--output=json', at('q')).stdout);
      return [seen, left['format-specific'].data.bitmaps];
    }));
});

describe('dirty bitmaps in memory', () => {
  async function held() {
    const { socket, at } = await serveQmp(folder);
    const qmp = await QmpPeer.ready(socket);
    const { status } = run(process.execPath, [
      ...['dist/clients/qemu-img/main.js', 'create', '-q', '-f', 'qcow2'],
      ...[at('disk'), '8M'],
    ]);
    expect(status).toBe(0);
    const file = { driver: 'file', filename: at('disk'), 'node-name': 'file' };
    await qmp.ok('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file });
    return { qmp, at };
  }
  const bench = (node: string, more: object) =>
    [
      'x-imgd-image-bench',
      { image: { node }, write: true, count: 1, depth: 1, 'buffer-size': 64 * KiB, ...more },
    ] as const;

  it('record what jobs write while they are enabled, of their own node', async () => {
    const { qmp } = await held();
    await qmp.ok(...bitmap('add', 'disk', 'fine', { granularity: 512 }));
    await qmp.ok(...bitmap('add', 'disk', 'off', { disabled: true }));
    await qmp.ok(...bitmap('add', 'file', 'below'));
    await qmp.ok(...bench('disk', { offset: 100 * KiB, 'buffer-size': 3 * KiB }));
    expect(await counts(qmp)).toMatchObject({ 'disk/fine': 3 * KiB, 'disk/off': 0 });
    expect((await counts(qmp))['file/below']).toBeGreaterThan(0);
    await qmp.ok(...bitmap('enable', 'disk', 'off'));
    await qmp.ok(...bitmap('disable', 'disk', 'fine'));
    await qmp.ok(...bench('disk', { offset: 4 * MiB - 1 * KiB, count: 2, step: 2 * MiB }));
    expect(await counts(qmp)).toMatchObject({ 'disk/fine': 3 * KiB, 'disk/off': 256 * KiB });
    await qmp.ok(...bitmap('clear', 'disk', 'off'));
    expect(await counts(qmp)).toMatchObject({ 'disk/fine': 3 * KiB, 'disk/off': 0 });
  });

  it('record nothing of a dry run', async () => {
    const { qmp } = await held();
    await qmp.ok(...bitmap('add', 'disk', 'b'));
    await qmp.ok('x-imgd-image-resize', { image: { node: 'disk' }, size: 16 * MiB, 'dry-run': true });
    await qmp.ok('x-imgd-image-snapshot', {
      ...{ image: { node: 'disk' }, action: 'create', snapshot: 's', 'dry-run': true },
    });
    expect(await counts(qmp)).toEqual({ 'disk/b': 0 });
  });

  it('follow the size of their node', async () => {
    const { qmp, at } = await held();
    await qmp.ok(...bitmap('add', 'disk', 'b'));
    await qmp.ok(...bench('disk', { offset: 6 * MiB }));
    const resize = (size: number) => ['x-imgd-image-resize', { image: { node: 'disk' }, size, shrink: true }];
    await qmp.ok(...(resize(4 * MiB) as [string, object]));
    await qmp.ok(...(resize(8 * MiB) as [string, object]));
    expect(await counts(qmp)).toEqual({ 'disk/b': 0 });
    writeFileSync(at('other'), '');
    truncateSync(at('other'), 4 * MiB);
    await qmp.ok('blockdev-add', { driver: 'file', filename: at('other'), 'node-name': 'other' });
    await qmp.ok(...bitmap('add', 'other', 'b'));
    const { error } = await qmp.call(...merge('disk', 'b', { node: 'other', name: 'b' }));
    expect(error?.desc).toContain('Bitmaps are of different sizes');
  });

  it('go into a bitmap of the image, and keep a snapshot from being applied', async () => {
    const { qmp, at } = await held();
    const snapshot = (verb: string) =>
      ['x-imgd-image-snapshot', { image: { node: 'disk' }, action: verb, snapshot: 's' }] as const;
    await qmp.ok(...snapshot('create'));
    await qmp.ok(...bitmap('add', 'disk', 'm'));
    await qmp.ok(...bench('disk', { offset: MiB, count: 3, step: MiB }));
    expect((await qmp.call(...snapshot('apply'))).error?.desc).toContain('Device has active dirty bitmaps');
    await qmp.ok(...bitmap('add', 'disk', 'p', { persistent: true, disabled: true }));
    await qmp.ok(...merge('disk', 'p', 'm'));
    await qmp.ok(...bitmap('remove', 'disk', 'm'));
    expect(await counts(qmp)).toEqual({ 'disk/p': 192 * KiB });
    await qmp.ok('blockdev-del', { 'node-name': 'disk' });
    const file = { driver: 'file', filename: at('disk') };
    await qmp.ok('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file });
    expect(await counts(qmp)).toEqual({ 'disk/p': 192 * KiB });
  });

  it('are as they were after a transaction that fails, with what was written meanwhile', async () => {
    const { qmp } = await held();
    await qmp.ok(...bitmap('add', 'disk', 'm'));
    await qmp.ok(...bitmap('add', 'disk', 'p', { persistent: true }));
    await qmp.ok(...bench('disk', { offset: MiB }));
    await qmp.ok(...bitmap('add', 'disk', 'other'));
    await qmp.ok(...bench('disk', { offset: 2 * MiB }));
    const before = await bitmaps(qmp);
    for (const name of ['m', 'p']) {
      const { error } = await qmp.call(
        ...transaction(bitmap('clear', 'disk', name), merge('disk', name, 'other'), [
          'block-dirty-bitmap-clear',
          { node: 'disk', name: 'nope' },
        ]),
      );
      expect(error?.desc).toBe("Dirty bitmap 'nope' not found");
      expect(await bitmaps(qmp)).toEqual(before);
    }
  });

  it('are refused where they would take too much memory', async () => {
    const { qmp, at } = await held();
    writeFileSync(at('huge'), '');
    truncateSync(at('huge'), 2 ** 42);
    await qmp.ok('blockdev-add', { driver: 'file', filename: at('huge'), 'node-name': 'huge' });
    const { error } = await qmp.call(...bitmap('add', 'huge', 'b', { granularity: 512 }));
    expect(error?.desc).toMatch(/^Bitmap 'b' may take 1073741824 bytes of memory/);
    await qmp.ok(...bitmap('add', 'huge', 'b'));
  });
});
