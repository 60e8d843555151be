/** Images that the daemon holds open: nodes, as QMP has them. */
import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes } from './common.js';
import { ImageInfo } from './image-info.js';

const Nothing = v.strictObject({});

/** QAPI's BlockPermission. */
export const BlockPermission = v.picklist(['consistent-read', 'write', 'write-unchanged', 'resize']);
export type BlockPermission = v.InferOutput<typeof BlockPermission>;

export const DetectZeroes = v.picklist(['off', 'on', 'unmap']);

/** What QAPI's BlockdevOptions have for every driver. */
const generic = {
  'read-only': v.optional(v.boolean()),
  /** Open read-only where the file cannot be written. */
  'auto-read-only': v.optional(v.boolean()),
  /** Open read-only although others write. */
  'force-share': v.optional(v.boolean()),
  discard: v.optional(v.picklist(['ignore', 'unmap'])),
  'detect-zeroes': v.optional(DetectZeroes),
  /** Where absent, a child's is as its parent's. */
  cache: v.optional(v.strictObject({ direct: v.optional(v.boolean()), 'no-flush': v.optional(v.boolean()) })),
};

/**
 * A node: what its driver takes stands beside what every node takes. `file` (and other children) is a node's name or another such
 * object; `backing` may be null, for none. The daemon's engine checks it whole, and says what is wrong in QEMU's words.
 */
export const BlockdevOptions = v.looseObject({
  /** A format (`qcow2`), or a protocol (`file`). */
  driver: v.string(),
  'node-name': v.optional(v.string()),
  ...generic,
});
export type BlockdevOptions = v.InferOutput<typeof BlockdevOptions>;

export const blockdevAdd = command({
  name: 'blockdev-add',
  doc: 'Opens an image and holds it, under a node name, with its locks and caches, until blockdev-del: operations take `{"node": NAME}` in place of a filename. `cwd` and `share` are not QMP\'s.',
  params: v.looseObject({
    ...BlockdevOptions.entries,
    /** Absolute path that relative filenames are resolved against; the daemon's own where absent. */
    cwd: v.optional(v.string()),
    /** What others may do with the node meanwhile, jobs here and, where the format leaves it to its users (raw), other processes; all where absent. */
    share: v.optional(v.array(BlockPermission)),
  }),
  result: Nothing,
  errors: [
    'not-found',
    'exists',
    'access',
    'locked',
    'corrupt',
    'unsupported',
    'denied',
    'invalid',
    'worker-lost',
  ],
  job: false,
});
export type BlockdevAddParams = ParamsOf<typeof blockdevAdd>;

export const blockdevDel = command({
  name: 'blockdev-del',
  doc: 'Closes a node that blockdev-add has made, and the children that it opened. Refused while a job or another node uses it.',
  params: v.strictObject({ 'node-name': v.string() }),
  result: Nothing,
  errors: ['not-found', 'locked', 'invalid', 'io'],
  job: false,
});

export const blockdevReopen = command({
  name: 'blockdev-reopen',
  doc: 'Changes the options of nodes, all or none of them: what is not given goes back to its default. A node that has a backing file must be given `backing`. Its locks are kept.',
  params: v.strictObject({ options: v.array(BlockdevOptions), cwd: v.optional(v.string()) }),
  result: Nothing,
  errors: ['not-found', 'access', 'locked', 'unsupported', 'invalid', 'read-only', 'worker-lost'],
  job: false,
});

/** QAPI's BlockDirtyInfo. */
export const DirtyBitmapInfo = v.strictObject({
  name: v.string(),
  /** Whether it records what is written. */
  recording: v.boolean(),
  /** It is in the image; without, it goes with the node. */
  persistent: v.boolean(),
  /** It was in use when its image was last closed, or lost: it can be removed, and nothing else. */
  inconsistent: v.optional(v.boolean()),
  busy: v.boolean(),
  granularity: Bytes,
  /** Dirty bytes, in whole granules; more than there are where to count all would take long. */
  count: Bytes,
});
export type DirtyBitmapInfo = v.InferOutput<typeof DirtyBitmapInfo>;

/** QAPI's BlockDeviceInfo; there is no throttling, and no counts of it. */
export const BlockDeviceInfo = v.looseObject({
  'node-name': v.string(),
  drv: v.string(),
  ro: v.boolean(),
  /** The name of the image. */
  file: v.string(),
  backing_file: v.optional(v.string()),
  backing_file_depth: Bytes,
  active: v.boolean(),
  encrypted: v.boolean(),
  detect_zeroes: DetectZeroes,
  bps: v.number(),
  bps_rd: v.number(),
  bps_wr: v.number(),
  iops: v.number(),
  iops_rd: v.number(),
  iops_wr: v.number(),
  image: v.looseObject({ ...ImageInfo.entries, 'backing-image': v.optional(v.looseObject({})) }),
  cache: v.strictObject({ writeback: v.boolean(), direct: v.boolean(), 'no-flush': v.boolean() }),
  write_threshold: v.number(),
  'dirty-bitmaps': v.optional(v.array(DirtyBitmapInfo)),
});
export type BlockDeviceInfo = v.InferOutput<typeof BlockDeviceInfo>;

export const queryNamedBlockNodes = command({
  name: 'query-named-block-nodes',
  doc: 'Tells of all nodes that are held, those that have no name of their own too, newest first. With `flat`, without the backing images of each.',
  params: v.strictObject({ flat: v.optional(v.boolean()) }),
  result: v.array(BlockDeviceInfo),
  errors: ['worker-lost'],
  job: false,
});
export type NamedBlockNodes = ResultOf<typeof queryNamedBlockNodes>;
