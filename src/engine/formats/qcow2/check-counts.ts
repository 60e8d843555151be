/**
 * How often each host cluster is referenced, counted from the tables that refer to it. A byte a cluster; the rare larger
 * counts are in a map. Memory is taken in small pieces where references are, so that a sparse file of any length costs
 * nothing, and no more of it than the image's own metadata justifies.
 */
import { checkFailed } from './check-image.js';

const CHUNK_BITS = 14;
export const CHUNK = 1 << CHUNK_BITS;
/** In a cell: the count is in the map. */
const IN_MAP = 255;
/** QEMU counts clusters in an int. */
export const MAX_CLUSTERS = 0x7fff_ffff;
/** Memory that is always allowed: covers 4 TiB of 64 KiB clusters. */
const BASE_BYTES = 64 << 20;
/** And for each reference counted: a hostile table can name one cluster in each chunk, an honest one names neighbours. */
const BYTES_PER_REFERENCE = 64;

export class ReferenceCounts {
  /** Clusters that the file has, rounded up; grows with references that end in the one after. */
  clusters: number;
  readonly chunks: (Uint8Array | undefined)[] = [];
  /** A cell below this may simply be incremented. */
  readonly fast: number;
  /** References counted by tight loops that do not come through `add`. */
  references = 0;
  readonly #large = new Map<number, number>();
  readonly #max: number;
  #bytes = 0;
  /** Clusters [from, end) that all have references. */
  #used = { from: 0, end: 0 };

  /** For a file of `clusters` clusters and refcounts up to `max`. */
  constructor(clusters: number, max: number) {
    if (clusters > MAX_CLUSTERS) {
      throw checkFailed('limit', 'EFBIG');
    }
    this.clusters = clusters;
    this.#max = max;
    this.fast = Math.min(IN_MAP - 1, max);
  }

  get(cluster: number): number {
    const cell = this.chunks[cluster >>> CHUNK_BITS]?.[cluster & (CHUNK - 1)] ?? 0;
    return cell === IN_MAP ? this.#large.get(cluster)! : cell;
  }

  /** Counts one reference; false where the count is at the image's maximum already. */
  add(cluster: number): boolean {
    this.references += 1;
    if (cluster >= this.clusters) this.clusters = cluster + 1;
    const chunk = this.chunk(cluster >>> CHUNK_BITS);
    const at = cluster & (CHUNK - 1);
    const cell = chunk[at]!;
    if (cell < this.fast) {
      chunk[at] = cell + 1;
      return true;
    }
    const count = cell === IN_MAP ? this.#large.get(cluster)! : cell;
    if (count >= this.#max) return false;
    chunk[at] = IN_MAP;
    this.#large.set(cluster, count + 1);
    return true;
  }

  /** The cells of a chunk, made where there are none yet. */
  chunk(index: number): Uint8Array {
    const known = this.chunks[index];
    if (known !== undefined) return known;
    this.#bytes += CHUNK;
    if (this.#bytes > BASE_BYTES + this.references * BYTES_PER_REFERENCE) {
      throw checkFailed('limit', 'ENOMEM');
    }
    const chunk = new Uint8Array(CHUNK);
    this.chunks[index] = chunk;
    return chunk;
  }

  /** `length` clusters from `cluster` on, not across chunks; undefined where all are zero. */
  cells(cluster: number, length: number): Uint8Array | undefined {
    const at = cluster & (CHUNK - 1);
    return this.chunks[cluster >>> CHUNK_BITS]?.subarray(at, at + length);
  }

  /** The first cluster from `from` on that begins a run of `count` without references. */
  freeRun(from: number, count: number): number {
    let start = this.#pastUsed(from);
    let cluster = start;
    while (cluster - start < count) {
      const chunk = this.chunks[cluster >>> CHUNK_BITS];
      if (chunk === undefined) cluster = ((cluster >>> CHUNK_BITS) + 1) * CHUNK;
      else if (chunk[cluster & (CHUNK - 1)] === 0) cluster += 1;
      else {
        cluster = this.#pastUsed(cluster);
        start = cluster;
      }
    }
    return start;
  }

  /** Takes all references to a cluster back. */
  release(cluster: number): void {
    const chunk = this.chunks[cluster >>> CHUNK_BITS];
    if (chunk !== undefined) chunk[cluster & (CHUNK - 1)] = 0;
    if (cluster >= this.#used.from && cluster < this.#used.end) this.#used = { from: 0, end: 0 };
  }

  /**
   * The first cluster from `from` on without references. Remembers the longest run that it has gone over: in a full file each
   * of many searches would go over it again.
   */
  #pastUsed(from: number): number {
    const known = this.#used;
    const inKnown = from >= known.from && from <= known.end;
    let cluster = inKnown ? known.end : from;
    for (;;) {
      const chunk = this.chunks[cluster >>> CHUNK_BITS];
      if (chunk === undefined || chunk[cluster & (CHUNK - 1)] === 0) break;
      cluster += 1;
    }
    if (inKnown) this.#used = { from: known.from, end: cluster };
    else if (cluster - from > known.end - known.from) this.#used = { from, end: cluster };
    return cluster;
  }
}
