/** image-convert: sources, target, and the copy loop between them. */
import { lstatSync, unlinkSync } from 'node:fs';
import type { ImageConvertParams, ImageConvertResult } from '../../protocol/commands/image-convert.js';
import { splitOptions } from '../../protocol/options.js';
import { ImageError } from '../error.js';
import type { SnapshotInfo } from '../node/driver.js';
import type { ImageNode } from '../node/image.js';
import { openImage } from '../node/open.js';
import type { Rehearsal } from '../node/rehearsal.js';
import { checkBitmaps, checkBitmapTarget, copyBitmaps } from './bitmap.js';
import type { OperationContext } from './context.js';
import { checkTarget, createTarget, notCompressed, targetSpec } from './convert-target.js';
import {
  type Checkpoint,
  type CopyOptions,
  type CopySource,
  concatenated,
  copy,
  imageSource,
  type Salvage,
} from './copy.js';
import { type Digests, GuestHash, HASHES, spelled } from './guest-hash.js';
import { type ConvertMark, fileIdentity, openUnfinished, sourceFingerprints } from './resume.js';
import { type Staged, stage } from './staged.js';

const DEFAULT_SPARSE = 4096;
/** Between checkpoints, where they were asked for and where not. */
const CHECKPOINT_MS = 1000;
const SELDOM_MS = 10_000;

/** Finds a snapshot by `-l`: an id or name, or `snapshot.id=..,snapshot.name=..`. */
function findSnapshot(list: readonly SnapshotInfo[], wanted: string): SnapshotInfo | undefined {
  if (wanted.startsWith('snapshot.')) {
    const options = new Map(splitOptions(wanted));
    const id = options.get('snapshot.id');
    const name = options.get('snapshot.name');
    return list.find((s) => (id === undefined || s.id === id) && (name === undefined || s.name === name));
  }
  return list.find((s) => s.id === wanted) ?? list.find((s) => s.name === wanted);
}

export async function snapshotView(image: ImageNode, wanted: string): Promise<ImageNode> {
  const { snapshots } = image.format;
  if (snapshots === undefined) {
    const what = `Block format '${image.driver.name}' used by device '' does not support temporarily loading internal snapshots`;
    throw new ImageError('unsupported', `Failed to load snapshot: ${what}`);
  }
  const found = findSnapshot(snapshots.list(), wanted);
  if (found === undefined) {
    throw new ImageError('not-found', `Failed to load snapshot: Can't find snapshot`);
  }
  try {
    return image.withFormat(await snapshots.view(found));
  } catch (error) {
    throw error instanceof ImageError ? error.prefixed('Failed to load snapshot: ') : error;
  }
}

