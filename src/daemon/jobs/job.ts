/** A job: what is known of one operation from its request until it is forgotten. */
import type { OperationName } from '../../protocol/commands/index.js';
import type { JobInfo, JobProgress, JobStatus } from '../../protocol/commands/jobs.js';
import { type WireError, wireError } from '../../protocol/errors.js';
import type { Session } from '../sessions/session.js';
import type { Assignment } from '../workers/pool.js';
import type { JournalEntry } from './journal.js';
import type { WaitsFor } from './queue.js';

/** The result as JSON text, or why there is none. */
export type Outcome = { readonly json: string } | { readonly error: WireError };

export interface Job {
  readonly id: string;
  readonly operation: OperationName;
  /** Dropped once the worker has them: they may hold secrets. */
  params: unknown;
  readonly cwd: string;
  /** Hash of operation and parameters, to tell a retry from another job; only where the client gave the id. */
  readonly digest: string | undefined;
  /** Hash of the same without secrets and without `resume`, which outlives the daemon. */
  readonly lasting: string;
  /** How far the same job had come when an earlier daemon was ended. */
  readonly mark: unknown;
  /** It has told of marks of its own: what an earlier one was about is not as it was. */
  marked: boolean;
  /** In the journal: as something under way, or as cut off. */
  journalled: boolean;
  /** An earlier daemon was killed while it had this job. */
  readonly cutOff: boolean;
  readonly autoDismiss: boolean;
  /** The higher the sooner. */
  readonly priority: number;
  /** Jobs that have to conclude well before this one begins. */
  readonly after: Set<string>;
  /** What its images are on; undefined: not known yet. */
  devices: readonly number[] | undefined;
  /** When it last got on, and that again where it has not for long: milliseconds since 1970. */
  lastProgress: number;
  stalled: number | undefined;
  /** Whose subscriptions the job's output waits for. */
  owner: Session | undefined;
  status: JobStatus;
  /** Asked to pause, whether or not it has come to do so. */
  pauseAsked: boolean;
  cancelAsked: boolean;
  /** False: it waits for job-finalize. */
  finalized: boolean;
  rate: number;
  /** `rate` is the client's, not the operation's. */
  rateGiven: boolean;
  progress: JobProgress | undefined;
  assignment: Assignment | undefined;
  killTimer: NodeJS.Timeout | undefined;
  outcome: Outcome | undefined;
  /** Those who wait for the outcome. */
  readonly waiting: Waiter[];
  /** Undoes what ties the job to connections. */
  readonly untie: (() => void)[];
  readonly created: number;
  started: number | undefined;
  concluded: number | undefined;
}

export interface Waiter {
  readonly session: Session;
  tell(outcome: Outcome): void;
}

export function jobInfo(
  job: Job,
  queued: { readonly position: number; readonly waitsFor: WaitsFor } | undefined,
): JobInfo {
  const failure = job.outcome !== undefined && 'error' in job.outcome ? job.outcome.error : undefined;
  return {
    id: job.id,
    type: job.operation,
    status: job.status,
    'current-progress': job.progress?.done ?? 0,
    'total-progress': job.progress?.total ?? 0,
    ...(failure === undefined ? {} : { error: failure.message, failure }),
    ...(job.progress === undefined ? {} : { progress: job.progress }),
    ...(job.rate === 0 ? {} : { speed: job.rate }),
    ...(queued === undefined ? {} : { 'queue-position': queued.position, 'waits-for': queued.waitsFor }),
    ...(job.priority === 0 ? {} : { priority: job.priority }),
    ...(job.after.size === 0 ? {} : { after: [...job.after] }),
    ...(job.stalled === undefined || job.outcome !== undefined ? {} : { 'stalled-since': job.stalled }),
    created: job.created,
    ...(job.started === undefined ? {} : { started: job.started }),
    ...(job.concluded === undefined ? {} : { concluded: job.concluded }),
  };
}

/** A job that an earlier daemon was ended over. */
export function interruptedJob(entry: JournalEntry): Job {
  const { id, operation, created, started, interrupted, autoDismiss } = entry;
  const what = started === undefined ? 'before this job began' : 'while this job ran';
  return {
    ...{ id, operation, params: undefined, cwd: '', digest: undefined, lasting: entry.digest },
    ...{ mark: undefined, marked: false, journalled: true, cutOff: true, autoDismiss, owner: undefined },
    ...{ priority: 0, after: new Set<string>(), devices: [], lastProgress: 0, stalled: undefined },
    ...{ status: 'concluded', pauseAsked: false, cancelAsked: false, finalized: true },
    ...{ rate: 0, rateGiven: false, progress: undefined, assignment: undefined, killTimer: undefined },
    ...{ waiting: [], untie: [], created, started, concluded: interrupted ?? Date.now() },
    outcome: { error: wireError('interrupted', `the daemon was ended ${what}`, { job: id }) },
  };
}
