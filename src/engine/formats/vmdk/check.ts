/**
 * `check`: every grain is mapped to a place inside its file. The reference stops at the first that is not; so does this.
 * Beyond the reference: no two grains have the same place, and none lies in the metadata.
 */
import { errnoText, ImageError, toImageError } from '../../error.js';
import type { CheckContext, CheckFacet, CheckResult } from '../../node/driver.js';
import type { SparseExtent } from './extent.js';
import { SECTOR } from './layout.js';
import type { VmdkImage } from './open.js';
import { ABSENT, type GrainRun, type GrainTables, grainRun } from './tables.js';

/** Between looks at the abort signal. */
const TABLES_AT_ONCE = 1024;

/** Places are marked in a bitmap of at most this many bits; in larger files shared ones are not looked for. */
const MAX_PLACES = 2 ** 28;

/** Which places of a file are taken by grains. */
class Places {
  readonly #step: number;
  readonly #bits: Uint8Array | undefined;
  #residue = -1;

  constructor(extent: SparseExtent) {
    // Compressed grains are as long as they are: theirs are told apart by where they start.
    this.#step = extent.compressed ? 1 : extent.grain / SECTOR;
    const places = Math.ceil(extent.storage.size / SECTOR / this.#step) + 1;
    this.#bits = places > MAX_PLACES ? undefined : new Uint8Array(Math.ceil(places / 8));
  }

  /** Takes the place that starts at a sector; false where it was taken. */
  take(sector: number): boolean {
    if (this.#residue < 0) this.#residue = sector % this.#step;
    if (this.#bits === undefined || sector % this.#step !== this.#residue) return true;
    const place = Math.floor(sector / this.#step);
    const mask = 1 << (place & 7);
    const free = (this.#bits[place >>> 3]! & mask) === 0;
    this.#bits[place >>> 3]! |= mask;
    return free;
  }
}

export class VmdkChecker implements CheckFacet {
  readonly #image: VmdkImage;
  readonly #tables: GrainTables;

  constructor(image: VmdkImage, tables: GrainTables) {
    this.#image = image;
    this.#tables = tables;
  }

  async check(context: CheckContext): Promise<CheckResult> {
    if (context.repair.leaks || context.repair.errors) {
      throw new ImageError('unsupported', 'This image format does not support checks', { errno: 'ENOTSUP' });
    }
    let corruptions = 0;
    for (const extent of this.#image.extents) {
      if (extent.kind === 'sparse') corruptions += await this.#checkSparse(extent, context);
      context.progress?.(extent.at + extent.size, this.#image.size);
    }
    return { checkErrors: 0, corruptions, leaks: 0, corruptionsFixed: 0, leaksFixed: 0 };
  }

  async #checkSparse(extent: SparseExtent, context: CheckContext): Promise<number> {
    const places = new Places(extent);
    let corruptions = 0;
    const span = extent.grain * extent.entriesPerTable;
    // The file's length in whole sectors, as the reference counts it.
    const fileEnd = Math.ceil(extent.storage.size / SECTOR) * SECTOR;
    for (let at = 0, tables = 1; at < extent.size; tables++) {
      if (tables % TABLES_AT_ONCE === 0) {
        if (context.signal?.aborted) throw new ImageError('cancelled', 'Operation cancelled');
        context.progress?.(extent.at + at, this.#image.size);
        // Holes are passed over without reading: let others run.
        await new Promise<void>((resolve) => setImmediate(resolve));
      }
      const index = Math.floor(at / span);
      const end = Math.min(extent.size, (index + 1) * span);
      try {
        const table = this.#tables.cached(extent, index) ?? (await this.#tables.load(extent, index));
        while (at < end && table !== ABSENT) {
          const run = grainRun(extent, table, at, end - at);
          // The first grain of a run that starts past the end; all but the last start in whole grains.
          const past = run.sector < 0 ? Number.POSITIVE_INFINITY : fileEnd - run.sector * SECTOR;
          const bad = Math.max(0, Math.ceil(past / extent.grain) * extent.grain);
          if (bad < run.length) {
            this.#fail(
              context,
              extent,
              at + bad,
              'EINVAL',
              (n) => `cluster offset for sector ${n} points after EOF`,
            );
          }
          if (run.sector >= 0) corruptions += this.#place(extent, at, run, places, context);
          at += run.length;
        }
      } catch (error) {
        if (toImageError(error).context.errno !== 'EIO' || toImageError(error).kind !== 'corrupt')
          throw error;
        this.#fail(context, extent, at, 'EPERM', (n) => `could not get cluster_offset for sector ${n}`);
      }
      at = end;
    }
    return corruptions;
  }

  /** Marks the places of a run of grains; gives the count of those that cannot be where they are. */
  #place(extent: SparseExtent, at: number, run: GrainRun, places: Places, context: CheckContext): number {
    let bad = 0;
    for (let done = 0; done < run.length; done += extent.grain) {
      const host = run.sector * SECTOR + done;
      const guest = (extent.at + at + done) / SECTOR;
      if (host < extent.metadataEnd)
        context.report(`ERROR: cluster for sector ${guest} lies in the metadata`);
      else if (!places.take(host / SECTOR)) {
        context.report(`ERROR: cluster for sector ${guest} has its place in the file with another`);
      } else continue;
      bad++;
    }
    return bad;
  }

  #fail(
    context: CheckContext,
    extent: SparseExtent,
    within: number,
    errno: string,
    text: (sector: number) => string,
  ): never {
    context.report(`ERROR: ${text((extent.at + within) / SECTOR)}`);
    throw new ImageError('corrupt', errnoText(errno), { path: extent.storage.filename, errno });
  }
}
