/** Writing: where new clusters go, and in which order data and BAT reach the disk. */
import { errnoText, ImageError } from '../../error.js';
import type { WriteTarget } from '../../node/driver.js';
import type { MaybePromise, Range } from '../../storage/storage.js';
import { PAGE_ENTRIES } from '../entry-table.js';
import { GUEST_DATA, type Stage, Writeback } from '../metadata-cache.js';
import type { Clusters } from './clusters.js';
import type { ParallelsImage } from './image.js';
import { IN_USE } from './layout.js';

/** One target covers at most this many guest bytes, or a cluster. */
const MAX_TARGET = 8 * 1024 * 1024;

export class ParallelsWriter {
  readonly #image: ParallelsImage;
  readonly #clusters: Clusters;
  /** A backing file lies below: new clusters are filled from it, and nothing can be made zero by metadata. */
  readonly #backed: boolean;
  readonly #writeback: Writeback;
  #marking: Promise<void> | undefined;
  #marked = false;

  constructor(image: ParallelsImage, clusters: Clusters, backed: boolean) {
    this.#image = image;
    this.#clusters = clusters;
    this.#backed = backed;
    const bat: Stage = {
      name: 'BAT',
      after: [GUEST_DATA],
      dirty: () => image.bat.dirty,
      write: () => image.bat.write(),
    };
    const freed: Stage = {
      name: 'freed clusters',
      after: [bat],
      dirty: () => clusters.hasFreed,
      write: () => clusters.release(),
    };
    this.#writeback = new Writeback([bat, freed], () => image.file.flush());
  }

