/**
 * Counts references by walking L1 and L2 tables. L2 tables are read in large pieces, several in flight; each is scanned in
 * one tight loop over 32-bit halves, and whatever is out of the ordinary leaves the loop.
 */
import { CHUNK, MAX_CLUSTERS, type ReferenceCounts } from './check-counts.js';
import { type CheckState, entryHex, hex, type Region, readTable } from './check-image.js';
import { type PlacedTable, readPieces } from './check-pieces.js';
import type { DiskRefcounts } from './check-refcounts.js';
import {
  allocatedMask,
  clearCluster,
  clusterKind,
  type Geometry,
  isCopied,
  Kind,
  l1Copied,
  l1HasReservedBits,
  l1Offset,
  offsetAt,
  packedLength,
  packedOffset,
  setCopied,
  storeTable,
  zeroMask,
} from './layout.js';

/** Bits of an entry's low word that may be set in no aligned, plain entry: cluster-internal ones, flags among them. */
const HIGH_ODD = 0x7f00_0000;

const NOT_WRITTEN = 'ERROR: Could not write L2 table; metadata overlap check failed: Input/output error';

/** How far behind the end of the file a repair may come to put something. */
const DANGLING_REACH = 1 << 16;

/** What is kept from entry to entry of a table. */
interface Run {
  /** Where the table is. */
  readonly at: number;
  /** The cluster that would follow the last one, -1: none yet. */
  expected: number;
  allocated: number;
  fragmented: number;
  suspect: boolean;
}

/** What refers to clusters behind the end of the file, but not far behind it. */
export interface Dangling {
  /** The clusters, and how often they are referred to. */
  readonly clusters: Map<number, number>;
  /** Runs that begin in the file: their clusters are not counted, either, as long as the file is as short. */
  readonly straddling: { readonly first: number; readonly last: number }[];
}

export class TableCounter {
  readonly #state: CheckState;
  readonly #counts: ReferenceCounts;
  readonly #disk: DiskRefcounts;
  readonly #g: Geometry;
  readonly #fileSize: number;
  /** L1 entries of the active table under which a copied flag and a refcount may contradict each other. */
  readonly suspects = new Set<number>();
  readonly dangling: Dangling = { clusters: new Map(), straddling: [] };
  allocated = 0;
  fragmented = 0;
  compressed = 0;
  /** Guest-visible repairs that were written. */
  repairs = 0;

  constructor(state: CheckState, counts: ReferenceCounts, disk: DiskRefcounts) {
    this.#state = state;
    this.#counts = counts;
    this.#disk = disk;
    this.#g = state.header.geometry;
    this.#fileSize = state.file.size;
  }

