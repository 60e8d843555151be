/** The held images as the main thread has them: it starts the engine thread, asks it, and outlives it. */
import { Worker } from 'node:worker_threads';
import type { OpenPolicy } from '../../engine/node/gate.js';
import type { BlockDeviceInfo } from '../../protocol/commands/blockdev.js';
import type { UserObject } from '../../protocol/commands/common.js';
import type { EventName } from '../../protocol/events.js';
import type { Log } from '../log.js';
import type { Failure, RunMessage } from '../workers/messages.js';
import type { Assignment, JobListener } from '../workers/pool.js';
import type { EngineCall, EngineData, FromEngine, ToEngine } from './messages.js';
import type { BitmapChange } from './node-bitmaps.js';
import type { NodeBitmaps, NodeChange, UserOfNode } from './nodes.js';
import type { Owners } from './owners.js';

export interface HeldSettings {
  /** URL of the module with `runOperation`. */
  readonly engine: string;
  /** MiB of heap of the engine thread. */
  readonly memory: number;
  readonly policy: OpenPolicy;
  readonly owners: Owners;
  readonly log: Log;
  publish(event: EventName, data: object): void;
}

/** Without nodes and work, the thread goes after this long. */
const IDLE_MS = 5000;
/** While it has work, the thread is asked this often whether it lives, and has this long to say so. */
const PING_MS = 5000;
const HANG_MS = 30_000;
/** A job that does not heed its cancellation: the thread has this long to show that it is not the thread that hangs. */
const KILL_PING_MS = 2000;
const CLOSE_MS = 10_000;
const END_MS = 1000;

/** What a call to the engine thread fails with. */
export class HeldError extends Error {
  readonly failure: Failure;
  constructor(failure: Failure) {
    super(failure.message);
    this.failure = failure;
  }
}

interface Thread {
  readonly worker: Worker;
  readonly calls: Map<number, { resolve(json: string): void; reject(error: HeldError): void }>;
  readonly jobs: Map<string, JobListener>;
  nextCall: number;
  asked: number | undefined;
  gone: boolean;
  killed: string | undefined;
  exited: Promise<void>;
}

export class HeldImages {
  readonly #settings: HeldSettings;
  readonly #nodes = new Map<string, NodeChange>();
  /** Throttle groups by id: they outlive the thread. */
  readonly #groups = new Map<string, UserObject>();
  #thread: Thread | undefined;
  #timer: NodeJS.Timeout | undefined;
  #pinger: NodeJS.Timeout | undefined;
  #closed = false;
  /** Engine threads that died with images. */
  lost = 0;

  constructor(settings: HeldSettings) {
    this.#settings = settings;
  }

  /** Nodes that blockdev-add has made. */
  get count(): number {
    return this.#nodes.size;
  }

  /** @param options checked by the engine: texts of errors are QEMU's. */
  async add(options: Readonly<Record<string, unknown>>, cwd: string): Promise<void> {
    const { owners } = this.#settings;
    const owner = owners.add({ kind: 'node', node: String(options['node-name']) });
    try {
      await this.#call({ method: 'add', options, cwd, owner });
    } catch (error) {
      owners.remove(owner);
      throw error;
    }
  }

  async del(node: string): Promise<void> {
    await this.#call({ method: 'del', node });
  }

  async reopen(options: readonly unknown[]): Promise<void> {
    await this.#call({ method: 'reopen', options });
  }

