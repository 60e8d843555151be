/** Jobs: started without waiting, watched, and told what to do. */
import type { JobInfo, JobProgress, JobStatus } from '../../src/protocol/commands/jobs.js';
import type { JobOutput } from '../../src/protocol/events.js';
import { ImgdError } from './errors.js';
import type { EventStream, Feed, Feeds } from './events.js';
import type { ImgdEvent } from './types.js';

const over = (status: JobStatus): boolean => status === 'concluded' || status === 'null';

/** A job of the daemon. `R` is what its operation answers with. */
export class Job<R> {
  readonly id: string;
  /** The operation: `image-convert`. */
  readonly type: string;
  readonly #watch: JobWatch;
  readonly #output: EventStream<'JOB_OUTPUT' | 'JOB_STATUS_CHANGE'> | undefined;
  readonly #wakers = new Set<() => void>();
  #overs: (() => void)[] = [];
  #status: JobStatus;
  #progress: JobProgress | undefined;
  #version = 0;
  #result: Promise<R> | undefined;
  /** Nothing more will be heard of it, though its end has not been. */
  #failure: ImgdError | undefined;

  constructor(
    watch: JobWatch,
    id: string,
    type: string,
    status: JobStatus,
    output?: EventStream<'JOB_OUTPUT' | 'JOB_STATUS_CHANGE'>,
  ) {
    this.#watch = watch;
    this.id = id;
    this.type = type;
    this.#status = status;
    this.#output = output;
  }

  /** As last heard. */
  get status(): JobStatus {
    return this.#status;
  }

