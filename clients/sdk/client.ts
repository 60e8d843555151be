/** The client: every command as a method, jobs and events. Knows nothing of what the connection is made of. */
import { type CommandName, commands, operations } from '../../src/protocol/commands/index.js';
import type { JobInfo } from '../../src/protocol/commands/jobs.js';
import { EventStream, Feeds, type SubscribeOptions } from './events.js';
import { Job, JobWatch } from './jobs.js';
import { type ConnectionState, Link, type LinkOptions } from './link.js';
import type {
  Arguments,
  JobSettings,
  Methods,
  OperationName,
  OperationOptions,
  OptionsOf,
  Params,
  Result,
  SubscribableEvent,
} from './types.js';
import type { Dial } from './wire.js';

export interface StartOptions {
  readonly job?: JobSettings;
  /** Aborting cancels the job. */
  readonly signal?: AbortSignal;
  /** Keep what the operation says on its way for `job.output()`: 10,000 events at most wait to be read. */
  readonly output?: boolean;
}

export type ClientOptions = LinkOptions;

/** Calls that change nothing: made again when the connection breaks under them. */
const REPEATABLE: ReadonlySet<string> = new Set([
  'ping',
  'query-jobs',
  'query-version',
  'query-status',
  'query-named-block-nodes',
  'query-image-users',
  'query-trace-events',
] satisfies CommandName[]);

class ClientCore {
  readonly #link: Link;
  readonly #feeds: Feeds;
  readonly #watch: JobWatch;
  #version = '';

  constructor(dial: Dial, options: ClientOptions) {
    this.#link = new Link(dial, options);
    this.#feeds = new Feeds(this.#link);
    this.#watch = new JobWatch(this.#feeds);
  }

  /** For `connect`: throws where nobody is there, or does not let this client in. */
  async open(): Promise<void> {
    await this.#link.open();
    try {
      this.#version = (await this.call('query-version')).version;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** The daemon's, when the client connected first. */
  get version(): string {
    return this.#version;
  }

  get state(): ConnectionState {
    return this.#link.state;
  }

  /** Ends the connection. Jobs go on, but for those that were started with `cancel-on-disconnect`. */
  close(): void {
    this.#link.close();
  }

  /**
   * Calls a command by its name. An operation runs as a job and is waited for; when the connection breaks meanwhile, the call goes
   * on with the job once it is back.
   */
  async call<N extends CommandName>(name: N, ...rest: Arguments<N, OptionsOf<N>>): Promise<Result<N>> {
    const [params = {}, options = {}] = rest as [object?, OperationOptions?];
    const { signal, job } = options;
    if (!Object.hasOwn(operations, name)) {
      const whenLost = REPEATABLE.has(name) ? 'resend' : 'fail';
      return (await this.#link.call(name, params, whenLost, signal)) as Result<N>;
    }
    return (await this.#operate(name, params, job, signal)) as Result<N>;
  }

  /** Starts an operation as a job and does not wait for its end. */
  async start<N extends OperationName>(
    name: N,
    params: Params<N>,
    options: StartOptions = {},
  ): Promise<Job<Result<N>>> {
    const { job: settings, signal, output } = options;
    signal?.throwIfAborted();
    const id = settings?.id ?? freeId();
    // With the state changes, so that the reader learns of the end in the same stream.
    const stream = output
      ? new EventStream({ job: id, events: ['JOB_OUTPUT', 'JOB_STATUS_CHANGE'] as const })
      : undefined;
    await stream?.open(this.#feeds);
    await this.#watch.expect(id);
    let known: JobInfo | undefined;
    try {
      signal?.throwIfAborted();
      await this.#link.call(
        name,
        { ...params, job: { ...settings, id, wait: false } },
        { method: 'query-jobs', params: { id } },
      );
      // It may have been there before, and be over.
      if (settings?.id !== undefined) [known] = await this.#ask(id);
    } catch (error) {
      this.#watch.forget(id);
      stream?.close();
      throw error;
    }
    const job = new Job<Result<N>>(this.#watch, id, name, known?.status ?? 'created', stream);
    if (known?.progress !== undefined) job.heard({ progress: known.progress });
    this.#watch.add(job);
    if (signal !== undefined) {
      const cancel = (): void => void job.cancel().catch(() => undefined);
      if (signal.aborted) cancel();
      else {
        signal.addEventListener('abort', cancel, { once: true });
        job.whenOver(() => signal.removeEventListener('abort', cancel));
      }
    }
    return job;
  }

  /** A job that exists, whoever started it. Rejects as `job-not-found` where there is none of that id. */
  async job(id: string): Promise<Job<unknown>> {
    await this.#watch.expect(id);
    try {
      const [info] = await this.#ask(id);
      const { type, status, progress } = info!;
      const job = new Job<unknown>(this.#watch, id, type, status);
      if (progress !== undefined) job.heard({ progress });
      this.#watch.add(job);
      return job;
    } catch (error) {
      this.#watch.forget(id);
      throw error;
    }
  }

  /** Starts listening; no event from the moment that this resolves is missed without being said. */
  async subscribe<N extends SubscribableEvent = SubscribableEvent>(
    options: SubscribeOptions<N> = {},
  ): Promise<EventStream<N>> {
    const stream = new EventStream<N>(options);
    await stream.open(this.#feeds);
    return stream;
  }

  async #ask(id: string): Promise<JobInfo[]> {
    return (await this.#link.call('query-jobs', { id }, 'resend')) as JobInfo[];
  }

  #operate(
    name: string,
    params: object,
    settings: JobSettings = {},
    signal: AbortSignal | undefined,
  ): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const id = settings.id ?? freeId();
      const abort = (): void => {
        // Not sent yet: there is no job to wait for.
        if (sent.withdraw()) reject(signal!.reason);
        else this.#link.send('job-cancel', { id }, 'resend', () => undefined);
      };
      const sent = this.#link.send(
        name,
        { ...params, job: { ...settings, id, wait: true } },
        { method: 'job-wait', params: { id } },
        (error, result) => {
          signal?.removeEventListener('abort', abort);
          if (error === undefined) resolve(result);
          else reject(error);
        },
      );
      signal?.addEventListener('abort', abort, { once: true });
    });
  }
}

/** Methods named after the commands; see `Methods`. */
for (const name of Object.keys(commands) as CommandName[]) {
  const camel = name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());
  Object.defineProperty(ClientCore.prototype, camel, {
    value(this: ClientCore, ...rest: unknown[]) {
      return this.call(name, ...(rest as Arguments<typeof name, OptionsOf<typeof name>>));
    },
  });
}

export type Client = ClientCore & Methods;

/** Connects, and learns who is there. Rejects with ImgdError, `connection-failed` where nobody is. */
export async function connectBy(dial: Dial, options: ClientOptions): Promise<Client> {
  const client = new ClientCore(dial, options);
  await client.open();
  return client as Client;
}

function freeId(): string {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(12));
  return `sdk-${[...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}
