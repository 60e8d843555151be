/** Dry runs in every format, of held images, and where they cannot tell. */
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeInterop } from '../support/reference.js';
import { failures, img, io, MiB, names, type Plan, qcow2, raw, Scene } from './support/dry-run.js';

const scene = new Scene();
const statuses = ({ checks }: Plan) => checks.map(({ name, status }) => `${name} ${status}`);

describeInterop('dry runs', () => {
  beforeAll(() => scene.start());
  afterAll(() => scene.end());

  const file = (filename: string) => ({ driver: 'file', filename: scene.at(filename) });
  const held = (node: string, filename: string, more = {}) =>
    scene.call('blockdev-add', { driver: 'qcow2', 'node-name': node, file: file(filename), ...more });

  it.each(['raw', 'qcow2', 'qcow', 'qed', 'vdi', 'vmdk', 'vhdx', 'vpc', 'parallels'])(
    'of %s images agree with what is done',
    async (format) => {
      scene.fresh();
      const image = { filename: `i.${format}`, format };
      const size = 16 * MiB;
      const made = await scene.agree('image-create', { ...image, size });
      expect(made.ok).toBe(true);
      expect(made.required).toBeDefined();
      await scene.agree('image-resize', { image, size: 2 * size });
      await scene.agree('image-resize', { image, size, shrink: true });
      await scene.agree('image-resize', { image, size: 2 * size, preallocation: 'full' });
      await scene.agree('image-check', { image, repair: 'all' });
      await scene.agree('image-amend', { image, options: { size: 3 * size } });
      await scene.agree('image-snapshot', { image, action: 'create', snapshot: 's' });
      await scene.agree('image-bitmap', { image, bitmap: 'b', actions: [{ action: 'add' }] });
      await scene.agree('image-rebase', { image, backing: 'base.qcow2', 'backing-format': 'qcow2' });
      const overlay = { filename: 'over.qcow2', format: 'qcow2' };
      await scene.agree('image-create', { ...overlay, backing: image.filename, 'backing-format': format });
      io(scene.at('over.qcow2'), 'write -q 1M 3M', 'write -q 8M 4k', 'write -q -z 10M 1M');
      await scene.agree('image-commit', { image: overlay });
      await scene.agree('image-dd', {
        image: qcow2('base.qcow2'),
        target: { filename: `d.${format}`, format },
      });
    },
  );

  it('of held images leave them as they are, and open to others after', async () => {
    scene.fresh();
    await held('h', 'base.qcow2');
    const image = { node: 'h' };
    for (const [method, params] of [
      ['image-resize', { image, size: 64 * MiB }],
      ['image-snapshot', { image, action: 'create', snapshot: 's' }],
      ['image-amend', { image, options: { lazy_refcounts: true } }],
      ['image-bitmap', { image, bitmap: 'b', actions: [{ action: 'add' }] }],
      ['image-check', { image, repair: 'all' }],
      ['image-rebase', { image, backing: scene.at('other.qcow2'), 'backing-format': 'qcow2' }],
    ] as const) {
      const plan = await scene.agree(method, params);
      expect(
        plan.checks.every(({ status }) => status === 'ok'),
        method + JSON.stringify(plan),
      ).toBe(true);
    }
    const small = await scene.agree('image-resize', { image, size: MiB });
    expect(failures(small)).toMatchObject([{ name: 'size', kind: 'invalid' }]);
    expect((await scene.peer.call('blockdev-del', { 'node-name': 'h' })).error).toBeUndefined();
  });

  it('say who else works on a held image, or that it is for reading', async () => {
    scene.fresh();
    await held('r', 'other.qcow2', { 'read-only': true });
    const closed = await scene.agree('image-resize', { image: { node: 'r' }, size: 64 * MiB });
    expect(failures(closed)).toMatchObject([{ name: 'image', kind: 'read-only' }]);
    await scene.peer.call('blockdev-del', { 'node-name': 'r' });
    await held('w', 'top.qcow2');
    await scene.call('image-bench', {
      ...{ image: { node: 'w' }, count: 1_000_000, depth: 1, 'buffer-size': 512 },
      job: { id: 'busy', wait: false },
    });
    const { plan } = await scene.dry('image-snapshot', {
      ...{ image: { node: 'w' }, action: 'create', snapshot: 's' },
    });
    expect(failures(plan)).toMatchObject([{ name: 'image', kind: 'locked' }]);
    await scene.peer.call('job-cancel', { id: 'busy' });
    await scene.peer.call('job-wait', { id: 'busy' });
    // Its base would be opened for writing: that is not tried.
    const commit = await scene.dry('image-commit', { image: { node: 'w' } });
    expect(statuses(commit.plan)).toEqual([
      ...['image ok', 'base skipped', 'resize skipped', 'copy skipped', 'empty skipped', 'space skipped'],
    ]);
    expect(commit.plan.ok).toBe(true);
    await scene.peer.call('blockdev-del', { 'node-name': 'w' });
  });

  it('of new images in held files empty none', async () => {
    scene.fresh();
    await scene.call('blockdev-add', { 'node-name': 'f', ...file('plain.raw') });
    const made = await scene.agree('image-create', {
      ...{ filename: 'f', node: 'f', format: 'qcow2', size: 64 * MiB },
    });
    expect(names(made)).toBe('format options backing size target layout space');
    expect(made.ok).toBe(true);
    await scene.peer.call('blockdev-del', { 'node-name': 'f' });
  });

  it('of conversions into what is there try its lock, and that of a held image', async () => {
    scene.fresh();
    await held('t', 'other.qcow2');
    const sources = [qcow2('base.qcow2')];
    const into = (target: object) => scene.agree('image-convert', { sources, target, create: false });
    expect(await into({ node: 't' })).toMatchObject({ ok: true });
    expect(failures(await into(qcow2('base.qcow2')))).toMatchObject([{ name: 'target', kind: 'locked' }]);
    await scene.peer.call('blockdev-del', { 'node-name': 't' });
  });

  it('say when the space is too small', async () => {
    scene.fresh();
    const most = 2 ** 50;
    const grown = await scene.agree('image-resize', { image: qcow2('base.qcow2'), size: 2 ** 30 });
    expect(grown.required).toBeLessThan(MiB);
    for (const [method, params] of [
      ['image-resize', { image: raw('plain.raw'), size: most, preallocation: 'falloc' }],
      ['image-create', { filename: 'n', format: 'raw', size: most, options: { preallocation: 'falloc' } }],
      ['image-dd', { image: { 'image-opts': `driver=null-co,size=${most}` }, target: { filename: 'n' } }],
    ] as const) {
      const { plan } = await scene.dry(method, params);
      expect(failures(plan)).toMatchObject([{ name: 'space', kind: 'no-space' }]);
      expect(plan.required).toBeGreaterThan(plan.free!);
    }
  });

  it('say that they cannot tell where all that changes is too much for memory', async () => {
    scene.fresh();
    const { plan } = await scene.dry('image-create', {
      ...{ filename: 'large.qcow2', format: 'qcow2', size: 2 ** 41 },
      options: { preallocation: 'metadata' },
    });
    expect(plan.ok).toBe(true);
    expect(plan.checks.slice(-2)).toMatchObject([
      { name: 'layout', status: 'skipped', text: expect.stringContaining('memory') },
      { name: 'space', status: 'skipped' },
    ]);
  });

  it('are for what changes something', async () => {
    scene.fresh();
    const image = qcow2('base.qcow2');
    for (const [method, params] of [
      ['image-snapshot', { image, action: 'list' }],
      ['image-check', { image }],
    ] as const) {
      const { error } = await scene.call(method, { ...params, 'dry-run': true });
      expect(error?.data).toMatchObject({ kind: 'invalid' });
    }
  });
});

describeInterop('dry runs within folders', () => {
  const inside = new Scene();
  beforeAll(async () => {
    inside.fresh();
    await inside.start('--root', inside.cwd);
  });
  afterAll(() => inside.end());

  it('say what the allowed folders refuse', async () => {
    const outside = join(inside.folder, 'seed/base.qcow2');
    img('rebase', '-u', '-b', outside, '-F', 'qcow2', inside.at('top.qcow2'));
    const denied = async (method: string, params: object) => failures(await inside.agree(method, params));
    const size = 64 * MiB;
    expect(await denied('image-resize', { image: qcow2(outside), size })).toMatchObject([
      { name: 'image', kind: 'denied' },
    ]);
    expect(await denied('image-commit', { image: qcow2('top.qcow2') })).toMatchObject([
      { name: 'image', kind: 'denied' },
    ]);
    expect(await denied('image-create', { filename: '../new.raw', size })).toMatchObject([
      { name: 'target', kind: 'denied' },
    ]);
    const backing = { backing: outside, 'backing-format': 'qcow2' };
    expect(await denied('image-rebase', { image: qcow2('base.qcow2'), ...backing })).toMatchObject([
      { name: 'backing', kind: 'denied' },
    ]);
  });
});
