/**
 * Keeps a repair from writing over metadata that lies where it should not. Damaged pointers can place one structure over
 * another; what is written to one then breaks the other. Before a write in place, or to clusters that count as free, the
 * range is compared with all other structures, those that are known without reading tables of snapshots.
 */
import type { Storage } from '../../storage/storage.js';
import { type CheckHeader, checkFailed, readTable } from './check-image.js';
import { l1Offset, refcountTableOffset } from './layout.js';
import { Clusters, clusterStarts, Ranges } from './places.js';

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
    set('active L2 table', new Clusters(clusterStarts(l1, l1Offset), clusterSize));
    this.#onHeader = namesHeader(l1)
      ? 'active L2 table'
      : snapshots.snapshots.some(({ l1At, l1Entries }) => l1At === 0 && l1Entries > 0)
        ? 'inactive L1 table'
        : undefined;
    const refcountTable = await readTable(file, header.refcountTable);
    set('refcount block', new Clusters(clusterStarts(refcountTable, refcountTableOffset), clusterSize));
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
    throw checkFailed('corrupt', 'EIO');
  }
}