export async function convert(
  params: ImageConvertParams,
  context: OperationContext,
): Promise<ImageConvertResult> {
  const opened: ImageNode[] = [];
  let created: readonly string[] = [];
  let staged: Staged | undefined;
  if (params['dry-run'] === true) {
    // Loaded only where it is asked for: conversions start without it.
    const { convertPlan } = await import('./dry-run/convert.js');
    return convertPlan(params, context);
  }
  try {
    const sources: ImageNode[] = [];
    for (const ref of params.sources) {
      const image = await openImage(ref, { stable: true }, context);
      opened.push(image);
      sources.push(image);
    }
    if (params.bitmaps === true && sources.length > 1) {
      throw new ImageError('invalid', 'Copying bitmaps only possible with single source');
    }
    const bitmapSource = params.bitmaps === true ? sources[0]! : undefined;
    if (params.snapshot !== undefined) {
      if (sources.length > 1)
        throw new ImageError('invalid', 'No support for concatenating multiple snapshot');
      sources[0] = await snapshotView(sources[0]!, params.snapshot);
    }
    await checkTarget(params);
    const size = totalSize(sources);
    const create = params.create ?? true;
    const spec = create ? await targetSpec(params, size) : undefined;
    if (bitmapSource !== undefined) checkBitmaps(bitmapSource, params['skip-broken-bitmaps'] === true);
    if (params.atomic === true) staged = await stage(params.target.filename!, context);
    const open = (filename?: string): Promise<ImageNode> =>
      openTarget(
        filename === undefined ? params : { ...params, target: { ...params.target, filename } },
        undefined,
        context,
      );
    const again = params.resume === true ? await openUnfinished(sources, size, open, context) : undefined;
    let target: ImageNode;
    let start = 0;
    if (typeof again === 'object') {
      target = again.target;
      start = again.mark.offset;
      // What was there before the conversion (a device, say) is not its to remove.
      created = again.mark.created ?? (staged === undefined ? [] : [again.mark.path]);
      // Told before anything is written: until here the mark holds, whatever becomes of this attempt.
      const { seen: _, ...mark } = again.mark;
      context.checkpoint?.keep(mark);
    } else {
      if (again !== undefined) startOver(again, context);
      await staged?.clear();
      if (spec !== undefined) created = await createTarget(sources, params, spec, context, staged?.path);
      target = await open(staged?.path);
    }
    opened.push(target);
    if (bitmapSource !== undefined) checkBitmapTarget(target);
    const wanted = HASHES.filter((name) => params[name] === true || params[`expect-${name}`] !== undefined);
    const hash = wanted.length > 0 ? await GuestHash.of(wanted, () => checkCancelled(context)) : undefined;
    const checkpoint = create
      ? await checkpoints(sources, target, { size, created }, params, context)
      : undefined;
    const totals = await copyInto(sources, target, params, { start, hash, checkpoint }, context);
    const digests = (await hash?.digest()) ?? {};
    checkHashes(digests, params, target);
    if (bitmapSource !== undefined) await copyBitmaps(bitmapSource, target, context);
    await target.flush();
    const result = {
      ...{ size: target.size, ...totals, ...digests },
      ...(start === 0 ? {} : { 'resumed-from': start }),
      ...(typeof again === 'string' ? { 'started-over': again } : {}),
    };
    await closeAll(opened);
    if (staged !== undefined) {
      await staged.keep();
      await context.finalize?.();
      await staged.commit();
    }
    context.progress({ phase: 'done', done: size, total: size, ...totals });
    return result;
  } catch (error) {
    await closeAll(opened).catch(() => {});
    const mismatch = error instanceof ImageError && HASHES.some((name) => name === error.context.check);
    if (staged !== undefined) {
      // A temporary file that another job writes is not this one's to remove.
      if (created.length > 0 || mismatch) await staged.discard();
      else await staged.release();
      throw staged.renamed(error);
    }
    if (params['keep-failed'] !== true || mismatch) created.forEach(remove);
    if (mismatch && created.length === 0 && params.create !== false) remove(error.context.path!);
    throw error;
  }
}

/** The target, which is there, for writing. */
export function openTarget(
  params: ImageConvertParams,
  rehearsal: Rehearsal | undefined,
  context: OperationContext,
): Promise<ImageNode> {
  const { target, create = true } = params;
  return openImage(
    { ...target, format: create ? (target.format ?? 'raw') : target.format },
    {
      writable: true,
      guestOnly: params.bitmaps !== true,
      cache: target.cache ?? 'writeback',
      // Whoever wants all written as it is wants it allocated.
      unmap: params['sparse-size'] !== 0,
      rehearsal,
    },
    context,
  );
}

export function checkFits(target: ImageNode, size: number): void {
  if (target.size < size) throw new ImageError('invalid', 'output file is smaller than input file');
}

function startOver(reason: string, context: OperationContext): void {
  context.checkpoint?.keep(undefined);
  context.output({
    stream: 'stderr',
    text: `imgd: cannot go on where it was cut off: ${reason}; starting over\n`,
  });
}

