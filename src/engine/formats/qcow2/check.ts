/**
 * `check` of a qcow2 image, and its repair. For the driver: `import { checker, repairDirty } from './check.js'`; its node
 * satisfies `CheckTarget`.
 *
 * The checker looks at the file itself, not at the driver's caches, and believes nothing but the header. It counts the
 * references to each host cluster (from the header, the L1 and L2 tables of guest and snapshots, the snapshot table,
 * the bitmaps, the refcount structure), compares them with the recorded refcounts, and compares these with the copied
 * flags, which say that a refcount is exactly one.
 */
import { ImageError } from '../../error.js';
import type { CheckContext, CheckFacet, CheckResult } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { countBitmaps } from './check-bitmaps.js';
import { ReferenceCounts } from './check-counts.js';
import { type CheckState, checkFailed, readCheckHeader } from './check-image.js';
import { MetadataGuard } from './check-overlap.js';
import { type Comparison, checkRefcountBlocks, compareRefcounts, DiskRefcounts } from './check-refcounts.js';
import { countSnapshots, readSnapshotTable, type SnapshotTable } from './check-snapshots.js';
import { type Dangling, TableCounter } from './check-tables.js';
import { Incompatible } from './layout.js';
import { clearMarks, markCorrupt, rebuildRefcounts, rewriteSnapshotTable } from './repair.js';

/** What the checker needs of an open image. */
export interface CheckTarget {
  readonly file: Storage;
  /** Writes cached metadata to the file and forgets it: called before the check. */
  quiesce?(): Promise<void>;
  /** Reads header, L1 and refcount tables anew: called after a repair. */
  reload?(): Promise<void>;
}

/** The check facet of a qcow2 node. */
export function checker(target: CheckTarget): CheckFacet {
  return { check: (context) => checkImage(target, context) };
}

/**
 * What opening for writing does with an image whose dirty bit is set (lazy refcounts, not closed cleanly): repairs all,
 * and throws where that does not succeed. `report` gets the lines that the reference prints to stderr on the way.
 */
export async function repairDirty(
  target: CheckTarget,
  report: (line: string) => void = () => {},
): Promise<void> {
  const repair = { leaks: true, errors: true };
  let result: CheckResult;
  try {
    result = await checkImage(target, { repair, report });
  } catch (error) {
    if (error instanceof ImageError) throw error.prefixed('Could not repair dirty image: ');
    throw error;
  }
  if (result.checkErrors > 0 || result.corruptions > 0) {
    throw new ImageError('corrupt', 'Could not repair dirty image: Input/output error', { errno: 'EIO' });
  }
}

async function checkImage(target: CheckTarget, context: CheckContext): Promise<CheckResult> {
  await target.quiesce?.();
  const result: CheckResult = {
    checkErrors: 0,
    corruptions: 0,
    leaks: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
  };
  const repairing = context.repair.leaks || context.repair.errors;
  try {
    await checkInPlace(target.file, context, result);
  } finally {
    if (repairing) await target.reload?.();
  }
  return result;
}

async function checkInPlace(file: Storage, context: CheckContext, result: CheckResult): Promise<void> {
  const guard = new MetadataGuard(context.report);
  const header = await readCheckHeader(file);
  const { size } = file;
  const state: CheckState = { file, context, result, guard, header };
  try {
    await checkAndRepair(state);
  } catch (error) {
    // a write was refused: the damage is not for others to write over either
    if (guard.refused) {
      await guard.undo(file);
      // what the file was made longer by, for a refcount block that is said to lie there, was in vain
      if (!guard.written && file.size > size) await file.truncate(size);
      await markCorrupt({ ...state, header: await readCheckHeader(file) });
    }
    throw error;
  }
}

