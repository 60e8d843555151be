/**
 * Trace events of one operation. The objects that it opens have their methods replaced, each object its own, and only those
 * that are to be told of: what is not traced runs the code that it always runs, and has nothing to ask.
 */
import { applyPattern, type TraceEvent, unknownEvent } from '../protocol/trace.js';
import { ImageError } from './error.js';
import type { ImageNode } from './node/image.js';
import type { Tracer } from './node/tracer.js';
import type { OperationContext } from './operations/context.js';
import type { FileLocks } from './storage/locks.js';
import { ALL_PERMISSIONS, type Permissions } from './storage/permissions.js';
import type { Storage } from './storage/storage.js';

/** QEMU's flags, where a line has them. */
const OPEN_WRITABLE = 0x2;
const REQUEST_MAY_UNMAP = 0x4;
const REQUEST_COMPRESSED = 0x20;

/** What a format tells its storage of (Storage.event), by format: the event, and the words that say which table it is of. */
const METADATA: Readonly<Record<string, Readonly<Record<string, readonly [TraceEvent, string]>>>> = {
  qcow2: {
    l2_load: ['qcow2_cache_get_read', ' is_l2_cache 1'],
    refblock_load: ['qcow2_cache_get_read', ' is_l2_cache 0'],
    l2_update: ['qcow2_cache_entry_flush', ' is_l2_cache 1'],
    refblock_update_part: ['qcow2_cache_entry_flush', ' is_l2_cache 0'],
    l1_update: ['qcow2_l1_update', ''],
  },
};

/** The context of an operation whose request has these patterns. Names that are none are told as the command line does. */
export function traced(context: OperationContext, patterns: readonly string[]): OperationContext {
  const enabled = new Set<TraceEvent>();
  for (const pattern of patterns) {
    const unknown = applyPattern(enabled, pattern);
    if (unknown !== undefined) {
      context.output({ stream: 'stderr', text: `qemu-img: ${unknownEvent(unknown)}\n` });
    }
  }
  if (enabled.size === 0) return context;
  const tell = (event: TraceEvent, text: string) => {
    if (enabled.has(event)) context.output({ stream: 'trace', text: `${event} ${text}\n` });
  };
  let phase: string | undefined;
  return {
    ...context,
    trace: new OperationTracer(enabled, tell),
    progress(report) {
      if (report.phase !== phase) {
        phase = report.phase;
        tell('job_phase', `phase "${phase}" total ${report.total}`);
      }
      context.progress(report);
    },
  };
}

/** `"name"`, on one line whatever is in it. */
function quoted(name: string): string {
  const shown = [...name].map((letter) => {
    const code = letter.charCodeAt(0);
    return code < 0x20 || code === 0x7f ? `\\x${code.toString(16).padStart(2, '0')}` : letter;
  });
  return `"${shown.join('')}"`;
}

type ArgumentsOf<F> = F extends (...args: infer A) => unknown ? A : never;

/** What files and nodes have in common. */
type Requests = Pick<Storage, 'write' | 'zero' | 'discard' | 'flush' | 'close'>;

const hex = (value: number): string => `0x${value.toString(16)}`;

class OperationTracer implements Tracer {
  readonly #enabled: ReadonlySet<TraceEvent>;
  readonly #tell: (event: TraceEvent, text: string) => void;
  /** Nodes are told apart by numbers: addresses are nobody's business. */
  #last = 0;
  /** The node of the format on a file. */
  readonly #layers = new WeakMap<Storage, string>();

  constructor(enabled: ReadonlySet<TraceEvent>, tell: (event: TraceEvent, text: string) => void) {
    this.#enabled = enabled;
    this.#tell = tell;
  }

