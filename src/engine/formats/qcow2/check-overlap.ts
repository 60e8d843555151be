/**
 * Keeps a repair from writing over metadata that lies where it should not. Damaged pointers can place one structure over
 * another; what is written to one then breaks the other. Before a write in place, or to clusters that count as free, the
 * range is compared with all other structures, those that are known without reading tables of snapshots.
 */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { type CheckHeader, type Region, readTable } from './check-image.js';
import { l1Offset, refcountTableOffset } from './layout.js';

/** Kinds of metadata, in the reference's words and in the order in which it looks for them. */
const KINDS = [
  'qcow2_header',
  'active L1 table',
  'refcount table',
  'snapshot table',
  'inactive L1 table',
  'bitmap directory',
  'active L2 table',
  'refcount block',
  'inactive L2 table',
] as const;
export type MetadataKind = (typeof KINDS)[number];

/** Bytes of metadata kept to be written back. Only images with tables over other metadata need any. */
const MAX_KEPT = 64 << 20;

/** The snapshots' part of the metadata: their table, and their L1 tables. */
export interface SnapshotPlaces {
  readonly at: number;
  readonly length: number;
  readonly snapshots: readonly { readonly l1At: number; readonly l1Entries: number }[];
}

/** Byte ranges that are asked whether another one meets them. */
class Ranges {
  /** In order. */
  readonly #starts: Float64Array;
  /** The highest end of the ranges up to each. */
  readonly #ends: Float64Array;

  constructor(regions: readonly Region[]) {
    const used = regions.filter(({ length }) => length > 0).sort((one, other) => one.at - other.at);
    this.#starts = Float64Array.from(used, ({ at }) => at);
    let end = 0;
    this.#ends = Float64Array.from(used, ({ at, length }) => {
      end = Math.max(end, at + length);
      return end;
    });
  }

  meet(from: number, to: number): boolean {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle]! < to) low = middle + 1;
      else high = middle;
    }
    return low > 0 && this.#ends[low - 1]! > from;
  }

  some(test: (from: number, to: number) => boolean): boolean {
    return this.#starts.some((from, index) => test(from, this.#ends[index]!));
  }
}

/** Tables of one cluster each, which may be very many: their starts only. */
class Clusters {
  readonly #starts: Float64Array;
  readonly #length: number;

  constructor(table: Uint32Array, length: number, offset: (table: Uint32Array, index: number) => number) {
    const entries = table.length / 2;
    let used = 0;
    for (let index = 0; index < entries; index++) if (offset(table, index) !== 0) used += 1;
    this.#starts = new Float64Array(used);
    used = 0;
    for (let index = 0; index < entries; index++) {
      const at = offset(table, index);
      if (at !== 0) this.#starts[used++] = at;
    }
    this.#starts.sort();
    this.#length = length;
  }

  meet(from: number, to: number): boolean {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle]! < to) low = middle + 1;
      else high = middle;
    }
    return low > 0 && this.#starts[low - 1]! + this.#length > from;
  }

  some(test: (from: number, to: number) => boolean): boolean {
    return this.#starts.some((from) => test(from, from + this.#length));
  }
}

/** Whether an entry of the L1 table has bits set, but no offset. */
function namesHeader(l1: Uint32Array): boolean {
  for (let word = 0; word < l1.length; word += 2) {
    if ((l1[word] !== 0 || l1[word + 1] !== 0) && l1Offset(l1, word / 2) === 0) return true;
  }
  return false;
}

/** Where the metadata of an image is. One that was never loaded, of a check without repair, knows nothing. */
export class MetadataGuard {
  /** A write was refused: the image is to be marked corrupt. */
  refused = false;
  /** The reference says once only that it marks an image corrupt. */
  told = false;
  /** Something new has been written that the file has grown for. */
  written = false;
  readonly #report: (line: string) => void;
  readonly #places = new Map<MetadataKind, Ranges | Clusters>();
  #clusterSize = 1;
  /** What the file had before corrections that belong together, in their order. */
  #before: { readonly at: number; readonly bytes: Uint8Array }[] | undefined;
  #beforeBytes = 0;
  /** What takes the header for one of its tables: an offset of zero counts as none to QEMU, except in the counting. */
  #onHeader: MetadataKind | undefined;

  constructor(report: (line: string) => void) {
    this.#report = report;
  }

