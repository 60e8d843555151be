/**
 * Reference counts of host clusters: the allocator, refcount blocks and the refcount table.
 *
 * Counts go up in memory at once and are written before any entry that uses the cluster (see the stages in open.ts). They
 * go down only after the last such entry is gone from the disk: `deferFree` notes what to give back, and the writeback's
 * last stage does it. So a crash leaks clusters at worst.
 *
 * Functions that may need a refcount block from disk answer with what was asked or with a promise: wait for it, and ask
 * again.
 */
import { ImageError } from '../../error.js';
import { type CachedTable, TableCache } from '../metadata-cache.js';
import { hex, type Image } from './image.js';
import {
  firstZero,
  type Geometry,
  headerOffset,
  loadTable,
  MAX_REFCOUNT_TABLE_BYTES,
  type RefcountAccess,
  refcountAccess,
  refcountTableOffset,
  setRefcountTable,
  storeTable,
  tableBytes,
} from './layout.js';
import { Freed } from './runtime.js';

type Block = CachedTable<Uint8Array>;

/** A run of host clusters. */
export interface HostRun {
  readonly at: number;
  /** In clusters. */
  readonly count: number;
}

/** How many runs may wait to be freed before a writeback is due. */
const MAX_DEFERRED = 16384;
/** Words of a deferred run. */
const DEFERRED_WORDS = 3;
const TABLE_SECTOR_WORDS = 128;

export class Refcounts {
  readonly #image: Image;
  #geometry: Geometry;
  #access: RefcountAccess;
  readonly blocks: TableCache<Uint8Array>;
  /** The refcount table, host order. */
  table: Uint32Array;
  #tableAt: number;
  /** Sectors of the table (by index) that differ from the file. */
  readonly #dirtySectors = new Set<number>();
  /** The table's place in the file before it was moved, until the header points to the new one. */
  #movedFrom: HostRun | undefined;
  /** No free cluster is below this one, as far as is known. */
  #hint = 0;
  /** Clusters to be freed when nothing on disk refers to them any more: triples of offset, length in bytes, and why. */
  #deferred: number[] = [];
  /** Host byte where the next compressed cluster may begin, inside a cluster that is used for others. */
  #packCursor: number | undefined;
  /** Tells others that a cluster has become free: caches forget it. */
  onFree: (at: number) => void = () => {};

  private constructor(image: Image, table: Uint32Array, tableAt: number) {
    this.#image = image;
    this.#geometry = image.geometry;
    this.#access = refcountAccess(image.geometry.refcountOrder);
    this.table = table;
    image.overlaps.refcountTable = table;
    this.#tableAt = tableAt;
    this.blocks = new TableCache<Uint8Array>(
      image.file,
      image.geometry.clusterSize,
      image.refcountCacheBytes,
      {
        fromDisk: (bytes) => bytes,
        toDisk: (block, from, to) => new Uint8Array(block.subarray(from, to)),
        events: { load: 'refblock_load', update: 'refblock_update_part' },
      },
    );
  }

  /** Reads the refcount table, whose place and size the header check has accepted. */
  static async open(image: Image): Promise<Refcounts> {
    const { header, geometry, file } = image;
    const table = new Uint32Array((header.refcountTableClusters * geometry.clusterSize) / 4);
    const at = Number(header.refcountTableOffset);
    file.event?.('reftable_load');
    await file.read(at, tableBytes(table));
    return new Refcounts(image, loadTable(table), at);
  }

