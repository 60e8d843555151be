/**
 * An open image: a format node with its file and its backing chain, and the one access path. Everything that reads or
 * writes guest bytes goes through here; drivers only say where bytes are.
 */
import { ImageError } from '../error.js';
import type { MaybePromise, Range, Storage } from '../storage/storage.js';
import type { DirtyBitmaps } from './dirty-bitmaps.js';
import type { Extent, FormatDriver, FormatNode, WriteTarget } from './driver.js';
import { RangeLock } from './range-lock.js';

/** Zeros are written, where they must be, in pieces of at most this many bytes. */
const ZERO_CHUNK = 1024 * 1024;
/** Reads up to this long are done in this thread where the host has the bytes at hand: a millisecond at most. */
const READ_HERE = 2 * 1024 * 1024;
/** Zeros are looked for in pieces of this many bytes: as long as the reference's requests are. */
const DETECTED = 2 * 1024 * 1024;
const ZEROS = Buffer.alloc(ZERO_CHUNK);

/** The first run of a range, seen through the whole chain. */
export interface ChainExtent {
  /** `none`: allocated nowhere in the chain, reads as zeros. */
  readonly kind: 'data' | 'zero' | 'packed' | 'none';
  readonly length: number;
  /** 0 is the image itself, 1 its backing file, ...; of `none`, the last layer's. */
  readonly depth: number;
  /** The layer that answers. */
  readonly layer: ImageNode;
  /** What that layer's driver said; undefined where a shorter backing file ended before. */
  readonly extent: Extent | undefined;
  /** Where it ended before: what the layer above said, which may have a place for the bytes. */
  readonly above?: Extent | undefined;
}

/** What a node is called, and where names that its image holds belong. */
export interface NodeName {
  /** The name that opens the same node without further options, where there is one. */
  readonly plain: string | undefined;
  /** Its driver, its children and its own options, for a `json:` name. */
  readonly options: Readonly<Record<string, unknown>>;
  /** The file whose folder relative names belong to; undefined where there is no one folder. */
  readonly home: string | undefined;
}

export interface ImageParts {
  readonly filename: string;
  readonly path: string | undefined;
  readonly driver: FormatDriver;
  readonly format: FormatNode;
  readonly file: Storage;
  readonly backing: ImageNode | undefined;
  readonly writable: boolean;
  /** Where absent: as `file` is called. */
  readonly name?: NodeName | undefined;
  /** Opens the layer's file and format anew, for writing, in place of these; undefined where that cannot be. */
  readonly reopen?: (() => Promise<Pick<ImageParts, 'format' | 'file' | 'guardStart'>>) | undefined;
  /** The start of a raw image that was found by probing must not begin to look like another format. */
  readonly guardStart?: ((head: Uint8Array) => boolean) | undefined;
  /** Where the image is another's too: what its views have in common, and what happens in place of closing the parts. */
  readonly view?: (ViewOwner & { readonly traffic: Traffic }) | undefined;
}

/** What the node that an image belongs to does for a view of it. */
export interface ViewOwner {
  close(view: ImageNode): Promise<void>;
  /** What is done through the view is not done to the image: its format node will be another. */
  readonly apart?: boolean;
  /** Makes the view, and the image, writable. */
  reopenWritable?(view: ImageNode): Promise<void>;
}

/** The requests to one format node, whichever of its views they come through. */
class Traffic {
  readonly locks = new RangeLock();
  /** Set while the driver looks for a place for a write. */
  preparing: Promise<void> | undefined;
  /** Bitmaps that are not in the image. */
  dirtyBitmaps: DirtyBitmaps | undefined;
}

/** Bytes at the start of a probed raw image that are guarded: what probing looks at. */
export const PROBE_SIZE = 2048;

