/** image-commit: what an image and the layers above a base hold goes into the base; then the image is emptied. */
import type { ImageCommitParams, ImageCommitResult } from '../../protocol/commands/image-commit.js';
import { errnoText, ImageError } from '../error.js';
import { findLayer, mapAbove } from '../node/chain.js';
import type { Extent } from '../node/driver.js';
import type { ImageNode } from '../node/image.js';
import { displayName, openImage } from '../node/open.js';
import type { OperationContext } from './context.js';
import { type CopySource, type CopyTotals, copy, dataRun, type SourceRun, toldRun } from './copy.js';

const SECTOR = 512;

/** The reference's words for what goes wrong while it works: the errno's text alone. */
export function jobError(error: unknown, what = 'Block job failed'): unknown {
  if (!(error instanceof ImageError) || error.kind === 'cancelled') return error;
  const { errno } = error.context;
  const text = errno === undefined ? error.message : errnoText(errno);
  return new ImageError(error.kind, `${what}: ${text}`, error.context, error);
}

/** Everything that the layers above `base` hold. */
export function sourceAbove(top: ImageNode, base: ImageNode): CopySource {
  const plainRun = (extent: Extent): SourceRun => {
    const { kind, length } = extent;
    return dataRun(extent, length) ?? { kind: kind === 'zero' ? 'zero' : 'skip', length };
  };
  const toRun =
    top.readsPast === undefined
      ? plainRun
      : (extent: Extent, at: number) => toldRun(plainRun(extent), at, top);
  return {
    size: top.size,
    run(range) {
      const found = mapAbove(top, base, range);
      const { at } = range;
      return found instanceof Promise ? found.then((extent) => toRun(extent, at)) : toRun(found, at);
    },
  };
}

/**
 * Grows the base to the size of the image. What its own backing file has in the new range would show up there, in the image
 * too: the image says zeros there itself before, and commits them.
 */
export async function grow(top: ImageNode, base: ImageNode): Promise<void> {
  const { size } = base;
  if (size >= top.size) return;
  if (base.format.resize === undefined) {
    throw new ImageError('unsupported', 'Operation not supported', { path: base.filename, errno: 'ENOTSUP' });
  }
  const shown = Math.min(top.size, base.backing?.size ?? 0);
  for (let at = size; at < shown; ) {
    const extent = await mapAbove(top, base, { at, length: shown - at });
    if (extent.kind === 'backing') await top.zero({ at, length: extent.length });
    at += extent.length;
  }
  if (shown > size) await top.flush();
  await base.format.resize(top.size, { preallocation: 'off' }).catch((error: unknown) => {
    if (!(error instanceof ImageError) || error.kind !== 'unsupported' || error.context.errno !== undefined) {
      throw error;
    }
    throw new ImageError(error.kind, error.message, { ...error.context, errno: 'ENOTSUP' }, error);
  });
}

export async function makeEmpty(top: ImageNode): Promise<void> {
  await top.format.makeEmpty!().catch((error: unknown) => {
    throw jobError(error, `Failed to empty ${top.filename}`);
  });
}

/**
 * Writes what is above `base` (a layer under `top`, opened for writing) into it, durably, and empties `top` then if asked to.
 * Whenever it breaks off, `top` reads as before.
 */
export async function commitInto(
  top: ImageNode,
  base: ImageNode,
  empty: boolean,
  context: OperationContext,
): Promise<CopyTotals & { emptied: boolean }> {
  let totals: CopyTotals;
  try {
    await grow(top, base);
    totals = await copy(
      sourceAbove(top, base),
      base,
      {
        outOfOrder: false,
        sparse: SECTOR,
        keepData: true,
        targetIsZero: false,
        compress: false,
      },
      context,
    );
    await base.flush();
  } catch (error) {
    throw jobError(error);
  }
  const emptied = empty && top.format.makeEmpty !== undefined;
  if (emptied) {
    context.progress({ phase: 'empty', done: top.size, total: top.size, ...totals });
    await makeEmpty(top);
  }
  return { ...totals, emptied };
}

/** The layer that is to be written into. */
export function findBase(
  top: ImageNode,
  { base, image }: ImageCommitParams,
  { cwd }: OperationContext,
): ImageNode {
  const found = base === undefined ? top.backing : findLayer(top, base, cwd);
  if (found !== undefined) return found;
  throw new ImageError(
    'invalid',
    base === undefined
      ? 'Image does not have a backing file'
      : `Did not find '${base}' in the backing chain of '${displayName(image)}'`,
  );
}

/** The same layer, in its place, for writing. */
export async function openBase(top: ImageNode, found: ImageNode): Promise<ImageNode> {
  let above = top;
  while (above.backing !== found) above = above.backing!;
  const base = await found.reopenWritable();
  above.backing = base;
  return base;
}

export function empties({ drop, base }: ImageCommitParams): boolean {
  return drop !== true && base === undefined;
}

export async function commit(
  params: ImageCommitParams,
  context: OperationContext,
): Promise<ImageCommitResult> {
  if (params['dry-run'] === true) {
    const { commitPlan } = await import('./dry-run/commit.js');
    return commitPlan(params, context);
  }
  const top = await openImage(params.image, { writable: true }, context);
  let result: ImageCommitResult;
  context.progress({ phase: 'copy', done: 0, total: top.size });
  try {
    const base = await openBase(top, findBase(top, params, context));
    if (params['rate-limit'] !== undefined) context.setRate(params['rate-limit']);
    const totals = await commitInto(top, base, empties(params), context);
    result = { base: base.filename, ...totals };
  } catch (error) {
    await top.close().catch(() => {});
    throw error;
  }
  await top.close();
  const { written, zeros } = result;
  context.progress({ phase: 'done', done: top.size, total: top.size, written, zeros });
  return result;
}
