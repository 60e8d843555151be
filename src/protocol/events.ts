/** Events: what a subscriber is told. Names and shapes are QMP's where QMP has the event. */
import * as v from 'valibot';
import { MapEntry } from './commands/image-map.js';
import { JobProgress, JobStatus } from './commands/jobs.js';
import { WireError } from './errors.js';

/** QMP's, with `type` (the operation) and, when it concluded badly, `error` beside it. Never dropped. */
export const JobStatusChange = v.strictObject({
  id: v.string(),
  status: JobStatus,
  type: v.string(),
  error: v.optional(WireError),
});
export type JobStatusChange = v.InferOutput<typeof JobStatusChange>;

/** At most ten a second for each job; the latest wins. */
export const JobProgressEvent = v.strictObject({ id: v.string(), ...JobProgress.entries });
export type JobProgressEvent = v.InferOutput<typeof JobProgressEvent>;

/** What an operation says on its way, in order: text with its line ends, or map entries. Never dropped but for the stream `trace`, which says so. */
export const JobOutput = v.union([
  v.strictObject({ id: v.string(), stream: v.picklist(['stdout', 'stderr', 'trace']), text: v.string() }),
  v.strictObject({ id: v.string(), stream: v.literal('entries'), entries: v.array(MapEntry) }),
]);
export type JobOutput = v.InferOutput<typeof JobOutput>;

/** A job has not got on for so many seconds. Told once, until it does. */
export const JobStalled = v.strictObject({ id: v.string(), type: v.string(), seconds: v.number() });

/** The last notification of a subscription that its reader was too slow for. `lost`: events that were waiting for it. */
export const SubscriptionEnded = v.strictObject({ reason: v.literal('slow'), lost: v.number() });
export type SubscriptionEnded = v.InferOutput<typeof SubscriptionEnded>;

/** A held image came, went, or has other options now. */
export const BlockdevChange = v.strictObject({
  'node-name': v.string(),
  driver: v.string(),
  filename: v.string(),
  ro: v.boolean(),
});
/** A held image is gone without anybody's asking: its locks are too, and what was not flushed. */
export const BlockdevLost = v.strictObject({ ...BlockdevChange.entries, reason: v.string() });

export const events = {
  BLOCKDEV_ADDED: BlockdevChange,
  BLOCKDEV_REMOVED: BlockdevChange,
  BLOCKDEV_REOPENED: BlockdevChange,
  BLOCKDEV_LOST: BlockdevLost,
  JOB_STATUS_CHANGE: JobStatusChange,
  JOB_PROGRESS: JobProgressEvent,
  JOB_OUTPUT: JobOutput,
  JOB_STALLED: JobStalled,
  SUBSCRIPTION_ENDED: SubscriptionEnded,
} as const;

export type EventName = keyof typeof events;

/** What can be asked for; SUBSCRIPTION_ENDED comes to whom it concerns. */
export const subscribableEvents = [
  'JOB_STATUS_CHANGE',
  'JOB_PROGRESS',
  'JOB_OUTPUT',
  'JOB_STALLED',
  'BLOCKDEV_ADDED',
  'BLOCKDEV_REMOVED',
  'BLOCKDEV_REOPENED',
  'BLOCKDEV_LOST',
] as const;

/** Method of the notifications that carry events. */
export const EVENT_METHOD = 'event';

/** `params` of such a notification. */
export interface EventParams<N extends EventName = EventName> {
  readonly subscription: string;
  /** Numbers all events of the daemon upwards; one subscription sees gaps where its filter leaves events out. */
  readonly seq: number;
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
  readonly event: N;
  readonly data: v.InferOutput<(typeof events)[N]>;
  /** Progress notifications that were left out since the last notification of this subscription, because it reads too slowly. */
  readonly lagged?: number;
}