  /** Takes over what is in the file now, after it was repaired or its refcounts were built anew. */
  async reload(): Promise<void> {
    const { header, geometry, file } = this.#image;
    this.#geometry = geometry;
    this.#access = refcountAccess(geometry.refcountOrder);
    const table = new Uint32Array((header.refcountTableClusters * geometry.clusterSize) / 4);
    this.#tableAt = Number(header.refcountTableOffset);
    await file.read(this.#tableAt, tableBytes(table));
    this.table = loadTable(table);
    this.#image.overlaps.refcountTable = this.table;
    this.blocks.clear();
    this.#dirtySectors.clear();
    this.#hint = 0;
    this.#packCursor = undefined;
  }

  get tableDirty(): boolean {
    return this.#dirtySectors.size > 0;
  }
  get tableMoved(): boolean {
    return this.#movedFrom !== undefined;
  }
  get hasDeferred(): boolean {
    return this.#deferred.length > 0;
  }
  /** Enough has gathered in memory for a writeback to be due. */
  get crowded(): boolean {
    return this.blocks.crowded || this.#deferred.length > DEFERRED_WORDS * MAX_DEFERRED;
  }

  // ------------------------------------------------------------------------------------------------------- looking up

  /** The block with the count of cluster `index`: undefined where there is none (count 0), a promise where it is not in memory. */
  #block(index: number): Block | undefined | Promise<void> {
    const slot = Math.floor(index / this.#geometry.refcountBlockEntries);
    if (slot * 2 >= this.table.length) return undefined;
    const at = refcountTableOffset(this.table, slot);
    if (at === 0) return undefined;
    const found = this.blocks.peek(at);
    if (found !== undefined) return found;
    if (at % this.#geometry.clusterSize !== 0 || !Number.isSafeInteger(at)) {
      throw this.#image.corrupt(`Refblock offset ${hex(at)} unaligned (reftable index: ${hex(slot)})`);
    }
    this.#image.guardMetadata(at, this.#geometry.clusterSize, 'refcount-block');
    return this.blocks.load(at);
  }

  /** The count of one cluster. */
  async get(cluster: number): Promise<number> {
    for (;;) {
      const block = this.#block(cluster);
      if (block === undefined) return 0;
      if (!(block instanceof Promise)) {
        return this.#access.get(block.table, cluster % this.#geometry.refcountBlockEntries);
      }
      await block;
    }
  }

  /** The count of one cluster where its block is in memory, else a promise: wait for it, and ask again. */
  count(cluster: number): number | Promise<void> {
    const block = this.#block(cluster);
    if (block === undefined) return 0;
    if (block instanceof Promise) return block;
    return this.#access.get(block.table, cluster % this.#geometry.refcountBlockEntries);
  }

  /** The last cluster below `end` that is in use; -1 for none. */
  async lastUsed(end: number): Promise<number> {
    const { refcountBlockEntries } = this.#geometry;
    for (
      let slot = Math.min(Math.ceil(end / refcountBlockEntries), this.table.length / 2) - 1;
      slot >= 0;
      slot--
    ) {
      let block = this.#block(slot * refcountBlockEntries);
      while (block instanceof Promise) {
        await block;
        block = this.#block(slot * refcountBlockEntries);
      }
      if (block === undefined) continue;
      const first = slot * refcountBlockEntries;
      for (let cluster = Math.min(end, first + refcountBlockEntries) - 1; cluster >= first; cluster--) {
        if (this.#access.get(block.table, cluster - first) !== 0) return cluster;
      }
    }
    return -1;
  }

  /**
   * Adds one to the counts of clusters that are in use. Nothing is changed where one of them is at its limit already:
   * `limit`, EINVAL; or not in use, which means damage.
   */
  async raise(first: number, count: number): Promise<void> {
    const { refcountBlockEntries, maxRefcount } = this.#geometry;
    for (let cluster = first; cluster < first + count; ) {
      const value = this.count(cluster);
      if (value instanceof Promise) {
        await value;
        continue;
      }
      if (value === 0 || value >= maxRefcount) {
        throw new ImageError(value === 0 ? 'corrupt' : 'limit', 'Invalid argument', {
          errno: 'EINVAL',
          path: this.#image.file.filename,
        });
      }
      cluster++;
    }
    for (let cluster = first; cluster < first + count; ) {
      const block = this.#block(cluster);
      if (block instanceof Promise) {
        await block;
        continue;
      }
      if (block === undefined) throw new ImageError('internal', 'a refcount block has gone');
      const entry = cluster % refcountBlockEntries;
      const end = Math.min(refcountBlockEntries, entry + first + count - cluster);
      for (let each = entry; each < end; each++) {
        this.#access.set(block.table, each, this.#access.get(block.table, each) + 1);
      }
      this.#markChanged(block, entry, end - entry);
      cluster += end - entry;
    }
  }

  #set(block: Block, entry: number, count: number, value: number): void {
    for (let i = entry; i < entry + count; i++) this.#access.set(block.table, i, value);
    this.#markChanged(block, entry, count);
  }

  #markChanged(block: Block, entry: number, count: number): void {
    const bits = this.#geometry.refcountBits;
    this.blocks.markDirty(block, Math.floor((entry * bits) / 8), Math.ceil(((entry + count) * bits) / 8));
  }

