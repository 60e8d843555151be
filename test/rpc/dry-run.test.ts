/** Dry runs of all that writes, where nothing is in the way: nothing changes, and the operation goes as its plan says. */
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeInterop } from '../support/reference.js';
import { MiB, names, qcow2, raw, Scene } from './support/dry-run.js';

const scene = new Scene();
/** Of these the dry run tells what is copied at most, or when. */
const GUESSED = new Set(['image-commit', 'image-rebase', 'image-snapshot']);

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
  [
    'growth of an image that was not closed',
    'image-resize',
    { image: qcow2('dirty.qcow2'), size: 24 * MiB },
    'image size resize space',
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

describeInterop('dry runs where nothing is in the way', () => {
  beforeAll(() => scene.start());
  afterAll(() => scene.end());

  it.each(WELL)('%s: nothing is in the way, and then it is done', async (_, method, params, checks) => {
    scene.fresh();
    const { plan, ...result } = await scene.dry(method, params);
    expect(names(plan)).toBe(checks);
    expect(plan.checks.filter(({ status }) => status !== 'ok')).toEqual([]);
    expect(plan.ok).toBe(true);
    expect(plan.free).toBeGreaterThan(0);
    const before = scene.allocated();
    const done = await scene.call(method, params);
    expect(done.error).toBeUndefined();
    if (!GUESSED.has(method)) expect(result).toEqual(done.result);
    expect(scene.allocated() - before).toBeLessThanOrEqual(plan.required!);
  });
});
