/** All jobs: their states, the queue, and the verbs that clients have for them. */
import type { OpenPolicy } from '../../engine/node/gate.js';
import type { OperationName } from '../../protocol/commands/index.js';
import type { JobInfo, JobOptions, JobStatus } from '../../protocol/commands/jobs.js';
import { wireError } from '../../protocol/errors.js';
import type { Log } from '../log.js';
import type { EventBus } from '../sessions/events.js';
import { failureToWire, rpcError } from '../sessions/rpc-error.js';
import type { Session } from '../sessions/session.js';
import type { FromWorker } from '../workers/messages.js';
import { isShort, type Pool } from '../workers/pool.js';
import { devicesOf } from './devices.js';
import { digestOf, lastingDigest } from './digest.js';
import { interruptedJob, type Job, jobInfo, type Outcome, type Waiter } from './job.js';
import type { Journal, JournalEntry } from './journal.js';
import { withoutSecrets } from './journal-params.js';
import { JobQueue } from './queue.js';
import { changed, gotOn, newlyStalled } from './stalls.js';

export interface JobSettings {
  readonly maxRunning: number;
  readonly maxJobs: number;
  /** Seconds. */
  readonly killTimeout: number;
  readonly policy: OpenPolicy;
  readonly journal?: Journal | undefined;
  /** Jobs on one storage device at once; 0: any number. */
  readonly maxPerDevice: number;
  /** Seconds without progress after which a job is said to be stalled; 0: never. */
  readonly stallTimeout: number;
  /** Told of each job's end, whatever became of it. */
  concluded?(job: Job, outcome: Outcome): void;
}

/** Short operations start beside a full set of long ones, this many at a time: they share a thread. */
const MAX_SHORT = 64;

/** Between looks at whether jobs get on. */
const WATCH_MS = 500;

/** Outcomes that nobody has asked for yet are kept this long, and so many of them. */
const UNTOLD_MS = 10 * 60_000;
const UNTOLD_JOBS = 256;
const UNTOLD_BYTES = 16 * 1024 * 1024;

export class JobManager {
  readonly #pool: Pool;
  readonly #bus: EventBus;
  readonly #log: Log;
  readonly #settings: JobSettings;
  readonly #jobs = new Map<string, Job>();
  readonly #queue = new JobQueue();
  #runningLong = 0;
  #runningShort = 0;
  #live = 0;
  /** Jobs of earlier daemons. */
  #cutOff = 0;
  #nextId = 1;
  #closing = false;
  #onQuiet: (() => void)[] = [];
  readonly #sweeper: NodeJS.Timeout;
  readonly #watcher: NodeJS.Timeout;

  constructor(pool: Pool, bus: EventBus, log: Log, settings: JobSettings) {
    this.#pool = pool;
    this.#bus = bus;
    this.#log = log;
    this.#settings = settings;
    this.#sweeper = setInterval(() => this.#sweep(), 60_000);
    this.#sweeper.unref();
    this.#watcher = setInterval(() => this.#watch(), WATCH_MS);
    this.#watcher.unref();
  }

