/** What an operation gets from whoever runs it: a worker of the daemon, or the command line in its own process. */
import type { MapEntry } from '../../protocol/commands/image-map.js';
import type { OpenPolicy } from '../node/gate.js';
import type { NodeScope } from '../node/node-scope.js';
import type { ThrottleGroup } from '../node/throttle-group.js';
import type { Tracer } from '../node/tracer.js';

export interface Progress {
  /** Names the stage of the work: `copy`, `check`, `flush`. */
  readonly phase: string;
  /** Bytes (guest or metadata) done and in all; `total` may still grow, `done` never exceeds it. */
  readonly done: number;
  readonly total: number;
  /** Bytes written, and bytes that were zeros and needed no writing. */
  readonly written?: number;
  readonly zeros?: number;
}

/** What an operation says on its way: text for a person, lines of trace events, or map entries for a program. */
export type Output =
  | { readonly stream: 'stdout' | 'stderr' | 'trace'; readonly text: string }
  | { readonly stream: 'entries'; readonly entries: readonly MapEntry[] };

export interface OperationContext {
  /** Absolute; relative filenames of the caller are resolved against it. */
  readonly cwd: string;
  readonly policy: OpenPolicy;
  readonly signal: AbortSignal;
  /** Cheap: the receiver coalesces. */
  progress(progress: Progress): void;
  /** `text` has its line ends. In order, never dropped. */
  output(output: Output): void;
  /**
   * Asked before each unit of work of so many bytes: undefined to go on, or a promise that resolves when pause and rate
   * limit allow it, and rejects when the job is cancelled meanwhile.
   */
  pace(bytes: number): Promise<void> | undefined;
  /** Sets the job's own rate (bytes a second, 0: none), as `convert -r` does. */
  setRate(bytesPerSecond: number): void;
  /** Asked before what cannot be taken back; absent: at once. Rejects when the job is cancelled instead. */
  finalize?(): Promise<void>;
  /** How far a long operation has come, for whoever runs it again after a crash; absent where nobody remembers. */
  readonly checkpoint?: {
    /** What the last run of the same operation kept, if it was cut off and is to be gone on with. */
    readonly last?: unknown;
    /** JSON; undefined: nothing can be gone on with. */
    keep(mark: unknown): void;
  };
  /** What names of nodes mean; absent where no image is held. */
  readonly nodes?: NodeScope;
  /** Those among the request's objects, by id. */
  readonly throttleGroups?: ReadonlyMap<string, ThrottleGroup> | undefined;
  /** Told of what is opened and done, where the request asks for trace events. */
  readonly trace?: Tracer;
  /** Marks the files that it locks as this one's (storage/owners.ts). */
  readonly owner?: number;
}