  #open(filename: string, driver: string, writable: boolean): string {
    const bs = `bs ${hex(++this.#last)}`;
    const flags = hex(writable ? OPEN_WRITABLE : 0);
    this.#tell(
      'bdrv_open_common',
      `${bs} filename ${quoted(filename)} flags ${flags} format_name "${driver}"`,
    );
    return bs;
  }

  /** Has `tell` called ahead of a method of this object alone. */
  #ahead<T, K extends keyof T>(
    event: TraceEvent,
    object: T,
    method: K,
    text: (...args: ArgumentsOf<T[K]>) => string | undefined,
  ): void {
    if (!this.#enabled.has(event)) return;
    const own = object[method] as (...args: ArgumentsOf<T[K]>) => unknown;
    object[method] = ((...args: ArgumentsOf<T[K]>) => {
      const told = text(...args);
      if (told !== undefined) this.#tell(event, told);
      return own.apply(object, args);
    }) as T[K];
  }

  file(storage: Storage): void {
    const bs = this.#open(storage.filename, storage.driver, storage.writable);
    this.#requests(storage, bs);
    this.#ahead('bdrv_co_truncate', storage, 'truncate', (size, preallocation = 'off') => {
      return `${bs} bytes ${size} prealloc ${preallocation}`;
    });
    if (this.#enabled.has('bdrv_co_preadv_part')) this.#reads(storage, bs);
    const { locks } = storage as { readonly locks?: FileLocks };
    if (locks?.enforced === true) this.#locks(locks, storage.filename, bs);
  }

  #requests(of: Requests, bs: string): void {
    this.#ahead('bdrv_co_pwritev_part', of, 'write', (at, from) => {
      return `${bs} offset ${at} bytes ${from.byteLength} flags 0x0`;
    });
    this.#ahead('bdrv_co_pwrite_zeroes', of, 'zero', ({ at, length }, options = {}) => {
      const flags = hex(options.unmap === true ? REQUEST_MAY_UNMAP : 0);
      return `${bs} offset ${at} bytes ${length} flags ${flags}`;
    });
    this.#ahead('bdrv_co_pdiscard', of, 'discard', ({ at, length }) => `${bs} offset ${at} bytes ${length}`);
    this.#ahead('bdrv_co_flush', of, 'flush', () => bs);
    let open = true;
    this.#ahead('bdrv_close', of, 'close', () => {
      if (!open) return undefined;
      open = false;
      return bs;
    });
  }

  #reads(storage: Storage, bs: string): void {
    const { read, readNow } = storage;
    const tell = (at: number, into: Uint8Array) =>
      this.#tell('bdrv_co_preadv_part', `${bs} offset ${at} bytes ${into.byteLength} flags 0x0`);
    /** A file's `read` tries its own `readNow` before it gives the request to another thread. */
    let within = false;
    storage.read = (at, into) => {
      tell(at, into);
      within = true;
      try {
        return read.call(storage, at, into);
      } finally {
        within = false;
      }
    };
    if (readNow === undefined) return;
    storage.readNow = (at, into) => {
      const done = readNow.call(storage, at, into);
      // Where it cannot be done so, it is asked for again.
      if (done && !within) tell(at, into);
      return done;
    };
  }

  #locks(locks: FileLocks, filename: string, bs: string): void {
    const told = ({ uses, shares }: Permissions) =>
      this.#tell(
        'file_lock',
        `${bs} filename ${quoted(filename)} uses ${hex(uses)} unshared ${hex(ALL_PERMISSIONS & ~shares)}`,
      );
    const { permissions } = locks;
    if (permissions.uses !== 0 || permissions.shares !== ALL_PERMISSIONS) told(permissions);
    const set = locks.setPermissions;
    locks.setPermissions = (wanted) => {
      const before = locks.permissions;
      try {
        set.call(locks, wanted);
      } catch (error) {
        this.refused(filename, error);
        throw error;
      }
      if (wanted.uses !== before.uses || wanted.shares !== before.shares) told(wanted);
    };
  }

  refused(filename: string, error: unknown): void {
    if (!(error instanceof ImageError) || error.kind !== 'locked') return;
    const { check = '' } = error.context;
    this.#tell('file_lock_refused', `filename ${quoted(filename)} lock ${quoted(check)}`);
  }

  opening({ file, driver, filename, writable }: Parameters<Tracer['opening']>[0]): void {
    const bs = this.#open(filename, driver, writable);
    this.#layers.set(file, bs);
    const metadata = METADATA[driver];
    if (metadata === undefined || !Object.values(metadata).some(([event]) => this.#enabled.has(event)))
      return;
    const below = file.event;
    file.event = (name, at) => {
      const [event, words] = metadata[name] ?? [];
      if (event !== undefined)
        this.#tell(event, `${bs}${words}${at === undefined ? '' : ` offset ${hex(at)}`}`);
      below?.call(file, name, at);
    };
  }

  opened(image: ImageNode): void {
    const bs = this.#layers.get(image.file);
    if (bs !== undefined) this.#node(image, bs);
  }

  held(image: ImageNode, name: string): void {
    this.#node(image, this.#open(name, image.driver.name, image.writable));
  }

  #node(image: ImageNode, bs: string): void {
    this.#requests(image, bs);
    this.#ahead('bdrv_co_pwritev_part', image, 'writePacked', (at) => {
      return `${bs} offset ${at} bytes ${image.format.pack?.unit ?? 0} flags ${hex(REQUEST_COMPRESSED)}`;
    });
    const read = (at: number, bytes: number) => `${bs} offset ${at} bytes ${bytes} flags 0x0`;
    this.#ahead('bdrv_co_preadv_part', image, 'read', (at, into) => read(at, into.byteLength));
    if (this.#enabled.has('bdrv_co_preadv_part')) {
      image.readsPast = (at, bytes) => this.#tell('bdrv_co_preadv_part', read(at, bytes));
    }
    // Other objects for the same layer.
    const { reopenWritable, withFormat } = image;
    image.reopenWritable = async () => {
      const again = await reopenWritable.call(image);
      if (again !== image) {
        this.#tell('bdrv_close', bs);
        this.opened(again);
      }
      return again;
    };
    image.withFormat = (format) => {
      const view = withFormat.call(image, format);
      this.#node(view, bs);
      return view;
    };
  }
}
