/** Jobs: what every operation takes in `job` beside its own parameters, and the commands about jobs. */
import * as v from 'valibot';
import { command } from '../command.js';
import { WireError } from '../errors.js';
import { Bytes } from './common.js';

/**
 * QEMU's states. A job is `created` while it queues, `running` in a worker, `paused` on request, `aborting` once cancelled,
 * `pending` while it waits for `job-finalize`, `concluded` when its outcome is known, and `null` when it is forgotten. The
 * others are QEMU's for mirroring and transactions.
 */
export const jobStates = [
  'undefined',
  'created',
  'running',
  'paused',
  'ready',
  'standby',
  'waiting',
  'pending',
  'aborting',
  'concluded',
  'null',
] as const;
export const JobStatus = v.picklist(jobStates);
export type JobStatus = v.InferOutput<typeof JobStatus>;

export const JobId = v.pipe(
  v.string(),
  v.regex(/^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$/, 'letters, digits and _ . : - only, at most 128'),
);

/** The member `job` that every operation takes. */
export const JobOptions = v.strictObject({
  /**
   * Makes a retry safe: while a job of this id exists, the same operation with the same parameters is that job, and with
   * others an error. Where absent the daemon chooses one.
   */
  id: v.optional(JobId),
  /** True: the call is answered with the operation's result when the job has concluded. False: at once, with `{ job }`. */
  wait: v.optional(v.boolean(), true),
  /**
   * Forget the job once its outcome has been told in an answer (to the waiting call, a retry or `job-wait`); one that nobody
   * asks about goes after some minutes. False: it stays until `job-dismiss`.
   */
  'auto-dismiss': v.optional(v.boolean(), true),
  /**
   * False: done with its work the job is `pending`, with its worker and its locks, until `job-finalize`; one that writes
   * with `atomic` puts its target in its place only then, and one that is cancelled instead leaves what was there before.
   */
  'auto-finalize': v.optional(v.boolean(), true),
  /** Cancel the job when the connection that started it goes away, or sends its last (they look the same). */
  'cancel-on-disconnect': v.optional(v.boolean(), false),
  /** Bytes a second, 0: no limit. Wins over an operation's own `rate-limit`. */
  'rate-limit': v.optional(Bytes),
  /** Do not start before `job-resume`. */
  paused: v.optional(v.boolean(), false),
  /** Among queued jobs the one with the highest starts first. Nothing that runs is interrupted. */
  priority: v.optional(v.pipe(v.number(), v.integer(), v.minValue(-100), v.maxValue(100)), 0),
  /** Do not start before these have concluded, all of them well; where one fails this job does, with the kind `dependency`. */
  after: v.optional(v.pipe(v.array(JobId), v.maxLength(64))),
});
export type JobOptions = v.InferOutput<typeof JobOptions>;

export const JobStarted = v.strictObject({ job: v.string() });
export type JobStarted = v.InferOutput<typeof JobStarted>;

/** How far a job is. `done` reaches `total` only after success, final flush included; until then at most 99.99 % are told. */
export const JobProgress = v.strictObject({
  phase: v.string(),
  done: Bytes,
  total: Bytes,
  written: v.optional(Bytes),
  zeros: v.optional(Bytes),
  /** 0 to 100. */
  percent: v.number(),
  /** Bytes (of `done`) a second, smoothed over some seconds. */
  rate: v.optional(v.number()),
  /** Estimate of the seconds left. */
  eta: v.optional(v.number()),
});
export type JobProgress = v.InferOutput<typeof JobProgress>;

/** QAPI's JobInfo and what imgd knows beyond. */
export const JobInfo = v.strictObject({
  id: v.string(),
  /** The operation: `image-convert`. */
  type: v.string(),
  status: JobStatus,
  'current-progress': Bytes,
  'total-progress': Bytes,
  /** Text of the error that it concluded with. */
  error: v.optional(v.string()),
  failure: v.optional(WireError),
  progress: v.optional(JobProgress),
  /** Limit in bytes a second, where there is one. */
  speed: v.optional(Bytes),
  /** 1: next to start. */
  'queue-position': v.optional(v.number()),
  /** What keeps a queued job: a free worker, jobs that it comes after, its storage device, or job-resume. */
  'waits-for': v.optional(v.picklist(['worker', 'jobs', 'device', 'resume'])),
  /** Where it is not 0. */
  priority: v.optional(v.number()),
  /** Jobs that it comes after and that have not concluded. */
  after: v.optional(v.array(v.string())),
  /** When it last got on, where that is longer ago than the daemon's stall-timeout: milliseconds since 1970. */
  'stalled-since': v.optional(v.number()),
  /** Milliseconds since 1970. */
  created: v.number(),
  started: v.optional(v.number()),
  concluded: v.optional(v.number()),
});
export type JobInfo = v.InferOutput<typeof JobInfo>;

const Nothing = v.strictObject({});
const ById = v.strictObject({ id: v.string() });

export const queryJobs = command({
  name: 'query-jobs',
  doc: 'Tells of all jobs, oldest first, or of one.',
  params: v.strictObject({ id: v.optional(v.string()) }),
  result: v.array(JobInfo),
  errors: ['job-not-found'],
  job: false,
});

export const jobPause = command({
  name: 'job-pause',
  doc: 'Asks a job to pause. It is `paused` once its worker has come to the next point where it can wait.',
  params: ById,
  result: Nothing,
  errors: ['job-not-found', 'job-state'],
  job: false,
});

export const jobResume = command({
  name: 'job-resume',
  doc: 'Lets a paused job go on.',
  params: ById,
  result: Nothing,
  errors: ['job-not-found', 'job-state'],
  job: false,
});

export const jobCancel = command({
  name: 'job-cancel',
  doc: 'Cancels a job: it stops at the next point where it can and cleans up after itself. With `force` its worker is ended at once; what it was writing is then left as it is.',
  params: v.strictObject({ id: v.string(), force: v.optional(v.boolean(), false) }),
  result: Nothing,
  errors: ['job-not-found', 'job-state'],
  job: false,
});

export const jobSetSpeed = command({
  name: 'job-set-speed',
  doc: 'Limits a job to so many bytes a second from now on; 0 takes the limit away.',
  params: v.strictObject({ id: v.string(), speed: Bytes }),
  result: Nothing,
  errors: ['job-not-found', 'job-state'],
  job: false,
});

export const jobFinalize = command({
  name: 'job-finalize',
  doc: 'Lets a pending job conclude. Only jobs that were started with auto-finalize false come to be pending.',
  params: ById,
  result: Nothing,
  errors: ['job-not-found', 'job-state'],
  job: false,
});

export const jobDismiss = command({
  name: 'job-dismiss',
  doc: 'Forgets a concluded job.',
  params: ById,
  result: Nothing,
  errors: ['job-not-found', 'job-state'],
  job: false,
});

export const jobWait = command({
  name: 'job-wait',
  doc: 'Answers when the job has concluded, and as the operation itself would have: with its result or its error.',
  params: ById,
  result: v.unknown(),
  errors: ['job-not-found'],
  job: false,
});