export class ImageNode {
  /** As the user or the image above wrote it: for messages. */
  readonly filename: string;
  /** Absolute path of `file`; undefined where it is no file of the host. */
  readonly path: string | undefined;
  readonly driver: FormatDriver;
  format: FormatNode;
  readonly file: Storage;
  backing: ImageNode | undefined;
  writable: boolean;
  /** Whether writes of zeros become requests for zeros, and these give host space back. */
  detectZeroes: 'off' | 'on' | 'unmap' = 'off';
  /** Set while requests are traced: to be told of reads of guest bytes that do not come through `read`. */
  readsPast: ((at: number, bytes: number) => void) | undefined;
  readonly name: NodeName;
  readonly #traffic: Traffic;
  readonly #view: ImageParts['view'];
  readonly #guardStart: ImageParts['guardStart'];
  readonly #reopen: ImageParts['reopen'];
  /** The depth of the layer whose backing file is not the one that it was made on; bytes from below are not given out. */
  #brokenAt: number;
  #closed = false;

  constructor(parts: ImageParts) {
    this.filename = parts.filename;
    this.path = parts.path;
    this.driver = parts.driver;
    this.format = parts.format;
    this.file = parts.file;
    this.backing = parts.backing;
    this.writable = parts.writable;
    this.name = parts.name ?? { plain: parts.file.filename, options: {}, home: parts.filename };
    this.#guardStart = parts.guardStart;
    this.#reopen = parts.reopen;
    this.#view = parts.view;
    this.#traffic = parts.view?.traffic ?? new Traffic();
    this.#brokenAt = this.#findBroken();
  }

