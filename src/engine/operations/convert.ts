/** image-convert: sources, target, and the copy loop between them. */
import { unlinkSync } from 'node:fs';
import type { FormatOptions } from '../../protocol/commands/common.js';
import type { ImageConvertParams, ImageConvertResult } from '../../protocol/commands/image-convert.js';
import { splitOptions } from '../../protocol/options.js';
import { hostError, ImageError } from '../error.js';
import { loadDriver } from '../formats/index.js';
import type { SnapshotInfo } from '../node/driver.js';
import { absolutePath } from '../node/gate.js';
import type { ImageNode } from '../node/image.js';
import { backingPath, openImage } from '../node/open.js';
import { identity } from '../node/open-storage.js';
import { checkBitmaps, checkBitmapTarget, copyBitmaps } from './bitmap.js';
import type { OperationContext } from './context.js';
import { type CopySource, concatenated, copy, imageSource, type Salvage } from './copy.js';
import { checkCreateSpec, consistsOf, createImage } from './create.js';
import { creatablePath } from './create-options.js';

const DEFAULT_SPARSE = 4096;

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
  const found = snapshots === undefined ? undefined : findSnapshot(snapshots.list(), wanted);
  if (snapshots === undefined || found === undefined) {
    throw new ImageError('not-found', `Failed to load snapshot: Can't find snapshot`);
  }
  return image.withFormat(await snapshots.view(found));
}

/** Refusals that need no file to be opened beyond the sources. */
async function checkTarget(params: ImageConvertParams): Promise<void> {
  const { target } = params;
  const create = params.create ?? true;
  if (create) {
    if (target.node !== undefined) {
      throw new ImageError(
        'invalid',
        'A held node is not created anew: it is a target with create=false only',
      );
    }
    if (target['image-opts'] !== undefined) {
      throw new ImageError('invalid', '--target-image-opts requires use of -n flag');
    }
    const name = target.format ?? 'raw';
    const driver = await loadDriver(name);
    if (driver === undefined) throw new ImageError('invalid', `Unknown file format '${name}'`);
    if (driver.create === undefined) {
      throw new ImageError('unsupported', `Format driver '${name}' does not support image creation`);
    }
  }
}

export async function convert(
  params: ImageConvertParams,
  context: OperationContext,
): Promise<ImageConvertResult> {
  const opened: ImageNode[] = [];
  let created: readonly string[] = [];
  try {
    const sources: ImageNode[] = [];
    for (const ref of params.sources) {
      const image = await openImage(ref, { stable: true }, context);
      opened.push(image);
      sources.push(image);
    }
    const bitmapSource = params.bitmaps === true ? sources[0]! : undefined;
    if (bitmapSource !== undefined) checkBitmaps(bitmapSource, params['skip-broken-bitmaps'] === true);
    if (params.snapshot !== undefined) {
      if (sources.length > 1)
        throw new ImageError('invalid', 'No support for concatenating multiple snapshot');
      sources[0] = await snapshotView(sources[0]!, params.snapshot);
    }
    await checkTarget(params);
    const size = totalSize(sources);
    const create = params.create ?? true;
    if (create) created = await createTarget(sources, params, size, context);
    const target = await openImage(
      { ...params.target, format: create ? (params.target.format ?? 'raw') : params.target.format },
      { writable: true, guestOnly: params.bitmaps !== true, cache: params.target.cache ?? 'writeback' },
      context,
    );
    opened.push(target);
    if (bitmapSource !== undefined) checkBitmapTarget(target);
    const totals = await copyInto(sources, target, params, context);
    if (bitmapSource !== undefined) await copyBitmaps(bitmapSource, target, context);
    await target.flush();
    const result = { size: target.size, ...totals };
    await closeAll(opened);
    context.progress({ phase: 'done', done: size, total: size, ...totals });
    return result;
  } catch (error) {
    await closeAll(opened).catch(() => {});
    if (params['keep-failed'] !== true) created.forEach(remove);
    throw error;
  }
}