  /**
   * Starts a job, or finds the one that a retry is about.
   * @param params validated, without the member `job`.
   */
  start(operation: OperationName, params: unknown, cwd: string, options: JobOptions, session: Session): Job {
    if (this.#closing) throw rpcError('shutting-down', 'the daemon is shutting down');
    const digest = options.id === undefined ? undefined : digestOf(operation, params, cwd);
    const lasting = isShort(operation) ? '' : lastingDigest(operation, params, cwd);
    const mark = resumes(params) ? this.#settings.journal?.markOf(lasting) : undefined;
    const again = options.id === undefined ? undefined : this.#jobs.get(options.id);
    // What was cut off is gone on with under its own id.
    const goesOn = again?.cutOff === true && again.lasting === lasting && resumes(params);
    if (options.id !== undefined && !goesOn) {
      const existing = again;
      if (existing !== undefined) {
        if (existing.cutOff ? existing.lasting === lasting : existing.digest === digest) {
          this.#adopt(existing, options, session);
          return existing;
        }
        throw rpcError('job-exists', `Job ID '${options.id}' already in use`, {
          job: options.id,
          member: 'job.id',
        });
      }
    }
    const { maxJobs } = this.#settings;
    if (this.#live >= maxJobs) throw rpcError('too-many-jobs', `more than ${maxJobs} jobs are unfinished`);
    if (this.#jobs.size - this.#cutOff >= 2 * maxJobs) {
      throw rpcError('too-many-jobs', `more than ${maxJobs} concluded jobs wait to be dismissed`);
    }
    if (!isShort(operation) && this.#settings.journal?.full === true) {
      throw rpcError('too-many-jobs', 'the journal has no room for more unfinished jobs');
    }
    const after = this.#dependencies(options.after ?? []);
    const limited = this.#settings.maxPerDevice > 0 && !isShort(operation);
    const job: Job = {
      priority: options.priority,
      after,
      devices: limited ? undefined : [],
      lastProgress: 0,
      stalled: undefined,
      id: options.id ?? this.#freeId(),
      operation,
      params,
      cwd,
      digest,
      lasting,
      mark,
      marked: false,
      journalled: false,
      cutOff: false,
      autoDismiss: options['auto-dismiss'],
      owner: undefined,
      status: 'undefined',
      pauseAsked: options.paused,
      cancelAsked: false,
      finalized: options['auto-finalize'],
      rate: options['rate-limit'] ?? 0,
      rateGiven: options['rate-limit'] !== undefined,
      progress: undefined,
      assignment: undefined,
      killTimer: undefined,
      outcome: undefined,
      waiting: [],
      untie: [],
      created: Date.now(),
      started: undefined,
      concluded: undefined,
    };
    if (goesOn) {
      // Its record is replaced by the new one's: what a refusal, or a crash, leaves behind can still be gone on with.
      again.journalled = false;
      this.#forget(again);
    }
    this.#jobs.set(job.id, job);
    this.#record(job, session);
    this.#live++;
    this.#queue.add(job);
    this.#setStatus(job, 'created');
    if (job.pauseAsked) this.#setStatus(job, 'paused');
    // Where the client has gone by now, this concludes it.
    this.#adopt(job, options, session);
    if (limited) {
      void devicesOf(params, cwd).then((devices) => {
        job.devices = devices;
        this.#dispatch();
      });
    }
    this.#dispatch();
    return job;
  }

  /** Jobs that an earlier daemon was killed over: concluded, with the error `interrupted`. */
  restore(entries: readonly JournalEntry[]): void {
    for (const entry of entries) {
      const job = interruptedJob(entry);
      this.#jobs.set(job.id, job);
      this.#cutOff++;
      this.#setStatus(job, 'concluded');
    }
  }

  get(id: string): Job {
    const job = this.#jobs.get(id);
    if (job === undefined)
      throw rpcError('job-not-found', `Job '${id.slice(0, 128)}' not found`, { job: id.slice(0, 128) });
    return job;
  }

  /** The outcome, for `session`; telling it is what ends an auto-dismissed job. */
  wait(job: Job, session: Session): Promise<Outcome> {
    session.waiting++;
    const outcome = new Promise<Outcome>((resolve) => {
      // A client that has gone is not told, and must not keep the promise alive until the job's end.
      const untie = session.onClosed(() => {
        const at = job.waiting.indexOf(waiter);
        if (at >= 0) job.waiting.splice(at, 1);
        resolve({ error: wireError('cancelled', 'the connection is gone') });
      });
      const waiter: Waiter = {
        session,
        tell(outcome) {
          untie();
          resolve(outcome);
        },
      };
      job.waiting.push(waiter);
      if (job.outcome !== undefined) this.#tell(job);
    });
    return outcome.finally(() => session.waiting--);
  }

  list(): JobInfo[] {
    const positions = this.#queue.positions();
    return [...this.#jobs.values()].map((job) => this.#describe(job, positions));
  }

  info(id: string): JobInfo {
    const job = this.get(id);
    return this.#describe(job, this.#queue.positions());
  }

  #describe(job: Job, positions: ReadonlyMap<Job, number>): JobInfo {
    const position = positions.get(job);
    if (position === undefined) return jobInfo(job, undefined);
    return jobInfo(job, { position, waitsFor: this.#queue.waitsFor(job, this.#settings.maxPerDevice) });
  }

  /** Ids of those that have yet to conclude. Throws where one has failed, or is not known. */
  #dependencies(ids: readonly string[]): Set<string> {
    return new Set(
      ids.filter((id) => {
        const { outcome } = this.get(id);
        if (outcome !== undefined && 'error' in outcome) {
          throw rpcError('dependency', `Job '${id}' has failed, which this one was to come after`, {
            job: id,
          });
        }
        return outcome === undefined;
      }),
    );
  }

  #watch(): void {
    for (const [job, seconds] of newlyStalled(this.#jobs.values(), this.#settings.stallTimeout)) {
      this.#log.warn({ job: job.id, operation: job.operation, seconds }, 'job stalled');
      this.#bus.publish('JOB_STALLED', job.id, { id: job.id, type: job.operation, seconds });
    }
  }

  /** Those that were to come after a job may now begin, or never will. */
  #release({ id, outcome }: Job): void {
    for (const job of this.#queue) {
      if (!job.after.has(id) || job.outcome !== undefined) continue;
      job.after.delete(id);
      if (outcome === undefined || 'json' in outcome) continue;
      this.#queue.remove(job);
      const text = `Job '${id}' has failed, which this one was to come after`;
      this.#conclude(job, { error: wireError('dependency', text, { job: job.id }) });
    }
    this.#dispatch();
  }

  countByStatus(): Record<string, number> {
    const counts: Record<string, number> = {};
    for (const { status } of this.#jobs.values()) counts[status] = (counts[status] ?? 0) + 1;
    return counts;
  }

  pause(id: string): void {
    const job = this.#taking(id, 'pause', ['created', 'running', 'paused']);
    if (job.pauseAsked) throw rpcError('job-state', 'Job is already paused', { job: id });
    job.pauseAsked = true;
    if (job.assignment === undefined) this.#setStatus(job, 'paused');
    else job.assignment.post({ type: 'pause' });
  }

  resume(id: string): void {
    const job = this.#taking(id, 'resume', ['created', 'running', 'paused']);
    if (!job.pauseAsked) throw rpcError('job-state', "Can't resume a job that was not paused", { job: id });
    job.pauseAsked = false;
    if (job.assignment === undefined) {
      this.#setStatus(job, 'created');
      this.#dispatch();
    } else job.assignment.post({ type: 'resume' });
  }

  setSpeed(id: string, speed: number): void {
    const job = this.#taking(id, 'set-speed', ['created', 'running', 'paused']);
    job.rate = speed;
    job.rateGiven = true;
    job.assignment?.post({ type: 'rate', rate: speed });
  }

  cancel(id: string, force: boolean): void {
    this.#cancel(this.#taking(id, 'cancel', ['created', 'running', 'paused', 'pending', 'aborting']), force);
  }

  finalize(id: string): void {
    const job = this.#taking(id, 'finalize', ['pending']);
    if (job.finalized) throw rpcError('job-state', 'Job is already being finalized', { job: id });
    job.finalized = true;
    job.assignment?.post({ type: 'finalize' });
  }

  dismiss(id: string): void {
    this.#forget(this.#taking(id, 'dismiss', ['concluded']));
  }

  /** The settings, which are read anew each time, have other limits now. */
  limitsChanged(): void {
    this.#dispatch();
  }

  /** Takes no more jobs; resolves when none is left. Those that run and queue are cancelled, or with `drain` finished. */
  close(drain: boolean): Promise<void> {
    this.#closing = true;
    clearInterval(this.#sweeper);
    clearInterval(this.#watcher);
    for (const job of [...this.#jobs.values()]) {
      // One that is paused would never finish.
      if (job.outcome === undefined && (!drain || job.pauseAsked || job.status === 'pending'))
        this.#cancel(job, false);
    }
    if (this.#live === 0) return Promise.resolve();
    return new Promise((resolve) => this.#onQuiet.push(resolve));
  }

  #adopt(job: Job, options: JobOptions, session: Session): void {
    // After a reconnect the output waits for the new connection.
    if (job.owner === undefined || !job.owner.listening) job.owner = session;
    if (options['cancel-on-disconnect']) {
      job.untie.push(
        session.onGone(() => {
          if (job.outcome === undefined) this.#cancel(job, false);
        }),
      );
    }
  }

  #taking(id: string, verb: string, states: readonly JobStatus[]): Job {
    const job = this.get(id);
    if (!states.includes(job.status)) {
      throw rpcError(
        'job-state',
        `Job '${id}' in state '${job.status}' cannot accept command verb '${verb}'`,
        { job: id },
      );
    }
    return job;
  }

  #cancel(job: Job, force: boolean): void {
    if (job.assignment === undefined) {
      if (!this.#queue.remove(job)) return;
      this.#setStatus(job, 'aborting');
      this.#conclude(job, { error: wireError('cancelled', 'Operation cancelled', { job: job.id }) });
      return;
    }
    const { assignment } = job;
    if (!job.cancelAsked) {
      job.cancelAsked = true;
      this.#setStatus(job, 'aborting');
      assignment.post({ type: 'cancel' });
    }
    const kill = (): void =>
      assignment.kill('cancelled; its worker was ended before it had stopped by itself');
    if (force) kill();
    else if (job.killTimer === undefined) {
      job.killTimer = setTimeout(kill, this.#settings.killTimeout * 1000);
    }
  }

  #dispatch(): void {
    for (const job of this.#queue) {
      const longFull = this.#runningLong >= this.#settings.maxRunning;
      const shortFull = this.#runningShort >= MAX_SHORT;
      if (longFull && shortFull) return;
      if (isShort(job.operation) ? shortFull : longFull) continue;
      if (this.#queue.waitsFor(job, this.#settings.maxPerDevice) !== 'worker') continue;
      // Telling of one may have started, or cancelled, another.
      if (this.#queue.remove(job)) this.#run(job);
    }
  }

  #run(job: Job): void {
    if (isShort(job.operation)) this.#runningShort++;
    else this.#runningLong++;
    this.#queue.use(job, 1);
    gotOn(job);
    job.started = Date.now();
    if (job.journalled) this.#settings.journal?.started(job.id, job.started);
    const { id, operation, params, cwd } = job;
    job.params = undefined;
    this.#setStatus(job, 'running');
    job.assignment = this.#pool.run(
      {
        type: 'run',
        job: id,
        operation,
        params,
        cwd,
        policy: this.#settings.policy,
        rate: job.rateGiven ? job.rate : undefined,
        ...(job.mark === undefined ? {} : { mark: job.mark }),
        ...(job.finalized ? {} : { pending: true }),
      },
      {
        message: (message) => this.#fromWorker(job, message),
        lost: (failure) => {
          // Ended on a cancel: that is what the client asked for, whichever way it came about.
          const kind = job.cancelAsked ? 'cancelled' : failure.kind;
          this.#ended(job, { error: failureToWire({ ...failure, kind }, id) });
        },
      },
    );
  }

  #fromWorker(job: Job, message: FromWorker): void {
    switch (message.type) {
      case 'paused':
      case 'resumed': {
        const status = message.type === 'paused' ? 'paused' : 'running';
        // The worker may tell of a pause that has been taken back, or of one before a cancel or after its work.
        const waits = job.cancelAsked || job.status === 'pending';
        if (!waits && job.pauseAsked === (status === 'paused') && job.status !== status) {
          gotOn(job);
          this.#setStatus(job, status);
        }
        break;
      }
      case 'pending':
        if (job.cancelAsked) break;
        this.#setStatus(job, 'pending');
        // Nobody is left who could tell it to conclude.
        if (this.#closing) this.#cancel(job, false);
        break;
      case 'mark':
        job.marked = true;
        if (job.journalled) this.#settings.journal?.mark(job.id, message.mark);
        break;
      case 'rate':
        job.rate = message.rate;
        break;
      case 'progress':
        if (changed(job.progress, message.progress)) gotOn(job);
        job.progress = message.progress;
        this.#bus.publish('JOB_PROGRESS', job.id, { id: job.id, ...message.progress });
        break;
      case 'output': {
        gotOn(job);
        const { json } = message;
        this.#bus.publish('JOB_OUTPUT', job.id, json, job.owner, () =>
          job.assignment?.post({ type: 'ack', bytes: json.length }),
        );
        break;
      }
      case 'done':
        if (message.progress !== undefined) {
          job.progress = message.progress;
          this.#bus.publish('JOB_PROGRESS', job.id, { id: job.id, ...message.progress });
        }
        this.#ended(job, { json: message.json });
        break;
      case 'failed':
        this.#ended(job, { error: failureToWire(message.failure, job.id) });
        break;
    }
  }

  /** A job that had a worker has an outcome. */
  #ended(job: Job, outcome: Outcome): void {
    if (isShort(job.operation)) this.#runningShort--;
    else this.#runningLong--;
    this.#queue.use(job, -1);
    job.assignment = undefined;
    clearTimeout(job.killTimer);
    this.#conclude(job, outcome);
    this.#dispatch();
  }

  #conclude(job: Job, outcome: Outcome): void {
    job.outcome = outcome;
    job.params = undefined;
    for (const untie of job.untie.splice(0)) untie();
    job.concluded = Date.now();
    this.#live--;
    this.#strike(job);
    this.#logOutcome(job, outcome);
    this.#settings.concluded?.(job, outcome);
    this.#setStatus(job, 'concluded');
    this.#tell(job);
    this.#release(job);
    if (this.#jobs.has(job.id)) this.#sweep();
    if (this.#live === 0 && this.#closing) for (const callback of this.#onQuiet.splice(0)) callback();
  }

  /** Tells the outcome to all who wait. Whoever is told by a live connection settles an auto-dismissed job. */
  #tell(job: Job): void {
    let told = false;
    for (const waiter of job.waiting.splice(0)) {
      waiter.tell(job.outcome!);
      told ||= waiter.session.listening;
    }
    if (told && job.autoDismiss) this.#forget(job);
  }

  #forget(job: Job): void {
    if (this.#jobs.get(job.id) !== job) return;
    this.#jobs.delete(job.id);
    if (job.cutOff) {
      this.#cutOff--;
      this.#strike(job);
    }
    this.#setStatus(job, 'null');
  }

  /** Written before anything of the job is told or done. */
  #record(job: Job, session: Session): void {
    const { journal } = this.#settings;
    // These leave no trace in images, and there may be thousands a second.
    if (journal === undefined || isShort(job.operation)) return;
    const { kind, peer } = session.transport;
    job.journalled = true;
    journal.created({
      id: job.id,
      operation: job.operation,
      params: withoutSecrets(job.params),
      digest: job.lasting,
      owner: peer === undefined ? kind : `uid ${peer.uid}, pid ${peer.pid}`,
      autoDismiss: job.autoDismiss,
      created: job.created,
      ...(job.mark === undefined ? {} : { mark: job.mark }),
    });
  }

  /** Written before the outcome is told: what a client has heard of is not found cut off later. */
  #strike(job: Job): void {
    if (!job.journalled) return;
    job.journalled = false;
    const { outcome } = job;
    const error =
      outcome !== undefined && 'error' in outcome ? (outcome.error.data?.kind ?? 'internal') : undefined;
    if (error !== undefined && job.mark !== undefined && !job.marked) {
      this.#settings.journal?.untouched(job.id, error);
    } else this.#settings.journal?.ended(job.id, error);
  }

  /** Forgets outcomes that nobody asked for: the old ones, and the oldest of too many. */
  #sweep(): void {
    const untold = [...this.#jobs.values()].filter(
      (job) => job.autoDismiss && job.outcome !== undefined && !job.cutOff,
    );
    const before = Date.now() - UNTOLD_MS;
    let count = 0;
    let bytes = 0;
    // Newest first: what comes after the budget is spent goes.
    for (const job of untold.reverse()) {
      count++;
      if ('json' in job.outcome!) bytes += job.outcome.json.length;
      // The newest stays in any case: somebody may be about to ask.
      const spent = count > UNTOLD_JOBS || (bytes > UNTOLD_BYTES && count > 1);
      if (job.concluded! < before || spent) this.#forget(job);
    }
  }

  #setStatus(job: Job, status: JobStatus): void {
    job.status = status;
    const failed = status === 'concluded' && job.outcome !== undefined && 'error' in job.outcome;
    this.#bus.publish('JOB_STATUS_CHANGE', job.id, {
      id: job.id,
      status,
      type: job.operation,
      ...(failed ? { error: (job.outcome as { error: unknown }).error } : {}),
    });
  }

  #freeId(): string {
    for (;;) {
      const id = `job-${this.#nextId++}`;
      if (!this.#jobs.has(id)) return id;
    }
  }

  #logOutcome(job: Job, outcome: Outcome): void {
    const fields = {
      job: job.id,
      operation: job.operation,
      ms: job.concluded! - (job.started ?? job.created),
    };
    if ('json' in outcome) this.#log[isShort(job.operation) ? 'debug' : 'info'](fields, 'job done');
    else {
      const { kind, errno, check } = outcome.error.data ?? {};
      this.#log.info({ ...fields, kind, errno, check }, 'job failed');
      // The text may quote what the client sent (a json: filename): only for those who ask for it.
      this.#log.debug({ job: job.id, error: outcome.error.message }, 'job error');
    }
  }
}

function resumes(params: unknown): boolean {
  return (params as { readonly resume?: unknown }).resume === true;
}