  /** Before the first change the image says that it is in use, and drops the extension, which would no longer be true. */
  #mark(): Promise<void> {
    this.#marking ??= (async () => {
      const { header, file } = this.#image;
      header.inUse = IN_USE;
      header.extOff = 0n;
      await this.#image.writeHeader();
      await file.flush();
      this.#marked = true;
    })().finally(() => {
      this.#marking = undefined;
    });
    return this.#marking;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    const found = this.#attempt(range);
    return found instanceof Promise ? this.#wait(range, found) : found;
  }

  async #wait(range: Range, pending: Promise<unknown>): Promise<WriteTarget> {
    let waiting = pending;
    for (;;) {
      const ready = await waiting;
      if (isTarget(ready)) return ready;
      const found = this.#attempt(range);
      if (!(found instanceof Promise)) return found;
      waiting = found;
    }
  }

  #attempt({ at, length }: Range): WriteTarget | Promise<unknown> {
    const { bat, clusterSize, file } = this.#image;
    const cluster = Math.floor(at / clusterSize);
    if (cluster >= bat.count) {
      throw new ImageError('corrupt', errnoText('EINVAL'), { path: file.filename, errno: 'EINVAL' });
    }
    if (!this.#marked) return this.#mark();
    const page = bat.page(cluster);
    if (page === undefined) return bat.load(cluster);
    const within = at - cluster * clusterSize;
    const index = cluster % PAGE_ENTRIES;
    const inPage = Math.min(PAGE_ENTRIES - index, bat.count - cluster);
    const wanted = Math.ceil((within + Math.min(length, MAX_TARGET)) / clusterSize);
    const most = Math.min(inPage, wanted);
    const { step } = this.#clusters;
    const entry = page[index]!;
    let count = 1;
    if (entry !== 0) {
      while (count < most && page[index + count] === entry + count * step) count++;
      return {
        storage: file,
        at: this.checkedPlace(entry) + within,
        length: Math.min(length, count * clusterSize - within),
        fillBefore: 0,
        fillAfter: 0,
      };
    }
    if (bat.crowded) return this.#writeback.run();
    while (count < most && page[index + count] === 0) count++;
    const taken = this.#clusters.take(count);
    const run = Math.min(length, taken.count * clusterSize - within);
    const rest = taken.count * clusterSize - within - run;
    const target = this.#target(cluster, taken, within, run, this.#backed ? rest : undefined);
    if (this.#backed || (rest === 0 && !(taken.stale && within > 0))) return target;
    return this.#clear(taken, within, run).then(() => target);
  }

  /** `fill`: bytes after the written ones that come from the backing file; undefined where they are zeros already. */
  #target(
    cluster: number,
    taken: { readonly first: number; readonly count: number },
    within: number,
    length: number,
    fill: number | undefined,
  ): WriteTarget {
    return {
      storage: this.#image.file,
      at: this.#clusters.place(taken.first) + within,
      length,
      fillBefore: fill === undefined ? 0 : within,
      fillAfter: fill ?? 0,
      commit: () => this.#link(cluster, taken.first, taken.count),
      abort: () => this.#clusters.giveBack(taken.first, taken.count),
    };
  }

  /**
   * Makes what is not written of new clusters zeros. Past the end of the file they are, but the file must reach to the end
   * of its last cluster.
   */
  async #clear(
    taken: { readonly first: number; readonly count: number; readonly stale: boolean },
    within: number,
    length: number,
  ): Promise<void> {
    const { file, clusterSize } = this.#image;
    const start = this.#clusters.place(taken.first);
    const end = start + taken.count * clusterSize;
    const tail = start + within + length;
    try {
      if (taken.stale && within > 0) await file.zero({ at: start, length: within });
      if (tail < end) await file.zero({ at: tail, length: end - tail });
    } catch (error) {
      this.#clusters.giveBack(taken.first, taken.count);
      throw error;
    }
  }

  /** Where an entry's cluster is; never inside the metadata, whatever the BAT says. */
  checkedPlace(entry: number): number {
    const { file, metadataEnd } = this.#image;
    const place = this.#image.placeOf(entry);
    if (place >= metadataEnd && place !== Number.POSITIVE_INFINITY) return place;
    throw new ImageError('corrupt', `Parallels BAT entry ${entry} points outside the data area`, {
      path: file.filename,
      errno: 'EIO',
    });
  }

  /** Not while a writeback runs: it has settled already what must be on the disk before the BAT. */
  #link(cluster: number, first: number, count: number): MaybePromise<void> {
    const { bat } = this.#image;
    const waits = this.#writeback.running;
    if (waits !== undefined) return waits.then(() => this.#link(cluster, first, count));
    if (bat.page(cluster) === undefined) {
      return bat.load(cluster).then(() => this.#link(cluster, first, count));
    }
    bat.set(cluster, count, this.#clusters.entry(first), this.#clusters.step);
  }

  async zero(range: Range): Promise<boolean> {
    if (this.#backed) return false;
    await this.discard(range);
    return true;
  }

  /** Clusters without an entry are the backing file's, or zeros. */
  async discard({ at, length }: Range): Promise<void> {
    const { bat, clusterSize } = this.#image;
    const last = Math.min(bat.count, Math.ceil((at + length) / clusterSize));
    for (let cluster = Math.floor(at / clusterSize); cluster < last; ) {
      const page = bat.page(cluster);
      if (page === undefined) {
        await bat.load(cluster);
        continue;
      }
      const entry = page[cluster % PAGE_ENTRIES]!;
      if (entry === 0) {
        cluster++;
        continue;
      }
      const waits = !this.#marked
        ? this.#mark()
        : bat.crowded
          ? this.#writeback.run()
          : this.#writeback.running;
      if (waits !== undefined) {
        await waits;
        continue;
      }
      bat.set(cluster, 1, 0, 0);
      this.#clusters.free(this.#image.placeOf(entry));
      cluster++;
    }
  }

  flush(): Promise<void> {
    return this.#writeback.run();
  }

  /** All is on the disk, and the image says that it was closed. */
  async close(): Promise<void> {
    const { header, file } = this.#image;
    await this.flush();
    if (header.inUse === 0) return;
    header.inUse = 0;
    await this.#image.writeHeader();
    await file.flush();
  }
}

function isTarget(value: unknown): value is WriteTarget {
  return typeof value === 'object' && value !== null && 'fillBefore' in value;
}
