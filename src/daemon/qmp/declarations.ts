/** What QMP's clients may call that JSON-RPC has under another name, in another shape, or not at all. Names and members are QAPI's. */
import * as v from 'valibot';
import { jobStates } from '../../protocol/commands/jobs.js';
import type { Role } from '../../protocol/roles.js';
import { BlockdevCreateOptions } from './create-options.js';
import { UINT32_MAX } from './qapi.js';

interface QmpDeclaration {
  readonly params: v.GenericSchema;
  readonly result: v.GenericSchema;
  readonly role: Role;
  /** May be called out of band, while another command of the connection waits. */
  readonly oob?: true;
}

const Nothing = v.strictObject({});
const ById = v.strictObject({ id: v.string() });
const ByDevice = v.strictObject({ device: v.string() });
const Int = v.pipe(v.number(), v.safeInteger());

const Version = v.strictObject({ major: Int, minor: Int, micro: Int });

const JobInfo = v.strictObject({
  id: v.string(),
  /** QAPI's `create`, `commit` and `amend`; imgd's own operations by their names. */
  type: v.string(),
  status: v.picklist(jobStates),
  'current-progress': Int,
  'total-progress': Int,
  error: v.optional(v.string()),
});

const BlockJobInfo = v.strictObject({
  type: v.string(),
  device: v.string(),
  len: Int,
  offset: Int,
  busy: v.boolean(),
  paused: v.boolean(),
  speed: Int,
  'io-status': v.picklist(['ok', 'failed', 'nospace']),
  ready: v.boolean(),
  status: v.picklist(jobStates),
  'auto-finalize': v.boolean(),
  'auto-dismiss': v.boolean(),
  error: v.optional(v.string()),
});

const BitmapName = { node: v.string(), name: v.string() };
export const Bitmap = v.strictObject(BitmapName);
export const BitmapAdd = v.strictObject({
  ...BitmapName,
  granularity: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(UINT32_MAX))),
  /** In the image, at once; else it goes with the node. */
  persistent: v.optional(v.boolean()),
  disabled: v.optional(v.boolean()),
});
export const BitmapMerge = v.strictObject({
  node: v.string(),
  target: v.string(),
  bitmaps: v.array(v.pipe(v.union([v.string(), Bitmap]), v.title('BlockDirtyBitmapOrStr'))),
});
export type Bitmap = v.InferOutput<typeof Bitmap>;
export type BitmapAdd = v.InferOutput<typeof BitmapAdd>;
export type BitmapMerge = v.InferOutput<typeof BitmapMerge>;

export const TransactionAction = v.variant('type', [
  v.strictObject({ type: v.literal('abort'), data: Nothing }),
  v.strictObject({ type: v.literal('block-dirty-bitmap-add'), data: BitmapAdd }),
  v.strictObject({ type: v.literal('block-dirty-bitmap-remove'), data: Bitmap }),
  v.strictObject({ type: v.literal('block-dirty-bitmap-clear'), data: Bitmap }),
  v.strictObject({ type: v.literal('block-dirty-bitmap-enable'), data: Bitmap }),
  v.strictObject({ type: v.literal('block-dirty-bitmap-disable'), data: Bitmap }),
  v.strictObject({ type: v.literal('block-dirty-bitmap-merge'), data: BitmapMerge }),
]);
export type TransactionAction = v.InferOutput<typeof TransactionAction>;

const limit = v.optional(Int);
const ThrottleLimits = v.strictObject({
  'iops-total': limit,
  'iops-total-max': limit,
  'iops-total-max-length': limit,
  'iops-read': limit,
  'iops-read-max': limit,
  'iops-read-max-length': limit,
  'iops-write': limit,
  'iops-write-max': limit,
  'iops-write-max-length': limit,
  'bps-total': limit,
  'bps-total-max': limit,
  'bps-total-max-length': limit,
  'bps-read': limit,
  'bps-read-max': limit,
  'bps-read-max-length': limit,
  'bps-write': limit,
  'bps-write-max': limit,
  'bps-write-max-length': limit,
  'iops-size': limit,
});

export const ObjectOptions = v.variant('qom-type', [
  v.strictObject({
    'qom-type': v.literal('secret'),
    id: v.string(),
    data: v.optional(v.string()),
    file: v.optional(v.string()),
    format: v.optional(v.picklist(['raw', 'base64'])),
    /** Of a secret that is encrypted with another one. */
    keyid: v.optional(v.string()),
    iv: v.optional(v.string()),
  }),
  v.strictObject({
    'qom-type': v.literal('throttle-group'),
    id: v.string(),
    limits: v.optional(ThrottleLimits),
  }),
]);
export type ObjectOptions = v.InferOutput<typeof ObjectOptions>;