/**
 * The target must not be made out of a source, or of its own backing file: creating it empties it. Locks see to the former,
 * but not where the source is opened without (`-U`, `locking=off`): then it is refused in the same words. To the latter they
 * would come too late.
 */
function checkApart(
  sources: readonly ImageNode[],
  params: ImageConvertParams,
  { cwd }: OperationContext,
): void {
  const filename = params.target.filename!;
  const path = absolutePath(creatablePath(filename), cwd);
  const shared = params.sources.some((ref, index) => {
    const locked = ref['force-share'] !== true && ref.filename?.startsWith('json:') === false;
    return !locked && consistsOf(sources[index]!, path);
  });
  if (shared) {
    const hint = `Is another process using the image [${filename}]?`;
    throw new ImageError('locked', 'Failed to get "write" lock', { path: filename, operation: 'lock', hint });
  }
  const backing = params.backing ?? params.options?.backing_file;
  if (typeof backing !== 'string' || backing === '') return;
  const below = identity(absolutePath(backingPath(filename, backing), cwd));
  if (below !== undefined && below === identity(path)) {
    throw new ImageError('invalid', `'${filename}' cannot be its own backing file`, { path: filename });
  }
}

function totalSize(images: readonly ImageNode[]): number {
  return images.reduce((sum, image) => sum + image.size, 0);
}

function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody else has removed it.
  }
}

/** Creates the target; gives the files that were not there before. */
async function createTarget(
  sources: readonly ImageNode[],
  params: ImageConvertParams,
  size: number,
  context: OperationContext,
): Promise<readonly string[]> {
  const { backing, options = {}, 'backing-format': backingFormat } = params;
  const format = params.target.format ?? 'raw';
  const spec = {
    filename: params.target.filename!,
    format,
    size,
    options,
    ...(backing === undefined ? {} : { backing }),
    ...(backingFormat === undefined ? {} : { 'backing-format': backingFormat }),
  };
  const backed = backing !== undefined || options.backing_file !== undefined;
  if (backed && params.sources.length > 1) {
    throw new ImageError(
      'invalid',
      'Having a backing file for the target makes no sense when concatenating multiple input images',
    );
  }
  if (params.compress === true) await checkCompressed(format, options);
  await checkCreateSpec(spec);
  if (backed && (backingFormat ?? options.backing_fmt) === undefined) {
    throw new ImageError('invalid', 'Use of backing file requires explicit backing format');
  }
  try {
    checkApart(sources, params, context);
    return (await createImage(spec, context)).created;
  } catch (error) {
    throw hostError(`${spec.filename}: error while converting ${format}`, error);
  }
}

/** What a new image cannot be together with compressed, in the reference's words; options are not checked otherwise. */
async function checkCompressed(format: string, options: FormatOptions): Promise<void> {
  const driver = await loadDriver(format);
  if (driver !== undefined && driver.compresses !== true) throw notCompressed();
  const { encryption, preallocation } = options;
  const encrypted = options['encrypt.format'] !== undefined || encryption === 'on' || encryption === true;
  if (encrypted) throw new ImageError('invalid', 'Compression and encryption not supported at the same time');
  if (preallocation !== undefined && preallocation !== 'off') {
    throw new ImageError('invalid', 'Compression and preallocation not supported at the same time');
  }
}

function notCompressed(): ImageError {
  return new ImageError('unsupported', 'Compression not supported for this file format');
}

async function copyInto(
  sources: readonly ImageNode[],
  target: ImageNode,
  params: ImageConvertParams,
  context: OperationContext,
): Promise<{ written: number; zeros: number }> {
  const create = params.create ?? true;
  if (target.size < totalSize(sources)) {
    throw new ImageError('invalid', 'output file is smaller than input file');
  }
  const compress = params.compress === true || target.format.pack?.always === true;
  if (compress && target.format.pack === undefined) {
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
  return copy(
    concatenated(copied),
    target,
    {
      parallel: params.parallel,
      outOfOrder: params['out-of-order'] ?? false,
      sparse,
      targetIsZero,
      compress,
      salvage: params.salvage === true ? salvageWarnings(context) : undefined,
    },
    context,
  );
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
