/** Worker threads: one is kept warm, others come and go. A worker that dies costs the job that it ran, nothing else. */
import { Worker } from 'node:worker_threads';
import type { Log } from '../log.js';
import type { Failure, FromWorker, RunMessage, ToWorker, WorkerData } from './messages.js';

export interface JobListener {
  message(message: FromWorker): void;
  /** The worker is gone, and the job with it. */
  lost(failure: Failure): void;
}

/** A worker with a job, until that has ended. */
export interface Assignment {
  post(message: ToWorker): void;
  /** Ends the thread at once; the listener hears `lost`. */
  kill(reason: string): void;
}

export interface Pool {
  /** Hands the job to a worker that is idle, or to a new one. The caller sees to it that there are not too many. */
  run(message: RunMessage, listener: JobListener): Assignment;
  readonly busy: number;
  readonly idle: number;
  /** Workers that died under a job. */
  readonly lost: number;
  close(): Promise<void>;
}

interface Member {
  readonly worker: Worker;
  job: { readonly listener: JobListener; readonly long: boolean } | undefined;
  /** What it has run may have left a large heap behind. */
  used: boolean;
  short: number;
  gone: boolean;
  killed: string | undefined;
}

/** After this time without work, workers beyond the warm one go, and so does a warm one with a used heap (for a fresh one). */
const TRIM_MS = 5000;

/** So many short jobs leave as much as a long one. */
const MANY_SHORT = 200;

/** Operations that look at a few blocks only: they leave no large heap, and they start although all workers are busy. */
export function isShort(operation: string): boolean {
  return operation === 'image-info' || operation === 'image-inspect' || operation === 'format-options';
}

export interface PoolSettings {
  /** URL of the module with `runOperation`. */
  readonly engine: string;
  /** MiB of heap for each worker. */
  readonly memory: number;
  readonly log: Log;
  /** Whose each descriptor of the process is. */
  readonly owners?: Int32Array;
  /** Called some seconds after the last job, when workers have been trimmed, and again some seconds later. */
  onIdle?(): void;
}

export function createPool(settings: PoolSettings, warm = 1): Pool {
  const { log } = settings;
  const members = new Set<Member>();
  let lost = 0;
  let closed = false;
  let trimTimer: NodeJS.Timeout | undefined;

  // One that is being ended may still tell how its job came out, and must not get another.
  const idle = (): Member[] =>
    [...members].filter((member) => member.job === undefined && member.killed === undefined);

  function spawn(): Member {
    const { engine, owners } = settings;
    const data: WorkerData = { engine, ...(owners === undefined ? {} : { owners }) };
    const worker = new Worker(new URL('./worker.js', import.meta.url), {
      workerData: data,
      resourceLimits: { maxOldGenerationSizeMb: settings.memory },
      // Descriptors that the thread leaves open when it is ended are closed, and their locks with them.
      trackUnmanagedFds: true,
      // Flags of the process (a debugger's, a test runner's) are not for workers.
      execArgv: [],
    });
    const member: Member = { worker, job: undefined, used: false, short: 0, gone: false, killed: undefined };
    members.add(member);
    worker.on('message', (message: FromWorker) => {
      const { job } = member;
      if (job === undefined) return;
      if (message.type === 'done' || message.type === 'failed') {
        member.job = undefined;
        if (job.long || ++member.short >= MANY_SHORT) member.used = true;
        // After a bug nothing is known about the state of the thread.
        if (message.type === 'failed' && message.failure.kind === 'internal') {
          void discard(member);
          setImmediate(keepWarm);
        }
        planTrim();
      }
      job.listener.message(message);
    });
    worker.on('error', (error: NodeJS.ErrnoException) => bury(member, error));
    worker.on('exit', () => bury(member, undefined));
    return member;
  }

  /** Called for `error` and `exit`, whichever comes first. */
  function bury(member: Member, error: NodeJS.ErrnoException | undefined): void {
    if (member.gone) return;
    member.gone = true;
    members.delete(member);
    const { job } = member;
    if (job !== undefined) {
      member.job = undefined;
      const memory = error?.code === 'ERR_WORKER_OUT_OF_MEMORY';
      const message =
        member.killed ??
        (memory
          ? `out of memory: the job needed more than ${settings.memory} MiB`
          : `the worker of this job died${error === undefined ? '' : `: ${error.message}`}`);
      if (member.killed === undefined) {
        lost++;
        log.error({ code: error?.code, reason: error?.message }, 'worker lost');
      }
      setImmediate(keepWarm);
      job.listener.lost({ kind: memory ? 'limit' : 'worker-lost', message, context: {} });
    } else if (!closed && error !== undefined) {
      // Not replaced at once: a worker that dies while idle would make an endless loop of it.
      log.error({ code: error.code, reason: error.message }, 'idle worker lost');
    }
  }

  function discard(member: Member): Promise<unknown> {
    member.gone = true;
    members.delete(member);
    return member.worker.terminate();
  }

  function keepWarm(): void {
    if (!closed && idle().length < warm) spawn();
  }

  function tellIdle(): void {
    if (!closed && members.size === idle().length) settings.onIdle?.();
  }

  function planTrim(): void {
    clearTimeout(trimTimer);
    if (closed) return;
    const timer = setTimeout(async () => {
      let fresh = 0;
      const surplus = idle().filter((member) => member.used || ++fresh > warm);
      await Promise.all(surplus.map(discard));
      keepWarm();
      tellIdle();
      // Once more: V8 shrinks its young space only when it has not been allocating for some seconds.
      if (!closed && trimTimer === timer) trimTimer = setTimeout(tellIdle, TRIM_MS + 1000).unref();
    }, TRIM_MS);
    trimTimer = timer.unref();
  }

  keepWarm();

  return {
    run(message, listener) {
      // The one used last is at the end: its caches are warmest.
      const member = idle().at(-1) ?? spawn();
      const job = { listener, long: !isShort(message.operation) };
      member.job = job;
      member.worker.postMessage(message);
      if (job.long) setImmediate(keepWarm);
      planTrim();
      return {
        post(control) {
          if (member.job === job) member.worker.postMessage(control);
        },
        kill(reason) {
          if (member.job !== job) return;
          member.killed = reason;
          // `lost` is told on its exit, when its files are closed and their locks gone.
          void member.worker.terminate();
        },
      };
    },
    get busy() {
      return members.size - idle().length;
    },
    get idle() {
      return idle().length;
    },
    get lost() {
      return lost;
    },
    async close() {
      closed = true;
      clearTimeout(trimTimer);
      await Promise.all([...members].map((member) => member.worker.terminate()));
    },
  };
}
