/** A job: what is known of one operation from its request until it is forgotten. */
import type { OperationName } from '../../protocol/commands/index.js';
import type { JobInfo, JobProgress, JobStatus } from '../../protocol/commands/jobs.js';
import type { WireError } from '../../protocol/errors.js';
import type { Session } from '../sessions/session.js';
import type { Assignment } from '../workers/pool.js';

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
  readonly autoDismiss: boolean;
  /** Whose subscriptions the job's output waits for. */
  owner: Session | undefined;
  status: JobStatus;
  /** Asked to pause, whether or not it has come to do so. */
  pauseAsked: boolean;
  cancelAsked: boolean;
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

export function jobInfo(job: Job, queuePosition: number | undefined): JobInfo {
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
    ...(queuePosition === undefined ? {} : { 'queue-position': queuePosition }),
    created: job.created,
    ...(job.started === undefined ? {} : { started: job.started }),
    ...(job.concluded === undefined ? {} : { concluded: job.concluded }),
  };
}
