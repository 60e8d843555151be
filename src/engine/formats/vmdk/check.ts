/** `check`: every grain is mapped to a place inside its file. The reference stops at the first that is not; so does this. */
import { errnoText, ImageError, toImageError } from '../../error.js';
import type { CheckContext, CheckFacet, CheckResult } from '../../node/driver.js';
import type { SparseExtent } from './extent.js';
import { SECTOR } from './layout.js';
import type { VmdkImage } from './open.js';
import { ABSENT, type GrainTables, grainRun } from './tables.js';

/** Between looks at the abort signal. */
const TABLES_AT_ONCE = 1024;

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
    for (const extent of this.#image.extents) {
      if (extent.kind === 'sparse') await this.#checkSparse(extent, context);
      context.progress?.(extent.at + extent.size, this.#image.size);
    }
    return { checkErrors: 0, corruptions: 0, leaks: 0, corruptionsFixed: 0, leaksFixed: 0 };
  }

  async #checkSparse(extent: SparseExtent, context: CheckContext): Promise<void> {
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
          at += run.length;
        }
      } catch (error) {
        if (toImageError(error).context.errno !== 'EIO' || toImageError(error).kind !== 'corrupt')
          throw error;
        this.#fail(context, extent, at, 'EPERM', (n) => `could not get cluster_offset for sector ${n}`);
      }
      at = end;
    }
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
