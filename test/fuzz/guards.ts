/**
 * What a parser may not do while it looks at a mutant: open files, ask for a lot of memory at once, or go on for ever.
 * A hang of the thread itself is seen by a second thread, which names the mutant and ends the process.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { Worker } from 'node:worker_threads';

/** The largest piece of memory that one mutant may take at once: DMG chunks and qcow2's largest tables stay below. */
const MAX_ALLOCATION = 65 * 1024 * 1024;
/** Resident memory above what the process had before. */
const MAX_RESIDENT_GROWTH = 1024 * 1024 * 1024;
/** No mutant takes this long however slow the machine. */
const HANG_MS = 20_000;
/** Names and sizes of a mutant that the watchdog can print and save. */
const SHARED_BYTES = 16 * 1024 * 1024;

const WATCHDOG = `
const { workerData } = require('node:worker_threads');
const fs = require('node:fs');
const { shared, hangMs, growth, folder } = workerData;
const words = new Int32Array(shared, 0, 8); // running, mutant count, label length, image length
const bytes = new Uint8Array(shared, 32);
let seen = -1;
let since = 0;
let base = 0;
setInterval(() => {
  const rss = process.memoryUsage.rss();
  if (Atomics.load(words, 0) === 0) { base = rss; seen = -1; return; }
  if (base === 0) base = rss;
  const count = Atomics.load(words, 1);
  if (count !== seen) { seen = count; since = Date.now(); }
  const hung = Date.now() - since > hangMs;
  if (!hung && rss - base < growth) return;
  const label = Buffer.from(bytes.slice(0, words[2])).toString();
  const what = hung ? 'HANG for more than ' + hangMs + ' ms' : 'MEMORY grew by ' + Math.round((rss - base) / 1048576) + ' MiB';
  const file = folder + '/killed-' + label.replace(/[^A-Za-z0-9]+/g, '-').slice(0, 80);
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(file, bytes.slice(words[2], words[2] + words[3]));
  fs.writeSync(2, '\\nFUZZ: ' + what + ': ' + label + '\\nFUZZ: saved as ' + file + '\\n');
  process.kill(process.pid, 'SIGKILL');
}, 50);
`;

export interface Violations {
  /** Promises that failed with nobody waiting: in a daemon that ends the process. */
  readonly unhandled: unknown[];
  /** Calls that would have touched a file. */
  readonly files: string[];
  largestAllocation: number;
}

type Construct = new (...args: never[]) => object;

export class Guards {
  readonly #shared = new SharedArrayBuffer(32 + SHARED_BYTES);
  readonly #words = new Int32Array(this.#shared, 0, 8);
  readonly #bytes = new Uint8Array(this.#shared, 32);
  readonly #hangMs: number;
  readonly #watchdog: Worker;
  #active: Violations | undefined;
  readonly #restore: (() => void)[] = [];

  constructor(folder: string, hangMs = HANG_MS) {
    this.#hangMs = hangMs;
    this.#watchdog = new Worker(WATCHDOG, {
      eval: true,
      workerData: { shared: this.#shared, hangMs: hangMs + 15_000, growth: MAX_RESIDENT_GROWTH, folder },
    });
    this.#watchdog.unref();
    this.#guardFiles();
    this.#guardMemory();
    process.on('unhandledRejection', this.#unhandled);
  }

  readonly #unhandled = (reason: unknown): void => {
    this.#active?.unhandled.push(reason);
  };

  /** Runs `work` on a mutant; what it did that it may not do is in the result, besides what it throws. */
  async watch(label: string, image: Uint8Array, work: () => Promise<void>): Promise<Violations> {
    const violations: Violations = { unhandled: [], files: [], largestAllocation: 0 };
    const text = Buffer.from(label);
    this.#bytes.set(text);
    this.#bytes.set(image.subarray(0, SHARED_BYTES - text.length), text.length);
    this.#words[2] = text.length;
    this.#words[3] = Math.min(image.length, SHARED_BYTES - text.length);
    Atomics.add(this.#words, 1, 1);
    Atomics.store(this.#words, 0, 1);
    this.#active = violations;
    let timer: NodeJS.Timeout | undefined;
    try {
      const hang = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`not finished after ${this.#hangMs} ms`)), this.#hangMs);
      });
      await Promise.race([work(), hang]);
      // Rejections are reported when the microtasks are done.
      await new Promise((resolve) => setImmediate(resolve));
    } finally {
      clearTimeout(timer);
      this.#active = undefined;
      Atomics.store(this.#words, 0, 0);
    }
    return violations;
  }

  async stop(): Promise<void> {
    process.off('unhandledRejection', this.#unhandled);
    for (const restore of this.#restore) restore();
    syncBuiltinESMExports();
    await this.#watchdog.terminate();
  }

  tooLarge(violations: Violations): boolean {
    return violations.largestAllocation > MAX_ALLOCATION;
  }

  #replace<T extends object, K extends keyof T>(owner: T, key: K, value: T[K]): void {
    const before = owner[key];
    owner[key] = value;
    this.#restore.push(() => {
      owner[key] = before;
    });
  }

  #guardFiles(): void {
    const names = [
      'open',
      'openSync',
      'readFile',
      'readFileSync',
      'stat',
      'statSync',
      'realpathSync',
      'readlinkSync',
    ] as const;
    for (const name of names) {
      const original = fs[name] as (...args: unknown[]) => unknown;
      const guarded = (...args: unknown[]) => {
        this.#active?.files.push(`${name} ${String(args[0])}`);
        return original.apply(fs, args);
      };
      this.#replace(fs, name, Object.assign(guarded, original) as never);
    }
    syncBuiltinESMExports();
  }

  #note(bytes: number): void {
    const active = this.#active;
    if (active !== undefined && bytes > active.largestAllocation) active.largestAllocation = bytes;
  }

  /** Replaces the constructors that take memory by ones that note how much. */
  #guardMemory(): void {
    const scope = globalThis as unknown as Record<string, Construct>;
    const names = [
      'ArrayBuffer',
      'Uint8Array',
      'Uint16Array',
      'Uint32Array',
      'Int32Array',
      'Float64Array',
      'BigUint64Array',
    ];
    for (const name of names) {
      const original = scope[name]!;
      const unit = (original as unknown as { BYTES_PER_ELEMENT?: number }).BYTES_PER_ELEMENT ?? 1;
      const note = (bytes: number) => this.#note(bytes);
      const noted: Construct = new Proxy(original, {
        construct(target, args: unknown[], newTarget): object {
          if (typeof args[0] === 'number') note(args[0] * unit);
          return Reflect.construct(target, args, newTarget === noted ? target : newTarget) as object;
        },
      });
      this.#replace(scope, name, noted);
    }
    for (const name of ['alloc', 'allocUnsafe', 'allocUnsafeSlow'] as const) {
      const original = Buffer[name] as (size: number, ...rest: never[]) => Buffer;
      this.#replace(Buffer, name, ((size: number, ...rest: never[]) => {
        this.#note(size);
        return original.call(Buffer, size, ...rest);
      }) as never);
    }
  }
}