  /** Counts one reference to each cluster of a run of bytes. `exact`: the offset in hexadecimal where a number may not do. */
  count(at: number, length: number, exact?: string): void {
    const { result, context, file } = this.#state;
    if (length <= 0) return;
    const { clusterSize } = this.#g;
    const last = Math.floor((at + length - 1) / clusterSize);
    if (at + length >= file.size + clusterSize || last > MAX_CLUSTERS) {
      context.report(
        `ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x${exact ?? hex(at)} size 0x${hex(length)}`,
      );
      result.corruptions += 1;
      this.#rememberDangling(Math.floor(at / clusterSize), last);
      return;
    }
    for (let cluster = Math.floor(at / clusterSize); cluster <= last; cluster++) {
      if (this.#counts.add(cluster)) continue;
      context.report(`ERROR: overflow cluster offset=0x${hex(cluster * clusterSize)}`);
      context.report(
        'Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing',
      );
      result.corruptions += 1;
    }
  }

  #rememberDangling(first: number, last: number): void {
    const { clusters, straddling } = this.dangling;
    const end = this.#counts.clusters + DANGLING_REACH;
    const inside = Math.ceil(this.#fileSize / this.#g.clusterSize);
    if (first < inside && last < end && straddling.length < DANGLING_REACH) straddling.push({ first, last });
    for (let cluster = first; cluster <= last && cluster < end; cluster++) {
      clusters.set(cluster, (clusters.get(cluster) ?? 0) + 1);
    }
  }

  /** Counts an L1 table and all below it. `active`: it is the guest's, which gives the statistics and may be repaired. */
  async countL1(region: Region, active: boolean): Promise<void> {
    const { file, context, result, guard } = this.#state;
    this.count(region.at, region.length);
    if (region.length === 0) return;
    const l1 = await readTable(file, region);
    const tables: PlacedTable[] = [];
    const entries = l1.length / 2;
    for (let index = 0; index < entries; index++) {
      if (l1[index * 2] !== 0 || l1[index * 2 + 1] !== 0) tables.push({ index, at: l1Offset(l1, index) });
    }
    const { clusterSize } = this.#g;
    let done = 0;
    const repair = active && context.repair.errors;
    for await (const piece of readPieces(this.#state, tables, repair)) {
      for (const { index, at } of piece.tables) {
        if (l1HasReservedBits(l1, index)) {
          context.report(
            `ERROR found L1 entry with reserved bits set: ${entryHex(l1[index * 2]!, l1[index * 2 + 1]!)}`,
          );
          result.corruptions += 1;
        }
        // an entry with nothing but reserved bits is taken for one, of a table on the header
        this.count(at, clusterSize);
        if (at < clusterSize && !active) guard.metHeader();
        if (at % clusterSize !== 0) {
          context.report(`ERROR l2_offset=${hex(at)}: Table is not cluster aligned; L1 entry corrupted`);
          result.corruptions += 1;
        }
        if (active && (this.#disk.saturated(Math.floor(at / clusterSize)) === 1) !== l1Copied(l1, index)) {
          this.suspects.add(index);
        }
        const words = piece.words.subarray((at - piece.at) / 4, (at - piece.at + clusterSize) / 4);
        const changed = this.#scan(words, at, index, active, repair);
        if (changed !== undefined) await this.#rewrite(at, words, changed);
      }
      done += piece.tables.length;
      if (active) context.progress?.(done * clusterSize, tables.length * clusterSize);
    }
  }

  /**
   * One L2 table; the words that a repair has changed, as [from, to). Clusters mostly follow each other: entries are taken
   * by runs that stay within a chunk of counts and a block of refcounts, and each run is counted without looking back.
   */
  #scan(
    l2: Uint32Array,
    at: number,
    index: number,
    active: boolean,
    repair: boolean,
  ): [number, number] | undefined {
    const g = this.#g;
    const counts = this.#counts;
    const { clusterBits, clusterSize, l2Words } = g;
    const special = g.extendedL2 || g.externalData;
    const lowOdd = clusterSize - 1;
    const blockBits = this.#disk.blockBits;
    const blockMask = 2 ** blockBits - 1;
    const clusters = Math.ceil(this.#fileSize / clusterSize);
    const length = l2.length;
    const run: Run = { at, expected: -1, allocated: 0, fragmented: 0, suspect: false };
    let changed: [number, number] | undefined;
    for (let word = 0; word < length; ) {
      const high = l2[word]! | 0;
      let low = l2[word + 1]! | 0;
      if ((high | low) === 0 && (!g.extendedL2 || l2[word + 3] === 0)) {
        word += l2Words;
        continue;
      }
      const first =
        (high & 0x00ff_ffff) === 0 ? low >>> clusterBits : Math.floor(offsetAt(l2, word) / clusterSize);
      if (special || (high & HIGH_ODD) !== 0 || (low & lowOdd) !== 0 || first === 0 || first >= clusters) {
        if (this.#odd(l2, word, index, active, repair, run)) changed = [changed?.[0] ?? word, word + l2Words];
        word += l2Words;
        continue;
      }
      const bound = Math.min(
        clusters - first,
        CHUNK - (first & (CHUNK - 1)),
        blockMask + 1 - (first & blockMask),
        // the low half must not wrap around
        2 ** (32 - clusterBits) - (low >>> clusterBits),
      );
      const end = Math.min(length, word + bound * 2);
      let next = word + 2;
      while (next < end && (l2[next]! | 0) === high) {
        low = (low + clusterSize) | 0;
        if ((l2[next + 1]! | 0) !== low) break;
        next += 2;
      }
      const count = (next - word) >>> 1;
      word = next;
      run.allocated += count;
      if (run.expected !== first && run.expected !== -1) run.fragmented += 1;
      run.expected = first + count;
      counts.references += count;
      const cells = counts.chunk(Math.floor(first / CHUNK));
      const overflow = increment(cells, first & (CHUNK - 1), count, counts.fast);
      for (let at = overflow; at < count; at++) this.count((first + at) * clusterSize, clusterSize);
      if (active && !run.suspect) {
        const block = this.#disk.cells[Math.floor(first / (blockMask + 1))];
        run.suspect = block === undefined ? high < 0 : !agrees(block, first & blockMask, count, high < 0);
      }
    }
    if (active) {
      this.allocated += run.allocated;
      this.fragmented += run.fragmented;
      if (run.suspect) this.suspects.add(index);
    }
    return changed;
  }

  /** An entry that is not plainly an aligned cluster in the file; true where a repair has changed it. */
  #odd(l2: Uint32Array, word: number, index: number, active: boolean, repair: boolean, run: Run): boolean {
    const { context, result } = this.#state;
    const g = this.#g;
    const corrupt = (line: string): void => {
      context.report(line);
      result.corruptions += 1;
    };
    const entry = (): string => entryHex(l2[word]!, l2[word + 1]!);
    const uncopied = (): string => entryHex(l2[word]! & 0x7fff_ffff, l2[word + 1]!);
    const kind = clusterKind(l2, word, g);
    const masks = g.extendedL2 && (l2[word + 2] !== 0 || l2[word + 3] !== 0);
    if (kind === Kind.compressed) {
      const number = index * g.l2Entries + word / g.l2Words;
      const at = packedOffset(l2, word, g);
      const exact = entryHex(l2[word]! & (2 ** g.packedShift - 1), l2[word + 1]!);
      if (isCopied(l2, word)) {
        corrupt(`ERROR: coffset=0x${exact}: copied flag must never be set for compressed clusters`);
      }
      if (g.externalData) {
        corrupt(`ERROR compressed cluster ${number} with data file, entry=0x${uncopied()}`);
      } else if (masks) {
        corrupt(
          `ERROR compressed cluster ${number} with non-zero subcluster allocation bitmap, entry=0x${entry()}`,
        );
      } else {
        this.count(at, packedLength(l2, word, g), exact);
        run.allocated += 1;
        run.fragmented += 1;
        if (active) this.compressed += 1;
      }
      return false;
    }
    if ((l2[word]! & 0x3f00_0000) !== 0 || (l2[word + 1]! & 0x1fe) !== 0) {
      corrupt(`ERROR found l2 entry with reserved bits set: ${entry()}`);
    }
    if (kind === Kind.unallocated || kind === Kind.zeroPlain) {
      if (g.extendedL2 && allocatedMask(l2, word) !== 0) {
        corrupt('ERROR: Unallocated cluster has non-zero subcluster allocation map');
      }
      return false;
    }
    const at = offsetAt(l2, word);
    if (g.extendedL2 && (allocatedMask(l2, word) & zeroMask(l2, word)) !== 0) {
      corrupt(`ERROR offset=${hex(at)}: Allocated cluster has corrupted subcluster allocation bitmap`);
    }
    if (at % g.clusterSize !== 0) {
      const holdsData = g.extendedL2 ? allocatedMask(l2, word) !== 0 : kind === Kind.normal;
      if (holdsData) {
        corrupt(`ERROR offset=${hex(at)}: Data cluster is not properly aligned; L2 entry corrupted.`);
      } else {
        context.report(
          `${repair ? 'Repairing' : 'ERROR'} offset=${hex(at)}: Preallocated cluster is not properly aligned; L2 entry corrupted.`,
        );
        if (repair) {
          const own = ['active L2 table'] as const;
          this.#state.guard.check(run.at + word * 4, g.l2Words * 4, own, 'ERROR: Overlap check failed');
          // With subclusters, which of them are zeros is in the bitmap, and stays; the others are the backing file's.
          if (g.extendedL2) l2.fill(0, word, word + 2);
          else clearCluster(l2, word, true, g);
          result.corruptionsFixed += 1;
          return true;
        }
        result.corruptions += 1;
      }
    }
    const position = at / g.clusterSize;
    run.allocated += 1;
    if (run.expected !== -1 && run.expected !== position) run.fragmented += 1;
    run.expected = position + 1;
    if (!g.externalData) {
      this.count(at, g.clusterSize);
      if ((this.#disk.saturated(Math.floor(position)) === 1) !== isCopied(l2, word)) run.suspect = true;
    } else if (!isCopied(l2, word)) run.suspect = true;
    return false;
  }

  async #rewrite(at: number, words: Uint32Array, [from, to]: readonly [number, number]): Promise<void> {
    this.repairs += 1;
    await this.#state.guard.keep(this.#state.file, at + from * 4, (to - from) * 4);
    await this.#state.file.write(at + from * 4, storeTable(words, from, to));
  }

  /**
   * Compares copied flags of the active tables with the refcounts on disk; corrects them with `repair`. `all`: refcounts
   * have changed since the tables were counted, so that every table must be looked at again.
   */
  async checkCopied(region: Region, repair: boolean, all: boolean): Promise<void> {
    const { file, context, result, guard } = this.#state;
    const { clusterSize, l2Words, externalData } = this.#g;
    if (!all && this.suspects.size === 0) return;
    const l1 = await readTable(file, region);
    const tables: PlacedTable[] = [];
    for (let index = 0; index < l1.length / 2; index++) {
      if ((all || this.suspects.has(index)) && l1Offset(l1, index) !== 0)
        tables.push({ index, at: l1Offset(l1, index) });
    }
    const told = (line: string): void => {
      context.report(`${repair ? 'Repairing' : 'ERROR'} OFLAG_COPIED ${line}`);
      if (repair) result.corruptionsFixed += 1;
      else result.corruptions += 1;
    };
    for await (const piece of readPieces(this.#state, tables, repair)) {
      for (const { index, at } of piece.tables) {
        const cluster = Math.floor(at / clusterSize);
        const known = this.#disk.saturated(cluster);
        if (known !== undefined && (known === 1) !== l1Copied(l1, index)) {
          const refcount = await this.#disk.exact(cluster);
          const entry = entryHex(l1[index * 2]!, l1[index * 2 + 1]!);
          told(`L2 cluster: l1_index=${index} l1_entry=${entry} refcount=${refcount}`);
          if (repair) {
            guard.check(region.at + index * 8, 8, ['active L1 table']);
            await guard.keep(file, region.at + index * 8, 8);
            setCopied(l1, index * 2, refcount === 1n);
            await file.write(region.at + index * 8, storeTable(l1, index * 2, index * 2 + 2));
          }
        }
        const l2 = piece.words.subarray((at - piece.at) / 4, (at - piece.at + clusterSize) / 4);
        let changed: [number, number] | undefined;
        for (let word = 0; word < l2.length; word += l2Words) {
          if (l2[word] === 0 && l2[word + 1] === 0) continue;
          const kind = clusterKind(l2, word, this.#g);
          if (kind !== Kind.normal && kind !== Kind.zeroAlloc) continue;
          const position = offsetAt(l2, word) / clusterSize;
          // Clusters of a data file have no counts, and are always the guest's own.
          const recorded = externalData ? 1 : this.#disk.saturated(Math.floor(position));
          if (recorded === undefined || (recorded === 1) === isCopied(l2, word)) continue;
          const exact = externalData ? 1n : await this.#disk.exact(Math.floor(position));
          told(`data cluster: l2_entry=${entryHex(l2[word]!, l2[word + 1]!)} refcount=${exact}`);
          if (!repair) continue;
          setCopied(l2, word, exact === 1n);
          changed = [changed?.[0] ?? word, word + l2Words];
        }
        if (changed === undefined) continue;
        guard.check(at, clusterSize, ['active L2 table'], NOT_WRITTEN);
        await this.#rewrite(at, l2, changed);
      }
    }
  }
}

/** Adds one to each of a run of cells; returns how many were done before one that cannot simply be incremented. */
function increment(cells: Uint8Array, from: number, count: number, fast: number): number {
  for (let at = 0; at < count; at++) {
    const cell = cells[from + at]!;
    if (cell >= fast) return at;
    cells[from + at] = cell + 1;
  }
  return count;
}

/** Whether all of a run of refcounts are one (`copied`), or none of them. */
function agrees(block: Uint8Array, from: number, count: number, copied: boolean): boolean {
  const end = from + count;
  if (copied) {
    for (let at = from; at < end; at++) if (block[at] !== 1) return false;
  } else {
    for (let at = from; at < end; at++) if (block[at] === 1) return false;
  }
  return true;
}