  // -------------------------------------------------------------------------------------------------------- allocating

  /** Up to `wanted` clusters in one run, the first free ones, counted once each. */
  allocate(wanted: number): HostRun | Promise<void> {
    this.#image.file.event?.('cluster_alloc');
    const entries = this.#geometry.refcountBlockEntries;
    for (;;) {
      const block = this.#coveringBlock(this.#hint);
      if (block instanceof Promise) return block;
      const entry = firstZero(this.#access, block.table, this.#hint % entries, entries);
      const base = this.#hint - (this.#hint % entries);
      this.#hint = base + entry;
      if (entry === entries) continue;
      let count = 1;
      const most = Math.min(wanted, entries - entry);
      while (count < most && this.#access.get(block.table, entry + count) === 0) count++;
      return this.#take(block, base + entry, count);
    }
  }

  /** Exactly `count` clusters, one at least, in one run. */
  async allocateRun(count: number): Promise<HostRun> {
    if (count < 1) throw new RangeError(`a run of ${count} clusters`);
    this.#image.file.event?.('cluster_alloc');
    const entries = this.#geometry.refcountBlockEntries;
    // A new block takes the first cluster of its own range: no longer run would ever be free.
    if (count >= entries) return this.#allocateLong(count);
    let start = this.#hint;
    let position = start;
    for (;;) {
      const block = this.#coveringBlock(position);
      if (block instanceof Promise) {
        await block;
        // Others may have allocated meanwhile; what was seen free must be looked at again.
        start = Math.max(start, this.#hint);
        position = start;
        continue;
      }
      const entry = position % entries;
      const free = firstZero(this.#access, block.table, entry, entries);
      if (free > entry) {
        position += free - entry;
        start = position;
        continue;
      }
      position++;
      if (position - start === count) break;
    }
    for (let cluster = start; cluster < start + count; ) {
      const block = this.#coveringBlock(cluster);
      // All of them were in memory a moment ago, but a cache of few blocks may have had to let one go.
      if (block instanceof Promise) {
        await block;
        continue;
      }
      const length = Math.min(start + count - cluster, entries - (cluster % entries));
      this.#set(block, cluster % entries, length, 1);
      cluster += length;
    }
    if (start === this.#hint) this.#hint = start + count;
    const { clusterSize } = this.#geometry;
    this.checkPlace(start * clusterSize, count * clusterSize);
    return { at: start * clusterSize, count };
  }

  /** A run over several blocks' ranges: blocks that are missing there are put behind it. */
  async #allocateLong(count: number): Promise<HostRun> {
    const { refcountBlockEntries: entries, clusterSize } = this.#geometry;
    // Behind the run: a block for each of its ranges, and for those that these blocks reach into.
    const wanted = count + Math.ceil(count / (entries - 1)) + 2;
    let start = this.#hint;
    let position = start;
    while (position - start < wanted) {
      const block =
        Math.floor(position / entries) * 2 < this.table.length ? this.#block(position) : undefined;
      let wait = block instanceof Promise ? block : undefined;
      if (block === undefined) {
        wait = this.#image.writeback.running;
        if (wait === undefined && Math.floor((start + wanted) / entries) * 2 >= this.table.length) {
          this.#growTable((this.table.length / 2) * entries);
          start = this.#hint;
          position = start;
          continue;
        }
      }
      if (wait !== undefined) {
        await wait;
        start = Math.max(start, this.#hint);
        position = start;
        continue;
      }
      const used = block !== undefined && this.#access.get((block as Block).table, position % entries) !== 0;
      position++;
      if (used) start = position;
    }
    this.checkPlace(start * clusterSize, wanted * clusterSize);
    let end = start + count;
    for (let slot = Math.floor(start / entries); slot <= Math.floor((end - 1) / entries); slot++) {
      if (refcountTableOffset(this.table, slot) !== 0) continue;
      this.blocks.add(end * clusterSize, new Uint8Array(clusterSize));
      setRefcountTable(this.table, slot, end * clusterSize);
      this.#image.overlaps.addedBlock(end * clusterSize);
      this.#dirtySectors.add(Math.floor((slot * 2) / TABLE_SECTOR_WORDS));
      end++;
    }
    for (let cluster = start; cluster < end; ) {
      const block = this.#block(cluster);
      if (block instanceof Promise) {
        await block;
        continue;
      }
      const length = Math.min(end - cluster, entries - (cluster % entries));
      this.#set(block!, cluster % entries, length, 1);
      cluster += length;
    }
    if (start === this.#hint) this.#hint = end;
    return { at: start * clusterSize, count };
  }

  #take(block: Block, cluster: number, count: number): HostRun {
    const { clusterSize, refcountBlockEntries } = this.#geometry;
    const at = cluster * clusterSize;
    this.checkPlace(at, count * clusterSize);
    this.#set(block, cluster % refcountBlockEntries, count, 1);
    this.#hint = cluster + count;
    return { at, count };
  }

  /** Clusters that count as free are about to be used: where metadata is known to be, the counts lie. */
  checkPlace(at: number, length: number): void {
    this.#image.guardMetadata(at, length, undefined);
  }

  /** The block for a cluster that is about to be used; made where there is none. */
  #coveringBlock(cluster: number): Block | Promise<void> {
    const entries = this.#geometry.refcountBlockEntries;
    const slot = Math.floor(cluster / entries);
    const missing = slot * 2 >= this.table.length;
    const found = missing ? undefined : this.#block(cluster);
    if (found !== undefined) return found;
    // The table must not get entries for blocks that a running writeback has not written.
    const { running } = this.#image.writeback;
    if (running !== undefined) return running;
    if (missing) {
      this.#growTable(cluster);
      return this.#coveringBlock(cluster);
    }
    // Nothing in the block's range is in use: the block takes the first cluster asked for and counts itself.
    this.checkPlace(cluster * this.#geometry.clusterSize, this.#geometry.clusterSize);
    return this.#addBlock(slot, cluster);
  }

  /** Puts a new block for table slot `slot` at host cluster `cluster`, which is in the block's own range. */
  #addBlock(slot: number, cluster: number): Block {
    this.#image.file.event?.('refblock_alloc');
    const { clusterSize, refcountBlockEntries } = this.#geometry;
    const block = this.blocks.add(cluster * clusterSize, new Uint8Array(clusterSize));
    this.#set(block, cluster % refcountBlockEntries, 1, 1);
    setRefcountTable(this.table, slot, cluster * clusterSize);
    this.#image.overlaps.addedBlock(cluster * clusterSize);
    this.#dirtySectors.add(Math.floor((slot * 2) / TABLE_SECTOR_WORDS));
    return block;
  }

  /**
   * A larger table, in memory; the writeback moves it. It takes clusters from `cluster` on, which is beyond all that the
   * present table covers, together with the blocks that count it and themselves.
   */
  #growTable(cluster: number): void {
    const { clusterSize, refcountBlockEntries } = this.#geometry;
    const perCluster = clusterSize / 8;
    const oldClusters = this.table.length / 2 / perCluster;
    // The table covers the cluster asked for, itself, and half as much again as before.
    const reach = Math.floor(cluster / refcountBlockEntries) + 1;
    let clusters = Math.ceil((oldClusters * 3) / 2);
    while (clusters * perCluster < reach + Math.ceil((clusters + 2) / refcountBlockEntries) + 1) clusters++;
    if (clusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
      clusters = MAX_REFCOUNT_TABLE_BYTES / clusterSize;
      if (clusters * perCluster < reach + 1) {
        throw new ImageError('no-space', 'File too large', {
          errno: 'EFBIG',
          path: this.#image.file.filename,
        });
      }
    }
    this.checkPlace(cluster * clusterSize, (clusters + 2) * clusterSize);
    const table = new Uint32Array(clusters * perCluster * 2);
    table.set(this.table);
    if (this.#movedFrom === undefined) this.#movedFrom = { at: this.#tableAt, count: oldClusters };
    // Moved before it was ever written: its place is simply free again.
    else this.deferFree(this.#tableAt, oldClusters * clusterSize);
    this.table = table;
    this.#image.overlaps.refcountTable = table;
    this.#tableAt = cluster * clusterSize;
    for (let sector = 0; sector < table.length / TABLE_SECTOR_WORDS; sector++) this.#dirtySectors.add(sector);

    // Blocks for all slots that the table and the blocks themselves reach into.
    let next = cluster + clusters;
    const first = Math.floor(cluster / refcountBlockEntries);
    const blocks: { slot: number; cluster: number }[] = [];
    for (let slot = first; slot <= Math.floor((next - 1) / refcountBlockEntries); slot++) {
      blocks.push({ slot, cluster: next++ });
    }
    const added = blocks.map((b) => {
      const at = b.cluster * clusterSize;
      setRefcountTable(table, b.slot, at);
      return this.blocks.add(at, new Uint8Array(clusterSize));
    });
    for (let used = cluster; used < next; used++) {
      this.#set(added[Math.floor(used / refcountBlockEntries) - first]!, used % refcountBlockEntries, 1, 1);
    }
  }

  /**
   * Room for `length` bytes of compressed data, not crossing into a cluster that is not counted for it. Its clusters are
   * shared with other compressed data: each use counts.
   */
  allocateBytes(length: number): { at: number } | Promise<void> {
    this.#image.file.event?.('cluster_alloc_bytes');
    const { clusterSize, refcountBlockEntries, maxRefcount } = this.#geometry;
    const cursor = this.#packCursor;
    if (cursor !== undefined) {
      const cluster = Math.floor(cursor / clusterSize);
      const block = this.#block(cluster);
      if (block instanceof Promise) return block;
      const entry = cluster % refcountBlockEntries;
      const count = block === undefined ? 0 : this.#access.get(block.table, entry);
      const room = (cluster + 1) * clusterSize - cursor;
      if (block !== undefined && count > 0 && count < maxRefcount) {
        if (length <= room) {
          this.#set(block, entry, 1, count + 1);
          this.#advance(cursor, length);
          return { at: cursor };
        }
        // It may go on into the next cluster where that one is the next free one.
        const next = this.allocate(1);
        if (next instanceof Promise) return next;
        if (next.at === (cluster + 1) * clusterSize) {
          this.#set(block, entry, 1, count + 1);
          this.#advance(cursor, length);
          return { at: cursor };
        }
        this.#advance(next.at, length);
        return { at: next.at };
      }
    }
    const fresh = this.allocate(1);
    if (fresh instanceof Promise) return fresh;
    this.#advance(fresh.at, length);
    return { at: fresh.at };
  }

  #advance(at: number, length: number): void {
    const end = at + length;
    this.#packCursor = end % this.#geometry.clusterSize === 0 ? undefined : end;
  }

  // ------------------------------------------------------------------------------------------------------------ freeing

  /** Takes one from the counts of the clusters that the bytes touch, when no entry on disk refers to them any more. */
  deferFree(at: number, length: number, why: Freed = Freed.other): void {
    const deferred = this.#deferred;
    const last = deferred.length - DEFERRED_WORDS;
    if (
      last >= 0 &&
      deferred[last]! + deferred[last + 1]! === at &&
      deferred[last + 2] === why &&
      this.#aligned(at)
    ) {
      deferred[last + 1]! += length;
      return;
    }
    deferred.push(at, length, why);
  }

  #aligned(at: number): boolean {
    return at % this.#geometry.clusterSize === 0;
  }

  /** The writeback's last stage: what was deferred is freed, and the blocks written. */
  async freeDeferred(): Promise<void> {
    try {
      await this.#freeDeferred();
    } catch (error) {
      const why = error instanceof ImageError ? error.message : String(error);
      this.#image.say(`qcow2_free_clusters failed: ${why}`);
      throw error;
    }
  }

  async #freeDeferred(): Promise<void> {
    const work = this.#deferred;
    this.#deferred = [];
    const { clusterSize } = this.#geometry;
    if (work.length > 0) this.#image.file.event?.('cluster_free');
    const { passDiscard } = this.#image.runtime;
    for (let i = 0; i < work.length; i += DEFERRED_WORDS) {
      const first = Math.floor(work[i]! / clusterSize);
      const end = Math.ceil((work[i]! + work[i + 1]!) / clusterSize);
      if (passDiscard[work[i + 2] as Freed]) await this.#discardLastUses(first, end);
      await this.release(first, end - first);
    }
    await this.blocks.write();
  }

  /** Gives the host space of those clusters back that have one use left. They still count as used, so nobody takes them. */
  async #discardLastUses(first: number, end: number): Promise<void> {
    const { clusterSize } = this.#geometry;
    const cursor = this.#packCursor === undefined ? -1 : Math.floor(this.#packCursor / clusterSize);
    if (cursor >= first && cursor < end) this.#packCursor = undefined;
    let start = first;
    for (let cluster = first; cluster <= end; cluster++) {
      if (cluster < end && (await this.get(cluster)) === 1) continue;
      if (cluster > start) {
        const range = { at: start * clusterSize, length: (cluster - start) * clusterSize };
        // A hint: a storage that cannot, need not.
        await this.#image.file.discard(range).catch(() => {});
      }
      start = cluster + 1;
    }
  }

  /** Takes one from the counts of clusters that nothing on disk refers to. */
  async release(first: number, count: number): Promise<void> {
    const { refcountBlockEntries, clusterSize } = this.#geometry;
    for (let cluster = first; cluster < first + count; ) {
      const block = this.#block(cluster);
      if (block instanceof Promise) {
        await block;
        continue;
      }
      const end = Math.min(
        first + count,
        (Math.floor(cluster / refcountBlockEntries) + 1) * refcountBlockEntries,
      );
      for (; cluster < end; cluster++) {
        const entry = cluster % refcountBlockEntries;
        const value = block === undefined ? 0 : this.#access.get(block.table, entry);
        // Already zero in a damaged image: there is nothing to take, and `check` will tell.
        if (block === undefined || value === 0) continue;
        this.#set(block, entry, 1, value - 1);
        if (value > 1) continue;
        this.onFree(cluster * clusterSize);
        if (cluster < this.#hint) this.#hint = cluster;
        if (this.#packCursor !== undefined && Math.floor(this.#packCursor / clusterSize) === cluster) {
          this.#packCursor = undefined;
        }
      }
    }
  }

  // ----------------------------------------------------------------------------------------------------------- writing

  /** Writes the changed parts of the table; all of it, to its new place, where it has grown. */
  async writeTable(): Promise<void> {
    const sectors = [...this.#dirtySectors].sort((a, b) => a - b);
    const table = this.table;
    const at = this.#tableAt;
    this.#dirtySectors.clear();
    try {
      for (let i = 0; i < sectors.length; ) {
        let end = i + 1;
        while (end < sectors.length && sectors[end] === sectors[end - 1]! + 1) end++;
        const from = sectors[i]! * TABLE_SECTOR_WORDS;
        const to = (sectors[end - 1]! + 1) * TABLE_SECTOR_WORDS;
        this.#image.file.event?.('reftable_update');
        await this.#image.file.write(at + from * 4, storeTable(table, from, to));
        i = end;
      }
    } catch (error) {
      for (const sector of sectors) this.#dirtySectors.add(sector);
      throw error;
    }
  }

  /** Lets the header point to the table's new place: one write, so that both fields change together. */
  async writePointer(): Promise<void> {
    const { header, geometry, file } = this.#image;
    const old = this.#movedFrom!;
    const clusters = (this.table.length * 4) / geometry.clusterSize;
    const bytes = new Uint8Array(12);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(0, BigInt(this.#tableAt));
    view.setUint32(8, clusters);
    await file.write(headerOffset.refcountTableOffset, bytes);
    header.refcountTableOffset = BigInt(this.#tableAt);
    header.refcountTableClusters = clusters;
    this.#movedFrom = undefined;
    this.deferFree(old.at, old.count * geometry.clusterSize);
  }
}