  get concluded(): boolean {
    return over(this.#status);
  }

  /**
   * How far the job is, each time that it has moved on; slow readers see the newest only. Ends when the job has concluded, well or
   * not: `result()` tells which. Throws where the client is closed.
   */
  async *progress(): AsyncGenerator<JobProgress, void, undefined> {
    let seen = 0;
    for (;;) {
      if (this.#progress !== undefined && this.#version > seen) {
        seen = this.#version;
        yield this.#progress;
      } else if (this.concluded) return;
      else if (this.#failure !== undefined) throw this.#failure;
      else {
        let wake = (): void => undefined;
        await new Promise<void>((resolve) => {
          wake = resolve;
          this.#wakers.add(wake);
        });
        this.#wakers.delete(wake);
      }
    }
  }

  /** What the operation says on its way, in order; only where it was started with `output`. Ends with the job. One reader. */
  async *output(): AsyncGenerator<JobOutput, void, undefined> {
    if (this.#output === undefined) {
      throw new ImgdError('invalid', "the job was not started with 'output: true'", { job: this.id });
    }
    for await (const event of this.#output) {
      if (event.event === 'JOB_OUTPUT') yield event.data;
      else if (over(event.data.status)) return;
    }
  }

  /**
   * The operation's result, or its error as ImgdError. Unless the job was started with `auto-dismiss` false, asking is what lets the
   * daemon forget it; further calls are answered from here.
   */
  result(): Promise<R> {
    this.#result ??= this.#watch.feeds.link.call(
      'job-wait',
      { id: this.id },
      { method: 'job-wait', params: { id: this.id } },
    ) as Promise<R>;
    return this.#result;
  }

  /** What the daemon knows of it now. */
  async info(): Promise<JobInfo> {
    const [info] = (await this.#watch.feeds.link.call('query-jobs', { id: this.id }, 'resend')) as JobInfo[];
    return info!;
  }

  /** Resolves when the daemon has taken the request; the job is `paused` when it comes to a point where it can be. */
  pause(): Promise<void> {
    return this.#tell('job-pause');
  }

  resume(): Promise<void> {
    return this.#tell('job-resume');
  }

  /** Bytes a second; 0: no limit. */
  setSpeed(speed: number): Promise<void> {
    return this.#tell('job-set-speed', { speed });
  }

  /** Resolves when the daemon has taken the request; `result()` rejects as `cancelled` when the job has stopped. */
  cancel(options: { readonly force?: boolean } = {}): Promise<void> {
    return this.#tell('job-cancel', options);
  }

  /** Forgets a concluded job. */
  dismiss(): Promise<void> {
    return this.#tell('job-dismiss');
  }

  async #tell(method: string, more: object = {}): Promise<void> {
    await this.#watch.feeds.link.call(method, { id: this.id, ...more }, 'fail');
  }

  /** For the watch. */
  heard(news: { status?: JobStatus; progress?: JobProgress; failure?: ImgdError }): void {
    if (news.status !== undefined) this.#status = news.status;
    if (news.failure !== undefined) this.#failure = news.failure;
    if (news.progress !== undefined) {
      this.#progress = news.progress;
      this.#version++;
    }
    for (const wake of this.#wakers) wake();
    if (this.concluded || this.#failure !== undefined) for (const tell of this.#overs.splice(0)) tell();
  }

  /** For the client. */
  whenOver(tell: () => void): void {
    if (this.concluded) tell();
    else this.#overs.push(tell);
  }
}

/** One subscription for all jobs that the program has in hand. */
export class JobWatch {
  readonly feeds: Feeds;
  readonly #jobs = new Map<string, Set<Job<unknown>>>();
  /** What was heard of jobs whose handle is being made. */
  readonly #expected = new Map<string, { readonly events: ImgdEvent[]; handles: number }>();
  #feed: Promise<Feed> | undefined;

  constructor(feeds: Feeds) {
    this.feeds = feeds;
  }

  /** Listens for a job that is about to be asked for. */
  async expect(id: string): Promise<void> {
    const expected = this.#expected.get(id) ?? { events: [], handles: 0 };
    expected.handles++;
    this.#expected.set(id, expected);
    this.#feed ??= this.feeds.open(
      { events: ['JOB_STATUS_CHANGE', 'JOB_PROGRESS'] },
      {
        event: (event) => this.#event(event),
        gap: () => this.#ask(),
        ended: (failure) => this.#failed(failure),
      },
    );
    try {
      await this.#feed;
    } catch (error) {
      this.#feed = undefined;
      this.forget(id);
      throw error;
    }
  }

  /** The job did not come. */
  forget(id: string): void {
    this.#came(id);
    this.#rest();
  }

  #came(id: string): readonly ImgdEvent[] {
    const expected = this.#expected.get(id);
    if (expected === undefined) return [];
    if (--expected.handles === 0) this.#expected.delete(id);
    return expected.events;
  }

  add(job: Job<unknown>): void {
    const events = [...this.#came(job.id)];
    const handles = this.#jobs.get(job.id) ?? new Set();
    handles.add(job);
    this.#jobs.set(job.id, handles);
    if (job.concluded) this.#done(job.id);
    for (const event of events) this.#deliver(event);
  }

  #event(event: ImgdEvent): void {
    if (event.event !== 'JOB_STATUS_CHANGE' && event.event !== 'JOB_PROGRESS') return;
    const { id } = event.data;
    this.#expected.get(id)?.events.push(event);
    this.#deliver(event);
  }

  #deliver(event: ImgdEvent): void {
    if (event.event !== 'JOB_STATUS_CHANGE' && event.event !== 'JOB_PROGRESS') return;
    const { id } = event.data;
    const handles = this.#jobs.get(id);
    if (handles === undefined) return;
    if (event.event === 'JOB_STATUS_CHANGE') {
      const { status } = event.data;
      for (const job of handles) job.heard({ status });
      if (over(status)) this.#done(id);
    } else {
      const { id: _, ...progress } = event.data;
      for (const job of handles) job.heard({ progress });
    }
  }

  #done(id: string): void {
    this.#jobs.delete(id);
    this.#rest();
  }

  /** Events are missing: asks for what they would have told. */
  #ask(): void {
    for (const [id, handles] of [...this.#jobs]) {
      this.feeds.link.send('query-jobs', { id }, 'resend', (error, result) => {
        const info = (result as JobInfo[] | undefined)?.[0];
        // A job that is not known any more has come to an end; `result()` says what can be said about it.
        const status = info?.status ?? (error?.kind === 'job-not-found' ? 'null' : undefined);
        if (status === undefined) return;
        for (const job of handles) {
          job.heard({ status, ...(info?.progress === undefined ? {} : { progress: info.progress }) });
        }
        if (over(status)) this.#done(id);
      });
    }
  }

  #failed(failure: ImgdError): void {
    for (const handles of this.#jobs.values()) for (const job of handles) job.heard({ failure });
    this.#jobs.clear();
    this.#feed = undefined;
  }

  /** Listens no more when there is nothing to listen for. */
  #rest(): void {
    if (this.#jobs.size > 0 || this.#expected.size > 0) return;
    const feed = this.#feed;
    this.#feed = undefined;
    void feed?.then((open) => open.close()).catch(() => undefined);
  }
}