  /** Learns anew where everything is. */
  async load(file: Storage, header: CheckHeader, snapshots: SnapshotPlaces): Promise<void> {
    const { clusterSize } = header.geometry;
    this.#clusterSize = clusterSize;
    const set = (kind: MetadataKind, places: Ranges | Clusters): void => {
      this.#places.set(kind, places);
    };
    set('qcow2_header', new Ranges([{ at: 0, length: clusterSize }]));
    set('active L1 table', new Ranges([header.l1]));
    set('refcount table', new Ranges([header.refcountTable]));
    set('snapshot table', new Ranges([snapshots]));
    set(
      'inactive L1 table',
      new Ranges(
        snapshots.snapshots
          .filter(({ l1At }) => l1At !== 0)
          .map(({ l1At, l1Entries }) => ({ at: l1At, length: l1Entries * 8 })),
      ),
    );
    set('bitmap directory', new Ranges(header.bitmaps === undefined ? [] : [header.bitmaps.directory]));
    const l1 = await readTable(file, header.l1);
    set('active L2 table', new Clusters(l1, clusterSize, l1Offset));
    this.#onHeader = namesHeader(l1)
      ? 'active L2 table'
      : snapshots.snapshots.some(({ l1At, l1Entries }) => l1At === 0 && l1Entries > 0)
        ? 'inactive L1 table'
        : undefined;
    const refcountTable = await readTable(file, header.refcountTable);
    set('refcount block', new Clusters(refcountTable, clusterSize, refcountTableOffset));
  }

  /** The kind of metadata, other than `own`, in the clusters of these bytes. */
  find(at: number, length: number, own: readonly MetadataKind[]): MetadataKind | undefined {
    const size = this.#clusterSize;
    const from = Math.floor(at / size) * size;
    const to = Math.ceil((at + length) / size) * size;
    return KINDS.find((kind) => !own.includes(kind) && this.#places.get(kind)?.meet(from, to) === true);
  }

  /** What other metadata the header's cluster is taken for. (A refcount block in its midst is unaligned, and never read.) */
  inHeader(also: readonly MetadataKind[] = []): MetadataKind | undefined {
    return this.find(0, this.#clusterSize, ['qcow2_header', 'refcount block', ...also]) ?? this.#onHeader;
  }

  /** Whether a table of the active image lies over other metadata: writing to it will be refused. */
  tablesOverlap(): boolean {
    const l1 = this.#places.get('active L1 table');
    const l2 = this.#places.get('active L2 table');
    const meet = (own: MetadataKind, from: number, to: number) =>
      this.find(from, to - from, [own]) !== undefined;
    return (
      l1?.some((from, to) => meet('active L1 table', from, to)) === true ||
      l2?.some((from, to) => meet('active L2 table', from, to)) === true
    );
  }

  /** The counting has met the header as a table of a snapshot, which is not known beforehand. */
  metHeader(): void {
    this.#onHeader ??= 'inactive L2 table';
  }

  /** From now on `keep` keeps what `undo` writes back. */
  beginTogether(): void {
    this.#before = [];
  }

  /** Called before bytes are corrected in place. */
  async keep(file: Storage, at: number, length: number): Promise<void> {
    if (this.#before === undefined) return;
    this.#beforeBytes += length;
    if (this.#beforeBytes > MAX_KEPT) return;
    const bytes = new Uint8Array(length);
    await file.read(at, bytes);
    this.#before.push({ at, bytes });
  }

  /** Takes back what was corrected since `beginTogether`; not where that is too much to be kept in memory. */
  async undo(file: Storage): Promise<void> {
    if (this.#beforeBytes > MAX_KEPT) return;
    for (const { at, bytes } of this.#before?.reverse() ?? []) await file.write(at, bytes);
  }

  /** Throws where the header's cluster is taken for other metadata than `own`, too. */
  checkHeader(own: readonly MetadataKind[], also?: string): void {
    const kind = this.inHeader(own);
    if (kind !== undefined) this.#refuse(kind, also);
  }

  /** Throws where the bytes hold metadata other than `own`, after saying so; `also`: a line that follows. */
  check(at: number, length: number, own: readonly MetadataKind[], also?: string): void {
    const kind = this.find(at, length, own);
    if (kind !== undefined) this.#refuse(kind, also);
  }

  #refuse(kind: MetadataKind, also: string | undefined): never {
    this.refused = true;
    if (!this.told) {
      this.#report(
        `qcow2: Marking image as corrupt: Preventing invalid write on metadata (overlaps with ${kind}); further corruption events will be suppressed`,
      );
    }
    this.told = true;
    if (also !== undefined) this.#report(also);
    throw new ImageError('corrupt', 'Check failed: Input/output error', { errno: 'EIO', operation: 'check' });
  }
}
