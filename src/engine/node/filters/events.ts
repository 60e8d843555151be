/**
 * Events for blkdebug from what a format does. Formats know nothing of them: the node that stands on a blkdebug storage is
 * wrapped, so that others pay nothing. There are as many events as can be seen from outside of a driver.
 */
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import type { Extent, FormatNode, WriteTarget } from '../driver.js';
import { BlkdebugStorage } from './blkdebug.js';
import { ForwardStorage } from './forward.js';

/** The way of guest data to the image's file, or its data file: metadata goes past it. */
class DataPort extends ForwardStorage {
  readonly #fire: (event: string) => void;

  constructor(file: Storage, fire: (event: string) => void) {
    super(file.driver, file.filename, 'image', file);
    this.#fire = fire;
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    this.#fire('read_aio');
    await this.below.read(at, into);
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    this.#fire('write_aio');
    await this.below.write(at, from);
  }
}

/** The format node itself, or one that tells the blkdebug storage it stands on of its data requests and flushes. */
export function withEvents(format: FormatNode, file: Storage): FormatNode {
  if (!(file instanceof BlkdebugStorage) || !file.rules.hasEvents) return format;
  const fire = (event: string) => file.rules.fire(event);
  const ports = new Map<Storage, DataPort>();
  /** Guest data may be in another file: the events are this one's all the same. */
  const portOf = (storage: Storage): DataPort => {
    let port = ports.get(storage);
    if (port === undefined) {
      port = new DataPort(storage, fire);
      ports.set(storage, port);
    }
    return port;
  };
  const seen = (extent: Extent): Extent => {
    if (extent.kind === 'packed') {
      const read = async (into: Uint8Array) => {
        fire('read_compressed');
        await extent.read(into);
      };
      return { ...extent, read };
    }
    return extent.kind === 'data' ? { ...extent, storage: portOf(extent.storage) } : extent;
  };
  const target = (found: WriteTarget): WriteTarget => {
    const { commit, abort } = found;
    return {
      ...found,
      storage: portOf(found.storage),
      ...(commit === undefined ? {} : { commit: () => commit.call(found) }),
      ...(abort === undefined ? {} : { abort: () => abort.call(found) }),
    };
  };
  const via = <A, B>(answer: MaybePromise<A>, change: (found: A) => B): MaybePromise<B> =>
    answer instanceof Promise ? answer.then(change) : change(answer);
  const { prepareWrite, locate, flush } = format;
  const own: Partial<FormatNode> = {
    map: (range: Range) => via(format.map(range), seen),
    ...(locate && { locate: (range: Range) => via(locate.call(format, range), seen) }),
    ...(prepareWrite && { prepareWrite: (range: Range) => via(prepareWrite.call(format, range), target) }),
    ...(flush && {
      flush: () => {
        fire('flush_to_os');
        return flush.call(format);
      },
    }),
  };
  return new Proxy(format, {
    get(node, key) {
      if (Object.hasOwn(own, key)) return own[key as keyof FormatNode];
      const value = Reflect.get(node, key, node) as unknown;
      return typeof value === 'function' ? value.bind(node) : value;
    },
  });
}