  #findBroken(): number {
    const { backing } = this;
    if (backing === undefined) return Number.POSITIVE_INFINITY;
    const expected = this.format.backing?.contentId;
    if (expected !== undefined && expected !== backing.format.contentId) return 0;
    return backing.#brokenAt + 1;
  }

  /** Why the bytes of an extent that `status` gave must not be read: it is in a backing file that was changed since. */
  unreadable(found: ChainExtent): ImageError | undefined {
    if (found.depth <= this.#brokenAt) return undefined;
    return new ImageError('corrupt', 'Invalid argument', {
      path: this.filename,
      errno: 'EINVAL',
      check: 'backing-content-id',
    });
  }

  /** Somebody else holds it too. */
  get held(): boolean {
    return this.#view !== undefined;
  }

  /** Bitmaps that record what is written, through whichever view, and are not in the image. */
  get dirtyBitmaps(): DirtyBitmaps | undefined {
    return this.#traffic.dirtyBitmaps;
  }

  set dirtyBitmaps(bitmaps: DirtyBitmaps | undefined) {
    this.#traffic.dirtyBitmaps = bitmaps;
  }

  /** Guest bytes. */
  get size(): number {
    return this.format.size;
  }

  /** The same file and chain with another format node on top: a snapshot's view. It is closed with the image, not by itself. */
  withFormat(format: FormatNode): ImageNode {
    return new ImageNode({
      filename: this.filename,
      path: this.path,
      driver: this.driver,
      format,
      file: this.file,
      backing: this.backing,
      writable: false,
      name: this.name,
    });
  }

  /** The same image for one more user, by whose closing it stays open. What moves bytes of it is ordered among all views. */
  view(owner: ViewOwner): ImageNode {
    const { filename, path, driver, format, file, backing, writable, name } = this;
    const view = new ImageNode({
      ...{ filename, path, driver, format, file, backing, writable, name },
      guardStart: this.#guardStart,
      view: { ...owner, traffic: owner.apart === true ? new Traffic() : this.#traffic },
    });
    view.detectZeroes = this.detectZeroes;
    return view;
  }

  /** Another format node, or another backing file, in place of the present one, which nobody must be using. */
  replace(parts: {
    readonly format: FormatNode;
    readonly backing: ImageNode | undefined;
    readonly writable: boolean;
  }): void {
    this.format = parts.format;
    this.backing = parts.backing;
    this.writable = parts.writable;
    this.#brokenAt = this.#findBroken();
  }

  /**
   * The same layer for writing: its file keeps its locks, and takes those of a writer. This node must not be used after, and
   * whoever has it as a backing file must take the new one. Where the file cannot be opened so, all is as before.
   */
  async reopenWritable(): Promise<ImageNode> {
    if (this.#view?.reopenWritable !== undefined) {
      await this.#view.reopenWritable(this);
      return this;
    }
    if (this.#reopen === undefined) {
      throw new ImageError('read-only', 'Operation not supported', { path: this.filename, errno: 'ENOTSUP' });
    }
    const { filename, path, driver, backing, name } = this;
    const parts = await this.#reopen();
    return new ImageNode({ filename, path, driver, backing, name, writable: true, ...parts });
  }

  #check(range: Range): void {
    if (range.length <= 0 || range.at < 0 || range.at + range.length > this.size) {
      throw new ImageError(
        'invalid',
        `request for ${range.length} bytes at offset ${range.at} is outside the image '${this.filename}'`,
        { path: this.filename, offset: range.at },
      );
    }
  }

  /** The first run of the range, through the chain. Sync where all metadata is at hand. */
  status(range: Range): MaybePromise<ChainExtent> {
    this.#check(range);
    return this.#statusBelow(this, range.at, range.length, 0, false);
  }

  /** `toRead`: what is data and what a hole does not matter. */
  #statusBelow(
    layer: ImageNode,
    at: number,
    length: number,
    depth: number,
    toRead: boolean,
    above?: Extent,
  ): MaybePromise<ChainExtent> {
    for (;;) {
      const left = layer.format.size - at;
      if (left <= 0) {
        // A backing file that ended before its overlay: what is missing reads as zeros, and it is this layer that says so.
        return { kind: 'zero', length, depth, layer, extent: undefined, above };
      }
      const { format } = layer;
      const range = { at, length: Math.min(length, left) };
      const answer = toRead && format.locate !== undefined ? format.locate(range) : format.map(range);
      if (answer instanceof Promise) return this.#statusLater(layer, at, depth, answer, toRead);
      const settled = settle(layer, depth, answer);
      if (settled !== undefined) return settled;
      above = answer;
      length = answer.length;
      layer = layer.backing!;
      depth++;
    }
  }

  async #statusLater(
    layer: ImageNode,
    at: number,
    depth: number,
    answer: Promise<Extent>,
    toRead: boolean,
  ): Promise<ChainExtent> {
    const extent = await answer;
    return (
      settle(layer, depth, extent) ??
      this.#statusBelow(layer.backing!, at, extent.length, depth + 1, toRead, extent)
    );
  }

  /** Reads guest bytes, through the chain. */
  read(at: number, into: Uint8Array): Promise<void> {
    const held = holdForReading(this, at, at + into.byteLength);
    return held === undefined ? this.#readBytes(at, into) : this.#readHeld(held, at, into);
  }

  async #readHeld(held: Promise<() => void>, at: number, into: Uint8Array): Promise<void> {
    const release = await held;
    try {
      await this.#readBytes(at, into);
    } finally {
      release();
    }
  }

  /** Keeps writers from moving the bytes of the range in this layer, once those that are at it are done. */
  holdReading(start: number, end: number): MaybePromise<() => void> {
    const { locks } = this.#traffic;
    return locks.tryAcquireShared(start, end) ?? locks.acquireShared(start, end);
  }

  /** The caller sees to it that no writer moves bytes meanwhile. */
  async #readBytes(at: number, into: Uint8Array): Promise<void> {
    if (into.byteLength === 0) return;
    this.#check({ at, length: into.byteLength });
    const pending: Promise<void>[] = [];
    try {
      for (let done = 0; done < into.byteLength; ) {
        const answer = this.#statusBelow(this, at + done, into.byteLength - done, 0, true);
        const found = answer instanceof Promise ? await answer : answer;
        if (found.depth > this.#brokenAt) throw this.unreadable(found)!;
        const part = into.subarray(done, done + found.length);
        const extent = found.extent;
        let reading: Promise<void> | undefined;
        if (extent?.kind === 'data') {
          const { storage, at: from } = extent;
          const now = part.byteLength <= READ_HERE && storage.readNow?.(from, part) === true;
          if (!now) reading = storage.read(from, part);
        } else if (extent?.kind === 'packed') reading = extent.read(part);
        else part.fill(0);
        if (reading !== undefined) {
          // It may fail while the next run is looked up, before anyone waits for it.
          reading.catch(ignore);
          pending.push(reading);
        }
        done += found.length;
      }
    } catch (error) {
      await Promise.allSettled(pending);
      throw error;
    }
    if (pending.length === 1) await pending[0];
    else if (pending.length > 1) await all(pending);
  }

  #writableFormat(): FormatNode {
    if (!this.writable) {
      throw new ImageError('read-only', `'${this.filename}' is opened read-only`, { path: this.filename });
    }
    return this.format;
  }

  #lock(start: number, end: number): MaybePromise<() => void> {
    const { unit } = this.format;
    const from = start - (start % unit);
    const to = Math.ceil(end / unit) * unit;
    const { locks } = this.#traffic;
    return locks.tryAcquire(from, to) ?? locks.acquire(from, to);
  }

  /** Writes guest bytes, with copy-on-write where units are mapped anew. */
  async write(at: number, from: Uint8Array): Promise<void> {
    if (this.detectZeroes !== 'off') return this.#writeDetecting(at, from);
    return this.#writeBytes(at, from);
  }

  /** What is zeros from end to end, a piece at a time, becomes a request for zeros. */
  async #writeDetecting(at: number, from: Uint8Array): Promise<void> {
    const unmap = this.detectZeroes === 'unmap';
    for (let done = 0; done < from.byteLength; done += DETECTED) {
      const part = from.subarray(done, done + DETECTED);
      if (isZeros(part)) await this.zero({ at: at + done, length: part.byteLength }, { unmap });
      else await this.#writeBytes(at + done, part);
    }
  }

  async #writeBytes(at: number, from: Uint8Array): Promise<void> {
    if (from.byteLength === 0) return;
    const format = this.#writableFormat();
    this.#check({ at, length: from.byteLength });
    if (this.#guardStart !== undefined && at < PROBE_SIZE) await this.#guard(at, from);
    const locked = this.#lock(at, at + from.byteLength);
    const release = typeof locked === 'function' ? locked : await locked;
    try {
      for (let done = 0; done < from.byteLength; ) {
        done += await this.#writeRun(format, at + done, from.subarray(done));
      }
    } finally {
      this.dirtyBitmaps?.record(at, from.byteLength);
      release();
    }
  }

  /** Writes what one target takes, the caller holding the lock; gives the count of bytes. */
  async #writeRun(format: FormatNode, at: number, from: Uint8Array): Promise<number> {
    if (format.prepareWrite === undefined) {
      throw new ImageError(
        'unsupported',
        `The '${this.driver.name}' format of '${this.filename}' cannot be written`,
      );
    }
    // One after another, so that places are given out in the order in which writes were asked for.
    const traffic = this.#traffic;
    while (traffic.preparing !== undefined) await traffic.preparing;
    const prepared = format.prepareWrite({ at, length: from.byteLength });
    const target = prepared instanceof Promise ? await this.#prepare(prepared) : prepared;
    const { fillBefore, fillAfter, length } = target;
    const part = from.subarray(0, length);
    try {
      if (fillBefore === 0 && fillAfter === 0) {
        await target.storage.write(target.at, part);
      } else {
        const whole = Buffer.allocUnsafe(fillBefore + length + fillAfter);
        await all([
          this.#readOrZero(at - fillBefore, whole.subarray(0, fillBefore)),
          this.#readOrZero(at + length, whole.subarray(fillBefore + length)),
        ]);
        whole.set(part, fillBefore);
        await target.storage.write(target.at - fillBefore, whole);
      }
    } catch (error) {
      await target.abort?.();
      throw error;
    }
    const linked = target.commit?.();
    if (linked instanceof Promise) await linked;
    return length;
  }

  async #prepare(prepared: Promise<WriteTarget>): Promise<WriteTarget> {
    const settled = prepared.then(
      () => {},
      () => {},
    );
    const traffic = this.#traffic;
    traffic.preparing = settled;
    try {
      return await prepared;
    } finally {
      if (traffic.preparing === settled) traffic.preparing = undefined;
    }
  }

  /** The guest's content where it has any; a last unit reaches past the end of the image. */
  async #readOrZero(at: number, into: Uint8Array): Promise<void> {
    const inside = Math.max(0, Math.min(into.byteLength, this.size - at));
    into.fill(0, inside);
    // The unit itself is locked already; what may move is in layers below.
    const { backing } = this;
    const held = backing === undefined ? undefined : holdForReading(backing, at, at + inside);
    if (held === undefined) await this.#readBytes(at, into.subarray(0, inside));
    else await this.#readHeld(held, at, into.subarray(0, inside));
  }

  async #guard(at: number, from: Uint8Array): Promise<void> {
    const head = Buffer.alloc(PROBE_SIZE);
    await this.#readOrZero(0, head);
    head.set(from.subarray(0, PROBE_SIZE - at), at);
    if (!this.#guardStart!(head)) {
      throw new ImageError(
        'access',
        `Could not write to '${this.filename}': the start of a probed raw image may not become another format`,
        { path: this.filename, offset: at, errno: 'EPERM', check: 'probed-raw' },
      );
    }
  }

  /** Makes a range read as zeros, by metadata where the format can, else by writing. `unmap`: host space may go. */
  async zero(range: Range, options: { readonly unmap?: boolean } = {}): Promise<void> {
    if (range.length === 0) return;
    const format = this.#writableFormat();
    this.#check(range);
    const { unit } = format;
    const end = range.at + range.length;
    const first = Math.ceil(range.at / unit) * unit;
    // The last unit of an image may be cut short by its end: it is whole all the same.
    const last = end === this.size ? end : end - (end % unit);
    if (format.zero === undefined) return this.#writeZeros(range.at, end);
    if (range.at < first) await this.#zeroPart(range.at, Math.min(first, end));
    if (first <= last && last < end) await this.#zeroPart(last, end);
    if (first >= last) return;
    const locked = this.#lock(first, last);
    const release = typeof locked === 'function' ? locked : await locked;
    let done: boolean;
    try {
      done = await format.zero({ at: first, length: last - first }, { unmap: options.unmap ?? false });
    } finally {
      this.dirtyBitmaps?.record(first, last - first);
      release();
    }
    if (!done) await this.#writeZeros(first, last);
  }

  /** Part of a unit: where the rest of it reads as zeros too, the unit needs no data. */
  async #zeroPart(start: number, end: number): Promise<void> {
    const { unit, zero } = this.format;
    const at = start - (start % unit);
    const stop = Math.min(this.size, at + unit);
    const locked = this.#lock(at, stop);
    const release = typeof locked === 'function' ? locked : await locked;
    try {
      if (await this.#readsZero(at, stop)) {
        if (await zero!.call(this.format, { at, length: stop - at }, { unmap: false })) return;
      }
    } finally {
      this.dirtyBitmaps?.record(start, end - start);
      release();
    }
    await this.#writeZeros(start, end);
  }

  /** By what the metadata says alone. */
  async #readsZero(start: number, end: number): Promise<boolean> {
    for (let at = start; at < end; ) {
      const { kind, length } = await this.status({ at, length: end - at });
      if (kind !== 'zero' && kind !== 'none') return false;
      at += length;
    }
    return true;
  }

  async #writeZeros(start: number, end: number): Promise<void> {
    for (let at = start; at < end; at += ZERO_CHUNK) {
      await this.#writeBytes(at, ZEROS.subarray(0, Math.min(ZERO_CHUNK, end - at)));
    }
  }

  /** Lets whole units inside the range go; a hint. */
  async discard(range: Range): Promise<void> {
    const format = this.#writableFormat();
    this.#check(range);
    const first = Math.ceil(range.at / format.unit) * format.unit;
    const end = range.at + range.length;
    const last = end === this.size ? end : end - (end % format.unit);
    if (format.discard === undefined || first >= last) return;
    const locked = this.#lock(first, last);
    const release = typeof locked === 'function' ? locked : await locked;
    try {
      await format.discard({ at: first, length: last - first });
    } finally {
      this.dirtyBitmaps?.record(range.at, range.length);
      release();
    }
  }

  /** Stores one compressed unit at its guest offset. */
  async writePacked(at: number, packed: Uint8Array): Promise<void> {
    const { pack } = this.#writableFormat();
    if (pack === undefined)
      throw new ImageError('unsupported', 'Compression not supported for this file format');
    const locked = this.#lock(at, at + pack.unit);
    const release = typeof locked === 'function' ? locked : await locked;
    try {
      await pack.write(at, packed);
    } finally {
      this.dirtyBitmaps?.record(at, Math.min(pack.unit, this.size - at));
      release();
    }
  }

  /** All that was written before is in the storages, and they are flushed. */
  async flush(): Promise<void> {
    if (!this.writable) return;
    if (this.format.flush !== undefined) await this.format.flush();
    else await this.file.flush();
  }

  /** Closes the image and its chain; every part is closed even where one fails, and the first error is thrown. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#view !== undefined) return this.#view.close(this);
    let failure: unknown;
    const attempt = async (step: Promise<void> | undefined) => {
      try {
        await step;
      } catch (error) {
        failure ??= error;
      }
    };
    await attempt(this.format.close());
    await attempt(this.file.close());
    await attempt(this.backing?.close());
    if (failure !== undefined) throw failure;
  }
}

function settle(layer: ImageNode, depth: number, extent: Extent): ChainExtent | undefined {
  if (extent.kind === 'backing') {
    if (layer.backing !== undefined) return undefined;
    return { kind: 'none', length: extent.length, depth, layer, extent };
  }
  return { kind: extent.kind, length: extent.length, depth, layer, extent };
}

/** Holds the range in each layer that is open for writing, from the top down; undefined where there is none. */
function holdForReading(top: ImageNode, start: number, end: number): Promise<() => void> | undefined {
  for (let layer: ImageNode | undefined = top; layer !== undefined; layer = layer.backing) {
    if (layer.writable) return holdLayers(top, start, end);
  }
  return undefined;
}

async function holdLayers(top: ImageNode, start: number, end: number): Promise<() => void> {
  const releases: (() => void)[] = [];
  for (let layer: ImageNode | undefined = top; layer !== undefined; layer = layer.backing) {
    if (!layer.writable) continue;
    const held = layer.holdReading(start, end);
    releases.push(typeof held === 'function' ? held : await held);
  }
  return () => {
    for (const release of releases) release();
  };
}

function isZeros(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.byteLength; at += ZERO_CHUNK) {
    const part = bytes.subarray(at, at + ZERO_CHUNK);
    if (!ZEROS.subarray(0, part.byteLength).equals(part)) return false;
  }
  return true;
}

function ignore(): void {}

/** Waits for all, even where one fails (buffers stay in use until then), and throws the first error. */
export async function all(work: readonly Promise<unknown>[]): Promise<void> {
  const results = await Promise.allSettled(work);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}
