/** blockdev-create: QAPI's BlockdevCreateOptions, and what they are as parameters of image-create. */
import * as v from 'valibot';
import { LargeBytes } from '../../protocol/commands/common.js';
import type { ImageCreateParams } from '../../protocol/commands/image-create.js';
import { QmpError } from './reply.js';

/** A node's name, or where its file is. */
export const BlockdevRef = v.pipe(
  v.union([v.string(), v.looseObject({ driver: v.string() })]),
  v.title('BlockdevRef'),
);
export type BlockdevRef = v.InferOutput<typeof BlockdevRef>;

const text = v.optional(v.string());
const size = v.optional(LargeBytes);
const flag = v.optional(v.boolean());
const preallocation = v.optional(v.picklist(['off', 'metadata', 'falloc', 'full']));
const inFile = { file: BlockdevRef, size: LargeBytes };

export const BlockdevCreateOptions = v.variant('driver', [
  v.strictObject({
    driver: v.literal('file'),
    filename: v.string(),
    size: LargeBytes,
    preallocation,
    nocow: flag,
    'extent-size-hint': size,
  }),
  v.strictObject({ driver: v.literal('parallels'), ...inFile, 'cluster-size': size }),
  v.strictObject({ driver: v.literal('qcow'), ...inFile, 'backing-file': text }),
  v.strictObject({
    driver: v.literal('qcow2'),
    file: BlockdevRef,
    'data-file': v.optional(BlockdevRef),
    'data-file-raw': flag,
    'extended-l2': flag,
    size: LargeBytes,
    version: v.optional(v.picklist(['v2', 'v3'])),
    'backing-file': text,
    'backing-fmt': text,
    'cluster-size': size,
    preallocation,
    'lazy-refcounts': flag,
    'refcount-bits': size,
    'compression-type': v.optional(v.picklist(['zlib', 'zstd'])),
  }),
  v.strictObject({
    driver: v.literal('qed'),
    ...inFile,
    'backing-file': text,
    'backing-fmt': text,
    'cluster-size': size,
    'table-size': size,
  }),
  v.strictObject({
    driver: v.literal('vdi'),
    ...inFile,
    preallocation: v.optional(v.picklist(['off', 'metadata'])),
  }),
  v.strictObject({
    driver: v.literal('vhdx'),
    ...inFile,
    'log-size': size,
    'block-size': size,
    subformat: v.optional(v.picklist(['dynamic', 'fixed'])),
    'block-state-zero': flag,
  }),
  v.strictObject({
    driver: v.literal('vmdk'),
    ...inFile,
    subformat: v.optional(
      v.picklist([
        'monolithicSparse',
        'monolithicFlat',
        'twoGbMaxExtentSparse',
        'twoGbMaxExtentFlat',
        'streamOptimized',
      ]),
    ),
    'backing-file': text,
    'adapter-type': v.optional(v.picklist(['ide', 'buslogic', 'lsilogic', 'legacyESX'])),
    hwversion: text,
    toolsversion: text,
    'zeroed-grain': flag,
  }),
  v.strictObject({
    driver: v.literal('vpc'),
    ...inFile,
    subformat: v.optional(v.picklist(['dynamic', 'fixed'])),
    'force-size': flag,
  }),
  v.strictObject({
    driver: v.picklist(['bochs', 'cloop', 'dmg', 'host_device', 'null-aio', 'null-co', 'raw']),
  }),
]);
export type BlockdevCreateOptions = v.InferOutput<typeof BlockdevCreateOptions>;

type Values = Record<string, string | number | boolean>;

/** Members that are options under another name, or of another type. */
const TRANSLATED: Readonly<Record<string, Readonly<Record<string, (value: unknown) => Values>>>> = {
  qcow2: { version: (value) => ({ compat: value === 'v2' ? '0.10' : '1.1' }) },
  vdi: { preallocation: (value) => ({ static: value === 'metadata' }) },
};

/** What a backing file is where QAPI has no member that says so. */
const BACKING_FORMAT: Readonly<Record<string, string>> = { qcow: 'raw', vmdk: 'vmdk' };

/** Members that are no options of the format. */
const APART = new Set(['driver', 'file', 'filename', 'data-file', 'size', 'backing-file', 'backing-fmt']);

type Creatable = Extract<BlockdevCreateOptions, { size: number }>;

export function checkCreatable(options: BlockdevCreateOptions): asserts options is Creatable {
  if (!('size' in options)) throw new QmpError('Driver does not support blockdev-create');
}

/** A file to create in, and the node that holds it, if one does. */
export interface CreateTarget {
  readonly filename: string;
  readonly node?: string;
}

/** @param fileOf what a reference is to. */
export async function createParams(
  options: Creatable,
  fileOf: (reference: BlockdevRef) => Promise<CreateTarget>,
): Promise<ImageCreateParams> {
  const { driver } = options;
  const given: Values = {};
  for (const [name, value] of Object.entries(options)) {
    if (APART.has(name)) continue;
    const translate = TRANSLATED[driver]?.[name];
    if (translate !== undefined) Object.assign(given, translate(value));
    else given[name.replaceAll('-', '_')] = value as string | number | boolean;
  }
  if ('filename' in options) {
    return { filename: options.filename, format: 'raw', size: options.size, options: given };
  }
  const backing: { backing?: string; 'backing-format'?: string } = {};
  if ('backing-file' in options && options['backing-file'] !== undefined)
    backing.backing = options['backing-file'];
  if ('backing-fmt' in options && options['backing-fmt'] !== undefined) {
    backing['backing-format'] = options['backing-fmt'];
  }
  const implied = BACKING_FORMAT[driver];
  if (backing.backing !== undefined && implied !== undefined) backing['backing-format'] = implied;
  if ('data-file' in options && options['data-file'] !== undefined) {
    given.data_file = (await fileOf(options['data-file'])).filename;
  }
  return {
    ...(await fileOf(options.file)),
    format: driver,
    size: options.size,
    options: given,
    ...backing,
    // As QEMU's command: what the backing file is, is the caller's business.
    ...(backing.backing === undefined ? {} : { 'no-backing-check': true }),
  };
}
