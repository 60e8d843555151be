/** Worker threads: one is kept warm, others come and go. A worker that dies costs the job that killed it, nothing else. */
import { Worker } from 'node:worker_threads';
import type { Log } from '../log.js';
import { control, give, type Member, newMember, type Work } from './member.js';
import type { Failure, FromPoolWorker, FromWorker, RunMessage, ToWorker, WorkerData } from './messages.js';
import { QuickJobs } from './quick.js';

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

/** After this time without work, workers beyond the warm one go, and so does a warm one with a used heap (for a fresh one). */
const TRIM_MS = 5000;
const TRIM_EVERY_MS = 1000;

/** So many short jobs leave as much as a long one. */
const MANY_SHORT = 200;

/** A thread that has had quick jobs within this time is left to them. */
const QUICK_MS = 1000;

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
  let idleTimer: NodeJS.Timeout | undefined;

  // One that is being ended may still tell how its job came out, and must not get another.
  const idle = (): Member[] =>
    [...members].filter((member) => member.work.size === 0 && member.killed === undefined);

  /** Not for long jobs. */
  const keptForQuick = (member: Member): boolean =>
    member.quick && member.lastQuick > performance.now() - QUICK_MS;

  const quick = new QuickJobs(members, () => idle().findLast((member) => !member.used) ?? spawn());

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
    const member = newMember(worker);
    members.add(member);
    worker.on('message', (messages: readonly FromPoolWorker[]) => {
      for (const { job, message } of messages) {
        const work = member.work.get(job);
        if (work !== undefined) heard(member, work, message);
      }
    });
    worker.on('error', (error: NodeJS.ErrnoException) => bury(member, error));
    worker.on('exit', () => bury(member, undefined));
    return member;
  }

  function heard(member: Member, work: Work, message: FromWorker): void {
    if (message.type === 'done' || message.type === 'failed') {
      member.work.delete(work.message.job);
      member.lastWork = performance.now();
      if (work.long || ++member.short >= MANY_SHORT) member.used = true;
      // After a bug nothing is known about the state of the thread.
      if (message.type === 'failed' && message.failure.kind === 'internal') {
        const others = [...member.work.values()];
        void discard(member);
        if (others.length > 0) quick.died(others);
        setImmediate(keepWarm);
      }
      quick.ended(work);
      planTrim();
    }
    work.listener.message(message);
  }

  /** Called for `error` and `exit`, whichever comes first. */
  function bury(member: Member, error: NodeJS.ErrnoException | undefined): void {
    if (member.gone) return;
    member.gone = true;
    members.delete(member);
    const works = [...member.work.values()];
    member.work.clear();
    if (works.length > 0) {
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
      if (works.length > 1 && !closed) quick.died(works);
      else {
        for (const work of works) {
          quick.ended(work);
          work.listener.lost({ kind: memory ? 'limit' : 'worker-lost', message, context: {} });
        }
      }
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
    if (!closed && idle().filter((member) => !keptForQuick(member)).length < warm) spawn();
  }

  function tellIdle(): void {
    if (!closed && members.size === idle().length) settings.onIdle?.();
  }

  function planTrim(): void {
    if (!closed) trimTimer ??= setTimeout(() => void trim(), TRIM_EVERY_MS).unref();
  }

  /** Each goes in its own time: where there is always work, the heaps of those that have none would stay for ever. */
  async function trim(): Promise<void> {
    trimTimer = undefined;
    const before = performance.now() - TRIM_MS;
    const resting = idle();
    let fresh = 0;
    const surplus = resting.filter((member) => (member.used || ++fresh > warm) && member.lastWork <= before);
    await Promise.all(surplus.map(discard));
    keepWarm();
    if (resting.length < members.size || resting.some(({ lastWork }) => lastWork > before)) planTrim();
    else if (!closed) {
      tellIdle();
      // Once more: V8 shrinks its young space only when it has not been allocating for some seconds.
      clearTimeout(idleTimer);
      idleTimer = setTimeout(tellIdle, TRIM_MS + 1000).unref();
    }
  }

  keepWarm();

  return {
    run(message, listener) {
      // One that waits to be told to conclude has to wait in a thread of its own.
      const long = !isShort(message.operation) || message.pending === true;
      const work: Work = {
        ...{ message, listener, long, since: 0, paused: false, told: [], again: 0, member: undefined },
      };
      if (long) {
        // The one used last is at the end: its caches are warmest.
        const member = idle().findLast((each) => !keptForQuick(each)) ?? spawn();
        member.quick = false;
        give(member, work);
        setImmediate(keepWarm);
      } else quick.run(work);
      planTrim();
      return {
        post(told) {
          if (told.type !== 'run') control(work, told);
        },
        kill(reason) {
          const { member } = work;
          if (member?.work.get(message.job) !== work) return;
          member.killed = reason;
          if (!long) quick.spareOthers(member, work);
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
      clearTimeout(idleTimer);
      quick.close();
      await Promise.all([...members].map((member) => member.worker.terminate()));
    },
  };
}
