/** Dry runs of what would fail: the plan says it by the name of a check, in the operation's own words. */
import { spawn } from 'node:child_process';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeInterop, reference } from '../support/reference.js';
import { failures, MiB, qcow2, raw, Scene } from './support/dry-run.js';

const scene = new Scene();

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
  [
    'a conversion of nothing',
    'image-convert',
    { sources: [qcow2('none')], target: raw('c.raw') },
    'sources',
    'not-found',
  ],
  [
    'a conversion to no folder',
    'image-convert',
    { sources: [qcow2('base.qcow2')], target: raw('nowhere/c.raw') },
    'target',
    'not-found',
  ],
  [
    'a conversion over what is in use',
    'image-convert',
    { sources: [qcow2('base.qcow2')], target: raw('held.qcow2') },
    'target',
    'locked',
  ],
  [
    'a conversion to a preallocation that there is not',
    'image-convert',
    { sources: [qcow2('base.qcow2')], target: raw('c.raw'), options: { preallocation: 'metadata' } },
    'options',
    'unsupported',
  ],
  [
    'a conversion into what is too small',
    'image-convert',
    { sources: [qcow2('base.qcow2')], target: raw('plain.raw'), create: false },
    'target',
    'invalid',
  ],
];

describeInterop('dry runs of what would fail', () => {
  beforeAll(() => scene.start());
  afterAll(() => scene.end());

  it.each(REFUSED)(
    '%s: said before, and in the same words as after',
    async (_, method, params, check, kind) => {
      scene.fresh();
      const needsHolder = JSON.stringify(params).includes('held');
      const holder = needsHolder
        ? spawn(reference.qemuIo!, ['-f', 'qcow2', scene.at('held.qcow2')], {
            stdio: ['pipe', 'pipe', 'ignore'],
          })
        : undefined;
      try {
        // Its prompt says that the image is open.
        if (holder !== undefined) await new Promise((resolve) => holder.stdout.once('data', resolve));
        const plan = await scene.agree(method, params);
        expect(failures(plan)[0]).toMatchObject({ name: check, kind });
      } finally {
        holder?.kill('SIGKILL');
      }
    },
  );
});