function checkCancelled({ signal }: OperationContext): void {
  if (signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
}

function checkHashes(digests: Digests, params: ImageConvertParams, target: ImageNode): void {
  for (const name of HASHES) {
    const expected = params[`expect-${name}`]?.toLowerCase();
    if (expected === undefined || expected === digests[name]) continue;
    const text = `The content is not what was expected: its ${spelled(name)} is ${digests[name]}`;
    throw new ImageError('corrupt', text, {
      ...(target.path === undefined ? {} : { path: target.path }),
      check: name,
    });
  }
}

/** How often a conversion that may be gone on with says how far it is; undefined where it could not be gone on with. */
async function checkpoints(
  sources: readonly ImageNode[],
  target: ImageNode,
  { size, created }: { readonly size: number; readonly created: readonly string[] },
  params: ImageConvertParams,
  context: OperationContext,
): Promise<Checkpoint | undefined> {
  const { path } = target;
  const { checkpoint } = context;
  // What is written as one stream cannot be opened half way; bitmaps are copied at the end, into an image without any.
  const whole = target.format.pack?.always === true || params.bitmaps === true;
  if (checkpoint === undefined || path === undefined || whole || params.target.cache === 'unsafe')
    return undefined;
  const fingerprints = await sourceFingerprints(sources, context);
  if (fingerprints === undefined) return undefined;
  const mark = {
    ...{ size, target: await fileIdentity(path), path, created },
    sources: fingerprints,
  };
  return {
    every: params.resume === true ? CHECKPOINT_MS : SELDOM_MS,
    reached: (offset) => checkpoint.keep({ ...mark, offset } satisfies ConvertMark),
  };
}

export function totalSize(images: readonly ImageNode[]): number {
  return images.reduce((sum, image) => sum + image.size, 0);
}

/** Devices and links stay where they are. */
function remove(path: string): void {
  try {
    if (lstatSync(path).isFile()) unlinkSync(path);
  } catch {
    // Somebody else has removed it.
  }
}

async function copyInto(
  sources: readonly ImageNode[],
  target: ImageNode,
  params: ImageConvertParams,
  more: Pick<CopyOptions, 'start' | 'hash' | 'checkpoint'>,
  context: OperationContext,
): Promise<{ written: number; zeros: number }> {
  const create = params.create ?? true;
  checkFits(target, totalSize(sources));
  const compress = params.compress === true || target.format.pack?.always === true;
  if (compress && target.format.pack === undefined) {
    // The driver can, but not into every one of its images.
    if (target.driver.compresses === true) throw new ImageError('unsupported', 'invalid cluster size');
    throw notCompressed();
  }
  // An existing target may have a backing file that is none of the source's: only `-B` says that their bytes are the same.
  const named = params.backing !== undefined || params.options?.backing_file !== undefined;
  const backed = named && target.backing !== undefined;
  const sparse = params['sparse-size'] ?? DEFAULT_SPARSE;
  const targetIsZero =
    target.backing === undefined &&
    ((create && target.format.startsAsZero) || params['target-is-zero'] === true);
  const copied: CopySource[] = sources.map((image) => imageSource(image, backed, target.backing?.size ?? 0));
  if (params['rate-limit'] !== undefined) context.setRate(params['rate-limit']);
  const totals = await copy(
    concatenated(copied),
    target,
    {
      parallel: params.parallel,
      outOfOrder: params['out-of-order'] ?? false,
      sparse,
      targetIsZero,
      compress,
      salvage: params.salvage === true ? salvageWarnings(context) : undefined,
      countData: params['count-data'],
      ...more,
    },
    context,
  );
  if (compress) await target.format.pack?.end?.();
  return totals;
}

function salvageWarnings(context: OperationContext): Salvage {
  const warn = (what: string, at: number, error: unknown) =>
    context.output({
      stream: 'stderr',
      text: `qemu-img: warning: error while reading ${what} ${at}: ${reason(error)}\n`,
    });
  return {
    unreadable: (at, error) => warn('offset', at, error),
    unknown: (at, error) => warn('block status at offset', at, error),
  };
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function closeAll(images: ImageNode[]): Promise<void> {
  let failure: unknown;
  for (const image of images.splice(0).reverse()) {
    try {
      await image.close();
    } catch (error) {
      failure ??= error;
    }
  }
  if (failure !== undefined) throw failure;
}