async function checkAndRepair(first: CheckState): Promise<void> {
  let state = first;
  const { file, context, result, guard } = state;
  const { repair } = context;
  const repairing = repair.leaks || repair.errors;
  const snapshots = await readSnapshotTable(state);
  const inSnapshotTable = result.corruptions;
  if (repairing) await guard.load(file, state.header, snapshots);
  let pass = await countAll(state, snapshots, repair.errors);
  statistics(state, pass);

  let comparison = await compareRefcounts(state, pass.counts, pass.disk);
  if (repairing && pass.disk.damaged) {
    await markCorrupt(state);
    state = { ...state, header: await readCheckHeader(file) };
  }
  const rebuild = pass.rebuild || comparison.rebuild;
  // entries that the count has cleared must not point anywhere any more before their clusters are free
  if (pass.counter.repairs > 0) await file.flush();
  let corrected = false;

  if (repairing && rebuild) {
    if (!repair.errors) {
      context.report('ERROR need to rebuild refcount structures');
      throw checkFailed('corrupt', 'EIO');
    }
    context.report('Rebuilding refcount structure');
    const before = { ...result };
    await rebuildRefcounts(state, pass.counts, pass.dangling);
    result.corruptions = 0;
    result.leaks = 0;
    result.checkErrors = 0;
    state = { ...state, header: await readCheckHeader(file) };
    await guard.load(file, state.header, snapshots);
    // what was repaired in the first count stays repaired; the second only looks
    pass = await countAll(withoutRepair(state), snapshots, false);
    if (pass.rebuild) {
      context.report('ERROR rebuilt refcount structure is still broken');
      throw checkFailed('corrupt', 'EIO');
    }
    // the clusters of the old structure are leaks of the new one; these do not count as repaired
    const fixed = { leaks: result.leaksFixed, corruptions: result.corruptionsFixed };
    comparison = await compareRefcounts(state, pass.counts, pass.disk, { leaks: true, errors: false });
    result.leaksFixed = fixed.leaks + Math.max(0, before.leaks - result.leaks);
    // as the reference counts: what the new comparison still finds is not taken off again
    result.corruptionsFixed = fixed.corruptions + Math.max(0, before.corruptions - pass.found.corruptions);
    corrected = true;
  } else if (repairing && (result.leaks > 0 || result.corruptions > 0)) {
    // the comparison counts again what it cannot correct
    const found = pass.found;
    result.leaks = found.leaks;
    result.corruptions = found.corruptions;
    result.checkErrors = found.checkErrors;
    // refcounts that do not become what the copied flags say, because these cannot be written, stay as they are
    if (guard.tablesOverlap()) guard.beginTogether();
    comparison = await compareRefcounts(state, pass.counts, pass.disk, repair);
    corrected = result.leaksFixed > 0 || result.corruptionsFixed > 0;
  }
  if (corrected) await file.flush();

  const sound = result.checkErrors === 0 && result.corruptions === inSnapshotTable && result.leaks === 0;
  await pass.counter.checkCopied(state.header.l1, repair.errors || (repair.leaks && sound), corrected);
  result.imageEndOffset = (comparison.highest + 1) * state.header.geometry.clusterSize;

  if (snapshots.repairs > 0) {
    await rewriteSnapshotTable(state, snapshots, pass.counts, pass.disk);
    result.corruptionsFixed += snapshots.repairs;
  }
  if (repairing) {
    await file.flush();
    const marked = state.header.incompatible & (Incompatible.dirty | Incompatible.corrupt);
    if (marked !== 0n && result.checkErrors === 0 && result.corruptions === 0) await clearMarks(state);
  }
}

interface Pass {
  readonly counts: ReferenceCounts;
  readonly disk: DiskRefcounts;
  readonly counter: TableCounter;
  readonly dangling: Dangling;
  readonly rebuild: boolean;
  /** What had been found before refcounts were compared. */
  readonly found: { readonly leaks: number; readonly corruptions: number; readonly checkErrors: number };
}

/** Counts every reference that there is. */
async function countAll(state: CheckState, snapshots: SnapshotTable, repair: boolean): Promise<Pass> {
  const { file, header, result } = state;
  const { clusterSize, maxRefcount } = header.geometry;
  const counts = new ReferenceCounts(Math.ceil(file.size / clusterSize), maxRefcount);
  const disk = await DiskRefcounts.load(state);
  const counter = new TableCounter(state, counts, disk);
  counter.count(0, clusterSize);
  await counter.countL1(header.l1, true);
  await countSnapshots(state, snapshots, counter);
  if (header.crypto !== undefined) counter.count(header.crypto.at, header.crypto.length);
  await countBitmaps(state, counter);
  // what the refcount structure itself refers to goes away when it is rebuilt
  const { clusters, straddling } = counter.dangling;
  const dangling = { clusters: new Map(clusters), straddling: [...straddling] };
  counter.count(header.refcountTable.at, header.refcountTable.length);
  const rebuild = await checkRefcountBlocks(
    state,
    counts,
    disk,
    (at, length) => counter.count(at, length),
    repair,
  );
  const { leaks, corruptions, checkErrors } = result;
  return { counts, disk, counter, dangling, rebuild, found: { leaks, corruptions, checkErrors } };
}

function withoutRepair(state: CheckState): CheckState {
  return {
    ...state,
    context: {
      ...state.context,
      repair: { leaks: false, errors: false },
      report: (line) => state.context.report(line),
    },
  };
}

function statistics(state: CheckState, { counter }: Pass): void {
  const { result, header } = state;
  const guest = header.size - (header.size % 512);
  result.totalClusters = Math.ceil(guest / header.geometry.clusterSize);
  result.allocatedClusters = counter.allocated;
  result.fragmentedClusters = counter.fragmented;
  result.compressedClusters = counter.compressed;
}

export type { Comparison };