  /** @param object a throttle group that was found valid. */
  async addGroup(object: UserObject): Promise<void> {
    this.#groups.set(object.id, object);
    if (this.#thread !== undefined) await this.#call({ method: 'group-add', object });
  }

  async removeGroup(id: string): Promise<void> {
    if (this.#thread !== undefined) await this.#call({ method: 'group-del', id });
    this.#groups.delete(id);
  }

  async query(flat: boolean): Promise<BlockDeviceInfo[]> {
    if (this.#thread === undefined) return [];
    return JSON.parse(await this.#call({ method: 'query', flat })) as BlockDeviceInfo[];
  }

  async bitmaps(node: string): Promise<NodeBitmaps | undefined> {
    if (this.#thread === undefined) return undefined;
    return JSON.parse(await this.#call({ method: 'bitmaps', node })).of;
  }

  /** Changes a bitmap that is not in an image. */
  async changeBitmap(change: BitmapChange): Promise<void> {
    await this.#call({ method: 'bitmap', change });
  }

  async users(): Promise<(UserOfNode & { readonly owner: number })[]> {
    if (this.#thread === undefined) return [];
    return JSON.parse(await this.#call({ method: 'users' }));
  }

  /** Whether an operation's params name a held node, or may: then it runs in the engine thread. */
  concerns(params: unknown): boolean {
    if (typeof params !== 'object' || params === null) return false;
    for (const [key, value] of Object.entries(params)) {
      if (typeof value !== 'string') {
        if (this.concerns(value)) return true;
      } else if (key === 'node' || (this.#nodes.size > 0 && this.#mentions(key, value))) return true;
    }
    return false;
  }

  /** Whether an option string, or a `json:` name, has a held node's name where a node may be named. */
  #mentions(key: string, text: string): boolean {
    if (text.startsWith('json:')) {
      for (const [, word] of text.matchAll(/["']([A-Za-z][\w.-]{0,30})["']/g))
        if (this.#nodes.has(word!)) return true;
      return false;
    }
    if (key !== 'image-opts') return false;
    return text.split(',').some((option) => {
      const equals = option.indexOf('=');
      return !option.slice(0, equals).endsWith('filename') && this.#nodes.has(option.slice(equals + 1));
    });
  }

  run(message: RunMessage, listener: JobListener): Assignment {
    const thread = this.#started();
    const { job } = message;
    thread.jobs.set(job, listener);
    this.#post(thread, message);
    this.#attend();
    return {
      post: (control) => {
        if (control.type !== 'run') this.#post(thread, { type: 'control', job, control });
      },
      // The job alone cannot be ended. A thread that answers will come to see the cancellation.
      kill: (reason) => {
        const asked = Date.now();
        this.#ping(thread);
        setTimeout(() => {
          const mute = thread.asked !== undefined && thread.asked <= asked;
          if (!thread.gone && thread.jobs.has(job) && mute) this.#end(thread, reason);
        }, KILL_PING_MS).unref();
      },
    };
  }

  /** Closes all images; jobs on them have ended before. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    const thread = this.#thread;
    if (thread === undefined) return;
    clearInterval(this.#pinger);
    // However long the disk takes, but not for a thread that hangs.
    let watch: NodeJS.Timeout | undefined;
    const hangs = new Promise<void>((resolve) => {
      watch = setInterval(() => {
        if (thread.asked !== undefined && Date.now() - thread.asked > CLOSE_MS) resolve();
        else this.#ping(thread);
      }, CLOSE_MS / 10);
    });
    await Promise.race([this.#call({ method: 'close' }).catch(() => undefined), hangs]);
    clearInterval(watch);
    thread.gone = true;
    const message = 'the daemon is shutting down';
    this.#forsake(thread, { kind: 'shutting-down', message, context: {} });
    // A thread that hangs in a system call cannot be ended before that returns: the process ends with it.
    let patience: NodeJS.Timeout | undefined;
    const lost = new Promise((resolve) => {
      patience = setTimeout(resolve, END_MS);
    });
    await Promise.race([thread.worker.terminate(), lost]);
    clearTimeout(patience);
  }

  /** What waits for the thread waits no longer. */
  #forsake(thread: Thread, failure: Failure): void {
    const calls = [...thread.calls.values()];
    const listeners = [...thread.jobs.values()];
    thread.calls.clear();
    thread.jobs.clear();
    for (const call of calls) call.reject(new HeldError(failure));
    for (const listener of listeners) listener.lost(failure);
  }

  #started(): Thread {
    if (this.#thread !== undefined) return this.#thread;
    const { engine, memory, policy, owners } = this.#settings;
    const data: EngineData = { engine, policy, owners: owners.table, groups: [...this.#groups.values()] };
    const worker = new Worker(new URL('./thread.js', import.meta.url), {
      workerData: data,
      resourceLimits: { maxOldGenerationSizeMb: memory },
      trackUnmanagedFds: true,
      execArgv: [],
    });
    const thread: Thread = {
      worker,
      calls: new Map(),
      jobs: new Map(),
      nextCall: 1,
      asked: undefined,
      gone: false,
      killed: undefined,
      exited: new Promise((resolve) => worker.once('exit', () => resolve())),
    };
    this.#thread = thread;
    let failure: NodeJS.ErrnoException | undefined;
    worker.on('message', (message: FromEngine) => this.#received(thread, message));
    worker.on('error', (error: NodeJS.ErrnoException) => {
      failure = error;
    });
    // Not before its files are closed, and their locks gone.
    worker.on('exit', () => this.#bury(thread, failure));
    return thread;
  }

  #post(thread: Thread, message: ToEngine): void {
    if (!thread.gone) thread.worker.postMessage(message);
  }

  #call(call: EngineCall): Promise<string> {
    if (this.#closed && call.method !== 'close') {
      const message = 'the daemon is shutting down';
      return Promise.reject(new HeldError({ kind: 'shutting-down', message, context: {} }));
    }
    const thread = this.#started();
    const id = thread.nextCall++;
    return new Promise((resolve, reject) => {
      thread.calls.set(id, { resolve, reject });
      this.#post(thread, { type: 'call', id, call });
      this.#attend();
    });
  }

  #received(thread: Thread, message: FromEngine): void {
    switch (message.type) {
      case 'job': {
        const { job, message: said } = message;
        const listener = thread.jobs.get(job);
        if (said.type === 'done' || said.type === 'failed') thread.jobs.delete(job);
        listener?.message(said);
        this.#attend();
        break;
      }
      case 'answer':
      case 'refused': {
        const call = thread.calls.get(message.id);
        thread.calls.delete(message.id);
        if (message.type === 'answer') call?.resolve(message.json);
        else call?.reject(new HeldError(this.#settings.owners.named(message.failure)));
        this.#attend();
        break;
      }
      case 'change':
        this.#changed(message.change);
        break;
      case 'pong':
        thread.asked = undefined;
        break;
    }
  }

  #changed(change: NodeChange): void {
    const { node, driver, filename, readOnly, owner, reason } = change;
    const { owners, log, publish } = this.#settings;
    const data = { 'node-name': node, driver, filename, ro: readOnly };
    switch (change.change) {
      case 'added':
        this.#nodes.set(node, change);
        publish('BLOCKDEV_ADDED', data);
        break;
      case 'reopened':
        this.#nodes.set(node, change);
        publish('BLOCKDEV_REOPENED', data);
        break;
      case 'removed':
        this.#nodes.delete(node);
        owners.remove(owner);
        publish('BLOCKDEV_REMOVED', data);
        break;
      case 'lost':
        this.#nodes.delete(node);
        owners.remove(owner);
        log.error({ node, reason }, 'held image lost');
        publish('BLOCKDEV_LOST', { ...data, reason: reason ?? 'unknown' });
        break;
    }
  }

  /** Watches a thread with work, and lets an idle one go. */
  #attend(): void {
    const thread = this.#thread;
    clearTimeout(this.#timer);
    if (thread === undefined || this.#closed) return;
    if (thread.calls.size > 0 || thread.jobs.size > 0) {
      this.#pinger ??= setInterval(() => this.#watch(), PING_MS).unref();
      return;
    }
    clearInterval(this.#pinger);
    this.#pinger = undefined;
    if (this.#nodes.size > 0) return;
    this.#timer = setTimeout(() => {
      thread.gone = true;
      this.#thread = undefined;
      void thread.worker.terminate();
    }, IDLE_MS).unref();
  }

  #watch(): void {
    const thread = this.#thread;
    if (thread === undefined) return;
    if (thread.asked === undefined) this.#ping(thread);
    else if (Date.now() - thread.asked > HANG_MS) this.#end(thread, 'the engine thread hangs');
  }

  #ping(thread: Thread): void {
    thread.asked ??= Date.now();
    this.#post(thread, { type: 'ping' });
  }

  #end(thread: Thread, reason: string): void {
    thread.killed ??= reason;
    void thread.worker.terminate();
  }

  #bury(thread: Thread, error: NodeJS.ErrnoException | undefined): void {
    if (thread.gone) return;
    thread.gone = true;
    if (this.#thread === thread) this.#thread = undefined;
    clearInterval(this.#pinger);
    this.#pinger = undefined;
    this.lost++;
    const memory = error?.code === 'ERR_WORKER_OUT_OF_MEMORY';
    const reason =
      thread.killed ??
      (memory
        ? 'the engine thread ran out of memory'
        : `the engine thread died${error ? `: ${error.message}` : ''}`);
    this.#settings.log.error({ code: error?.code, reason, nodes: this.#nodes.size }, 'engine thread lost');
    for (const change of [...this.#nodes.values()]) this.#changed({ ...change, change: 'lost', reason });
    const failure: Failure = { kind: memory ? 'limit' : 'worker-lost', message: reason, context: {} };
    this.#forsake(thread, failure);
  }
}
