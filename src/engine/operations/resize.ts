/** image-resize: another guest size. */
import type { ImageResizeParams, ImageResizeResult } from '../../protocol/commands/image-resize.js';
import { ImageError } from '../error.js';
import type { ImageNode } from '../node/image.js';
import { openImage } from '../node/open.js';
import type { Preallocation } from '../storage/storage.js';
import type { OperationContext } from './context.js';

/** The largest size that is exact and whole sectors; what asks for more asks for more than any image has. */
const MAX_SIZE = Number.MAX_SAFE_INTEGER - 511;

/** Refuses what makes no sense; gives the new size. */
export function checkedSize(params: ImageResizeParams, before: number): number {
  const { size: given, relative = false, preallocation = 'off' } = params;
  const size = Math.min(relative ? before + given : given, MAX_SIZE);
  if (size <= 0) throw new ImageError('invalid', 'New image size must be positive');
  if (size <= before && preallocation !== 'off') {
    throw new ImageError('invalid', 'Preallocation can only be used for growing images');
  }
  if (size < before && params.shrink !== true) {
    throw new ImageError('invalid', 'Use the --shrink option to perform a shrink operation.', {
      hint: "qemu-img: warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, make sure there is no important data there.",
    });
  }
  return size;
}

/** The work of a resize on an open image: also what amending its size does. */
export async function resizeNode(
  image: ImageNode,
  size: number,
  preallocation: Preallocation = 'off',
): Promise<void> {
  const { format, backing } = image;
  const unsupported = () => new ImageError('unsupported', 'Image format driver does not support resize');
  if (format.resize === undefined) throw unsupported();
  const before = image.size;
  // What lies in a longer backing file must not come to light.
  const hidden = backing !== undefined && backing.size > before && size > before;
  try {
    await format.resize(size, { preallocation, zeroNew: hidden });
  } catch (error) {
    const { errno, operation } = error instanceof ImageError ? error.context : {};
    throw errno === 'ENOTSUP' && operation === 'truncate' ? unsupported() : error;
  }
  if (!hidden) return;
  // The rest of the unit that the old end was in; all of it, where the format cannot say "zeros" by metadata.
  const wholeUnits = Math.ceil(before / format.unit) * format.unit;
  for (let at = before; at < Math.min(size, backing.size); ) {
    const found = await image.status({ at, length: Math.min(size, backing.size) - at });
    const length = at < wholeUnits ? Math.min(found.length, wholeUnits - at) : found.length;
    if (found.depth > 0) await image.zero({ at, length });
    at += length;
  }
}

/**
 * Grows or shrinks an image; what is added reads as zeros.
 *
 * @throws ImageError in the reference's words; `unsupported` where the format or the file cannot.
 */
export async function resize(
  params: ImageResizeParams,
  context: OperationContext,
): Promise<ImageResizeResult> {
  if (params['dry-run'] === true) {
    const { resizePlan } = await import('./dry-run/change.js');
    return resizePlan(params, context);
  }
  const image = await openImage(params.image, { writable: true, resize: true }, context);
  let result: ImageResizeResult;
  try {
    const before = image.size;
    const size = checkedSize(params, before);
    await context.pace(0);
    context.progress({ phase: 'resize', done: 0, total: size });
    await resizeNode(image, size, params.preallocation);
    await image.flush();
    result = { before, size: image.size };
  } catch (error) {
    await image.close().catch(() => {});
    throw error;
  }
  await image.close();
  return result;
}
