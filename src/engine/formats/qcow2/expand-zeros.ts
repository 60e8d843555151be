/**
 * Clusters that only say "zeros" become ones without that flag, which version 2 does not have: in the active tables and in
 * those of all snapshots. The image reads the same at every instant.
 */
import { ImageError } from '../../error.js';
import type { AmendContext } from '../../node/driver.js';
import { hex, type L2Table } from './image.js';
import { clearCluster, clusterKind, Kind, l1Offset, offsetAt, setCluster } from './layout.js';
import type { WriteParts } from './node.js';
import { readSnapshotL1, type Snapshot } from './snapshots.js';

/** Places of all L2 tables, as often as L1 entries lead there; 0 for entries that lead nowhere. */
async function entriesOf({ image }: WriteParts, snapshots: readonly Snapshot[]): Promise<number[]> {
  const { clusterSize } = image.geometry;
  const found: number[] = [];
  const collect = (l1: Uint32Array) => {
    for (let index = 0; index * 2 < l1.length; index++) {
      const at = l1Offset(l1, index);
      if (at % clusterSize !== 0 || !Number.isSafeInteger(at)) {
        throw image.corrupt(`L2 table offset ${hex(at)} unaligned (L1 index: ${hex(index)})`);
      }
      found.push(at);
    }
  };
  collect(image.l1);
  for (const snapshot of snapshots) collect(await readSnapshotL1(image, snapshot));
  return found;
}

/**
 * Expands all zero clusters and writes everything back.
 *
 * @throws ImageError `unsupported` for clusters that version 2 cannot have, before anything is changed.
 */
export async function expandZeros(
  parts: WriteParts,
  snapshots: readonly Snapshot[],
  context: AmendContext,
): Promise<void> {
  const { image } = parts;
  const entries = await entriesOf(parts, snapshots);
  if (image.header.compressionType !== 0) await refuseCompressed(parts, new Set(entries), context);
  // A table that several entries share is expanded once.
  const expanded = new Set([0]);
  let done = 0;
  for (const at of entries) {
    if (!expanded.has(at)) {
      await context.pace();
      await new Expansion(parts, at).run();
      expanded.add(at);
    }
    context.progress(++done, entries.length);
  }
  await image.writeback.run();
}

/** Version 2 has one way to compress. */
async function refuseCompressed(
  { image }: WriteParts,
  tables: ReadonlySet<number>,
  context: AmendContext,
): Promise<void> {
  const { l2Entries, l2Words } = image.geometry;
  for (const at of tables) {
    if (at === 0) continue;
    await context.pace();
    let table = image.l2.peek(at);
    while (table === undefined) {
      await image.l2.load(at);
      table = image.l2.peek(at);
    }
    for (let entry = 0; entry < l2Entries; entry++) {
      if (clusterKind(table.table, entry * l2Words, image.geometry) === Kind.compressed) {
        const bits = hex(Number(image.header.incompatible));
        throw new ImageError(
          'unsupported',
          `Cannot downgrade an image with incompatible features ${bits} set`,
        );
      }
    }
  }
}

/** The entries of one L2 table, which may be shared: whatever they refer to has as many references as the table has. */
class Expansion {
  readonly #parts: WriteParts;
  readonly #at: number;

  constructor(parts: WriteParts, at: number) {
    this.#parts = parts;
    this.#at = at;
  }

  async #table(): Promise<L2Table> {
    const { image, tables } = this.#parts;
    for (;;) {
      const due = tables.due();
      if (due !== undefined) await due;
      const found = image.l2.peek(this.#at);
      if (found !== undefined && tables.due() === undefined) return found;
      if (found === undefined) await image.l2.load(this.#at);
    }
  }

  async run(): Promise<void> {
    const { image, refcounts } = this.#parts;
    const { geometry, header } = image;
    const { l2Entries, l2Words, clusterSize } = geometry;
    const uses = Math.max(1, await refcounts.get(this.#at / clusterSize));
    const kindOf = (table: L2Table, entry: number) => clusterKind(table.table, entry * l2Words, geometry);
    let table = await this.#table();
    for (let entry = 0; entry < l2Entries; ) {
      const kind = kindOf(table, entry);
      if (kind === Kind.zeroAlloc) {
        await this.#keepOrDrop(entry, uses);
        table = await this.#table();
        // What had to be dropped is a plain zero cluster, or nothing, now.
        if (kindOf(table, entry) !== Kind.zeroPlain) entry++;
      } else if (kind !== Kind.zeroPlain) entry++;
      else if (header.backing === undefined) {
        clearCluster(table.table, entry * l2Words, false, geometry);
        this.#parts.tables.changed(table, entry, 1);
        entry++;
      } else {
        let count = 1;
        while (entry + count < l2Entries && kindOf(table, entry + count) === Kind.zeroPlain) count++;
        entry += await this.#fill(entry, count, uses);
        table = await this.#table();
      }
    }
  }

  /** Zeros into new host clusters for entries with none; gives how many were dealt with. */
  async #fill(entry: number, wanted: number, uses: number): Promise<number> {
    const { image, refcounts, tables } = this.#parts;
    const { clusterSize, l2Words } = image.geometry;
    let run = refcounts.allocate(wanted);
    while (run instanceof Promise) {
      await run;
      run = refcounts.allocate(wanted);
    }
    const { at, count } = run;
    await image.file.zero({ at, length: count * clusterSize });
    for (let more = 1; more < uses; more++) await refcounts.raise(at / clusterSize, count);
    const table = await this.#table();
    for (let i = 0; i < count; i++) {
      setCluster(table.table, (entry + i) * l2Words, at + i * clusterSize, false, uses === 1);
    }
    tables.changed(table, entry, count);
    return count;
  }

  /** An entry whose host cluster is nobody else's keeps it, with zeros in it; another lets it go. */
  async #keepOrDrop(entry: number, uses: number): Promise<void> {
    const { image, refcounts, tables } = this.#parts;
    const { geometry } = image;
    const { clusterSize, l2Words } = geometry;
    const word = entry * l2Words;
    const at = offsetAt((await this.#table()).table, word);
    if (at % clusterSize !== 0 || !Number.isSafeInteger(at)) {
      throw image.corrupt(`Preallocated zero cluster offset ${hex(at)} unaligned (L2 index: ${hex(entry)})`);
    }
    const own = (await refcounts.get(at / clusterSize)) === uses;
    if (own) {
      image.guardData(at, clusterSize);
      await image.file.zero({ at, length: clusterSize });
    }
    const table = await this.#table();
    if (own) setCluster(table.table, word, at, false, uses === 1);
    else {
      clearCluster(table.table, word, true, geometry);
      for (let use = 0; use < uses; use++) refcounts.deferFree(at, clusterSize);
    }
    tables.changed(table, entry, 1);
  }
}
