/** What main thread and worker say to each other. Results and outputs travel as JSON text: the main thread never walks them. */
import type { ErrorContext } from '../../engine/error.js';
import type { OpenPolicy } from '../../engine/node/gate.js';
import type { OperationName } from '../../protocol/commands/index.js';
import type { JobProgress } from '../../protocol/commands/jobs.js';
import type { WireErrorKind } from '../../protocol/errors.js';

export interface WorkerData {
  /** URL of the module that exports `runOperation`. */
  readonly engine: string;
  /** Whose each descriptor of the process is (storage/owners.ts), on shared memory. */
  readonly owners?: Int32Array;
}

export interface RunMessage {
  readonly type: 'run';
  readonly job: string;
  readonly operation: OperationName;
  readonly params: unknown;
  readonly cwd: string;
  readonly policy: OpenPolicy;
  /** Set: the job's own limit, which an operation does not change. */
  readonly rate: number | undefined;
  /** Marks the job's descriptors. */
  readonly owner?: number;
  /** Wait to be told before it concludes. */
  readonly pending?: boolean;
  /** How far the same job had come when it was cut off. */
  readonly mark?: unknown;
  /** May take long, and has the thread for itself. */
  readonly long?: boolean;
}

export type ToWorker = RunMessage | ControlMessage;

/** To a worker of the pool, several at a time. */
export type ToPoolWorker =
  | RunMessage
  | { readonly type: 'control'; readonly job: string; readonly control: ControlMessage };

/** From a worker of the pool, several at a time. */
export interface FromPoolWorker {
  readonly job: string;
  readonly message: FromWorker;
}

/** What a job is told on its way. */
export type ControlMessage =
  | { readonly type: 'pause' | 'resume' | 'cancel' | 'finalize' }
  | { readonly type: 'rate'; readonly rate: number }
  /** So many bytes of output have left the process. */
  | { readonly type: 'ack'; readonly bytes: number };

/** An error without its class, as it is cloned between threads. */
export interface Failure {
  readonly kind: WireErrorKind;
  readonly message: string;
  readonly context: ErrorContext;
}

export type FromWorker =
  | { readonly type: 'paused' | 'resumed' | 'pending' }
  | { readonly type: 'rate'; readonly rate: number }
  /** How far it has come, for the journal. */
  | { readonly type: 'mark'; readonly mark: unknown }
  | { readonly type: 'progress'; readonly progress: JobProgress }
  /** `data` of a JOB_OUTPUT event, whole, as JSON. */
  | { readonly type: 'output'; readonly json: string }
  | { readonly type: 'done'; readonly json: string; readonly progress: JobProgress | undefined }
  | { readonly type: 'failed'; readonly failure: Failure };