const job = { result: Nothing, role: 'operate' } as const;
/** So that a connection whose command waits for a job can still end the job. */
const jobVerb = { ...job, oob: true } as const;

export const declarations = {
  qmp_capabilities: {
    params: v.strictObject({ enable: v.optional(v.array(v.picklist(['oob']))) }),
    result: Nothing,
    role: 'watch',
  },
  'query-version': {
    params: Nothing,
    result: v.strictObject({ qemu: Version, package: v.string() }),
    role: 'watch',
  },
  'query-commands': { params: Nothing, result: v.array(v.strictObject({ name: v.string() })), role: 'watch' },
  'query-qmp-schema': {
    params: Nothing,
    result: v.array(v.looseObject({ name: v.string() })),
    role: 'watch',
  },
  quit: { params: Nothing, result: Nothing, role: 'admin' },

  'query-jobs': { params: Nothing, result: v.array(JobInfo), role: 'watch' },
  'job-pause': { ...jobVerb, params: ById },
  'job-resume': { ...jobVerb, params: ById },
  'job-cancel': { ...jobVerb, params: ById },
  'job-complete': { ...job, params: ById },
  'job-finalize': { ...job, params: ById },
  'job-dismiss': { ...job, params: ById },

  'query-block-jobs': { params: Nothing, result: v.array(BlockJobInfo), role: 'watch' },
  'block-job-pause': { ...jobVerb, params: ByDevice },
  'block-job-resume': { ...jobVerb, params: ByDevice },
  'block-job-cancel': {
    ...jobVerb,
    params: v.strictObject({ device: v.string(), force: v.optional(v.boolean()) }),
  },
  'block-job-set-speed': { ...jobVerb, params: v.strictObject({ device: v.string(), speed: Int }) },
  'block-job-complete': { ...job, params: ByDevice },
  'block-job-finalize': { ...job, params: ById },
  'block-job-dismiss': { ...job, params: ById },

  'blockdev-create': {
    ...job,
    params: v.strictObject({ 'job-id': v.string(), options: BlockdevCreateOptions }),
  },

  'object-add': { params: ObjectOptions, result: Nothing, role: 'operate' },
  'object-del': { params: ById, result: Nothing, role: 'operate' },
  'qom-list-types': {
    params: v.strictObject({ implements: v.optional(v.string()), abstract: v.optional(v.boolean()) }),
    result: v.array(v.strictObject({ name: v.string(), parent: v.optional(v.string()) })),
    role: 'watch',
  },

  'block-dirty-bitmap-add': { ...job, params: BitmapAdd },
  'block-dirty-bitmap-remove': { ...job, params: Bitmap },
  'block-dirty-bitmap-clear': { ...job, params: Bitmap },
  'block-dirty-bitmap-enable': { ...job, params: Bitmap },
  'block-dirty-bitmap-disable': { ...job, params: Bitmap },
  'block-dirty-bitmap-merge': { ...job, params: BitmapMerge },
  transaction: {
    ...job,
    params: v.strictObject({
      actions: v.array(TransactionAction),
      properties: v.optional(
        v.strictObject({ 'completion-mode': v.optional(v.picklist(['individual', 'grouped'])) }),
      ),
    }),
  },
} as const satisfies Readonly<Record<string, QmpDeclaration>>;

export type QmpCommandName = keyof typeof declarations;
export type QmpParams<N extends QmpCommandName> = v.InferOutput<(typeof declarations)[N]['params']>;

const progress = { type: v.string(), device: v.string(), len: Int, offset: Int, speed: Int };

export const qmpEvents = {
  JOB_STATUS_CHANGE: v.strictObject({ id: v.string(), status: v.picklist(jobStates) }),
  BLOCK_JOB_COMPLETED: v.strictObject({ ...progress, error: v.optional(v.string()) }),
  BLOCK_JOB_CANCELLED: v.strictObject(progress),
  BLOCK_JOB_READY: v.strictObject(progress),
  BLOCK_JOB_PENDING: v.strictObject({ type: v.string(), id: v.string() }),
  SHUTDOWN: v.strictObject({ guest: v.boolean(), reason: v.picklist(['host-qmp-quit', 'host-signal']) }),
  X_IMGD_BLOCKDEV_LOST: v.strictObject({
    'node-name': v.string(),
    driver: v.string(),
    filename: v.string(),
    ro: v.boolean(),
    reason: v.string(),
  }),
} as const;
