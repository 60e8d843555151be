/**
 * Keeps writes from going over metadata. In a damaged image an entry or a refcount may lie; what is about to be written is
 * compared with the places of the structures that the option `overlap-check` names.
 */
import type { Image } from './image.js';
import { type Geometry, l1Offset, refcountTableOffset } from './layout.js';
import { Clusters, clusterStarts, Ranges } from './places.js';
import { STRUCTURES, type Structure } from './runtime.js';
import { readSnapshotL1, type Snapshot } from './snapshots.js';

/** The structures in the reference's words. */
const WORDS: Readonly<Record<Structure, string>> = {
  'main-header': 'qcow2_header',
  'active-l1': 'active L1 table',
  'refcount-table': 'refcount table',
  'snapshot-table': 'snapshot table',
  'inactive-l1': 'inactive L1 table',
  'bitmap-directory': 'bitmap directory',
  'active-l2': 'active L2 table',
  'refcount-block': 'refcount block',
  'inactive-l2': 'inactive L2 table',
};

/** What metadata is never written over, whatever the option says: this program's own tables would no longer hold. */
const OWN: ReadonlySet<Structure> = new Set<Structure>([
  'main-header',
  'active-l1',
  'refcount-table',
  'active-l2',
  'refcount-block',
]);
const NONE = new Ranges([]);

type Offset = (table: Uint32Array, index: number) => number;

/** The clusters that a table with entries names, kept up while entries are added. */
class NamedClusters {
  readonly #geometry: Geometry;
  readonly #offset: Offset;
  #table: Uint32Array | undefined;
  #known: Clusters | undefined;
  #added: number[] = [];

  constructor(g: Geometry, offset: Offset) {
    this.#geometry = g;
    this.#offset = offset;
  }

  /** An entry names the cluster at `at` now. */
  add(at: number): void {
    if (this.#known !== undefined) this.#added.push(at);
  }

  meet(table: Uint32Array, from: number, to: number): boolean {
    const { clusterSize } = this.#geometry;
    if (this.#table !== table || this.#known === undefined) {
      this.#known = new Clusters(clusterStarts(table, this.#offset), clusterSize);
      this.#table = table;
      this.#added = [];
    }
    for (const at of this.#added)
      if (at < to && at + clusterSize > from) return this.#confirm(table, from, to);
    return this.#known.meet(from, to) && this.#confirm(table, from, to);
  }

  /** Entries that are gone are noticed here only. */
  #confirm(table: Uint32Array, from: number, to: number): boolean {
    this.#known = new Clusters(clusterStarts(table, this.#offset), this.#geometry.clusterSize);
    this.#added = [];
    return this.#known.meet(from, to);
  }
}

export class Overlaps {
  readonly #image: Image;
  readonly #l2: NamedClusters;
  readonly #blocks: NamedClusters;
  #inactiveL1 = NONE;
  #inactiveL2: Clusters | undefined;
  /** The refcount table in memory; an image that is only read has none. */
  refcountTable: Uint32Array | undefined;
  bitmapDirectory: { readonly at: number; readonly length: number } | undefined;

  constructor(image: Image) {
    this.#image = image;
    this.#l2 = new NamedClusters(image.geometry, l1Offset);
    this.#blocks = new NamedClusters(image.geometry, refcountTableOffset);
  }

  addedL2(at: number): void {
    this.#l2.add(at);
  }
  addedBlock(at: number): void {
    this.#blocks.add(at);
  }

  /** Other snapshots are in the image now. */
  async setSnapshots(snapshots: readonly Snapshot[]): Promise<void> {
    this.#inactiveL1 = new Ranges(
      snapshots.map(({ l1TableOffset, l1Size }) => ({ at: Number(l1TableOffset), length: l1Size * 8 })),
    );
    if (!this.#image.runtime.overlapChecks.has('inactive-l2')) return;
    const found = new Set<number>();
    for (const snapshot of snapshots) {
      const l1 = await readSnapshotL1(this.#image, snapshot);
      for (const at of clusterStarts(l1, l1Offset)) found.add(at);
    }
    this.#inactiveL2 = new Clusters(Float64Array.from(found), this.#image.geometry.clusterSize);
  }

  /** What guest data that goes to these host bytes would overwrite, in the reference's words. */
  byData(at: number, length: number): string | undefined {
    return this.#find(at, length, this.#image.runtime.overlapChecks, undefined);
  }

  /** The same for metadata of the kind `own`, or, where that is undefined, for clusters that count as free. */
  byMetadata(at: number, length: number, own: Structure | undefined): string | undefined {
    const { overlapChecks } = this.#image.runtime;
    return this.#find(at, length, overlapChecks, own) ?? this.#find(at, length, OWN, own);
  }

  #find(
    at: number,
    length: number,
    which: ReadonlySet<Structure>,
    own: Structure | undefined,
  ): string | undefined {
    const { clusterSize } = this.#image.geometry;
    const from = at - (at % clusterSize);
    const to = Math.ceil((at + length) / clusterSize) * clusterSize;
    for (const each of STRUCTURES) {
      if (each !== own && which.has(each) && this.#meets(each, from, to)) return WORDS[each];
    }
    return undefined;
  }

  #meets(structure: Structure, from: number, to: number): boolean {
    const { header, geometry, l1, snapshotTableBytes } = this.#image;
    const within = (start: number, bytes: number) => bytes > 0 && from < start + bytes && start < to;
    switch (structure) {
      case 'main-header':
        return from < geometry.clusterSize;
      case 'active-l1':
        return within(Number(header.l1TableOffset), header.l1Size * 8);
      case 'refcount-table':
        return within(
          Number(header.refcountTableOffset),
          header.refcountTableClusters * geometry.clusterSize,
        );
      case 'snapshot-table':
        return within(Number(header.snapshotsOffset), snapshotTableBytes);
      case 'inactive-l1':
        return this.#inactiveL1.meet(from, to);
      case 'bitmap-directory':
        return (
          this.bitmapDirectory !== undefined && within(this.bitmapDirectory.at, this.bitmapDirectory.length)
        );
      case 'active-l2':
        return this.#l2.meet(l1, from, to);
      case 'refcount-block':
        return this.refcountTable !== undefined && this.#blocks.meet(this.refcountTable, from, to);
      case 'inactive-l2':
        return this.#inactiveL2?.meet(from, to) === true;
    }
  }
}
