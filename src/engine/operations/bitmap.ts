/** image-bitmap: the persistent bitmaps of an image, and their copying from one image to another. */
import type {
  BitmapAction,
  ImageBitmapParams,
  ImageBitmapResult,
} from '../../protocol/commands/image-bitmap.js';
import { ImageError } from '../error.js';
import { bitmapExists, bitmapNotFound, facetOf } from '../node/dirty-bitmaps.js';
import type { ImageNode } from '../node/image.js';
import { openImage } from '../node/open.js';
import type { OperationContext } from './context.js';

async function perform(
  action: BitmapAction,
  params: ImageBitmapParams,
  image: ImageNode,
  from: ImageNode,
): Promise<void> {
  const { bitmap: name, granularity } = params;
  if (action.action === 'add' && image.dirtyBitmaps?.has(name) === true) {
    throw bitmapExists(name);
  }
  // A held image may have some that are in memory alone.
  const target = facetOf(image.dirtyBitmaps, image.format.bitmapStore, name);
  if (target === undefined) {
    if (action.action !== 'add') throw bitmapNotFound(name);
    throw new ImageError(
      'unsupported',
      "Can't store persistent bitmaps to #block000: Operation not supported",
    );
  }
  switch (action.action) {
    case 'add':
      return target.add(name, granularity === 0 ? undefined : granularity);
    case 'remove':
      return target.remove(name);
    case 'clear':
      return target.clear(name);
    case 'enable':
      return target.setEnabled(name, true);
    case 'disable':
      return target.setEnabled(name, false);
    case 'merge': {
      if (!target.list().some((each) => each.name === name)) throw bitmapNotFound(name);
      const source = facetOf(from.dirtyBitmaps, from.format.bitmapStore, action.source);
      if (source === undefined) throw bitmapNotFound(action.source);
      return target.merge(name, await source.content(action.source));
    }
  }
}

/** Performs the actions in order; gives the list after. */
export async function performAll(
  params: ImageBitmapParams,
  image: ImageNode,
  other: ImageNode | undefined,
  context: OperationContext,
): Promise<ImageBitmapResult['bitmaps']> {
  for (const action of params.actions) {
    await context.pace(0);
    try {
      await perform(action, params, image, other ?? image);
    } catch (error) {
      if (!(error instanceof ImageError) || error.kind === 'cancelled') throw error;
      throw error.prefixed(`Operation ${action.action} on bitmap ${params.bitmap} failed: `);
    }
  }
  return bitmapsOf(image);
}

export function bitmapsOf({ format }: ImageNode): ImageBitmapResult['bitmaps'] {
  const list = format.bitmapStore?.list() ?? [];
  return list.map(({ name, granularity, flags }) => ({ name, granularity, flags: [...flags] }));
}

/**
 * Performs the actions in order; those before one that fails stay done.
 *
 * @throws ImageError `Operation add on bitmap b failed: ...`
 */
export async function bitmap(
  params: ImageBitmapParams,
  context: OperationContext,
): Promise<ImageBitmapResult> {
  if (params['dry-run'] === true) {
    const { bitmapPlan } = await import('./dry-run/change.js');
    return bitmapPlan(params, context);
  }
  const image = await openImage(params.image, { writable: true, noBacking: true }, context);
  let other: ImageNode | undefined;
  let result: ImageBitmapResult;
  try {
    if (params.source !== undefined) other = await openImage(params.source, { noBacking: true }, context);
    result = { bitmaps: await performAll(params, image, other, context) };
  } catch (error) {
    await other?.close().catch(() => {});
    await image.close().catch(() => {});
    throw error;
  }
  await other?.close();
  await image.close();
  return result;
}

/** What `convert --bitmaps` demands before it begins. */
export function checkBitmaps(source: ImageNode, skipBroken: boolean): void {
  const { bitmapStore, storesBitmaps } = source.format;
  if (bitmapStore === undefined || storesBitmaps !== true) {
    throw new ImageError('unsupported', 'Source lacks bitmap support');
  }
  for (const { name, flags } of [...bitmapStore.list()].reverse()) {
    if (skipBroken || !flags.includes('in-use')) continue;
    throw new ImageError('invalid', `Cannot copy inconsistent bitmap '${name}'`, {
      hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
    });
  }
}

export function checkBitmapTarget({ format, driver }: ImageNode): void {
  if (format.storesBitmaps === true) return;
  throw new ImageError('unsupported', `Format driver '${driver.name}' does not support bitmaps`);
}

/** Copies all bitmaps of one image to another; those that are inconsistent are left out with a warning. */
export async function copyBitmaps(
  source: ImageNode,
  target: ImageNode,
  context: OperationContext,
): Promise<void> {
  const from = source.format.bitmapStore!;
  const to = target.format.bitmapStore;
  // The last comes first: the target stores them the other way round.
  for (const { name, granularity, flags } of [...from.list()].reverse()) {
    if (flags.includes('in-use')) {
      context.output({
        stream: 'stderr',
        text: `qemu-img: warning: Skipping inconsistent bitmap '${name}'\n`,
      });
      continue;
    }
    if (to === undefined)
      throw new ImageError('unsupported', 'Failed to create bitmap: Operation not supported');
    try {
      await to.add(name, granularity);
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      throw error.prefixed(`Failed to create bitmap ${name}: `);
    }
    try {
      await to.merge(name, await from.content(name));
      await to.setEnabled(name, flags.includes('auto'));
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      throw error.prefixed(`Failed to populate bitmap ${name}: `);
    }
  }
}
