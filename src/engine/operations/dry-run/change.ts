/** Dry runs of operations that change one image in place: they are made, with all that they write kept in memory. */
import type { ImageAmendParams, ImageAmendResult } from '../../../protocol/commands/image-amend.js';
import type { ImageBitmapParams, ImageBitmapResult } from '../../../protocol/commands/image-bitmap.js';
import type { ImageCheckParams, ImageCheckResult } from '../../../protocol/commands/image-check.js';
import type { ImageResizeParams, ImageResizeResult } from '../../../protocol/commands/image-resize.js';
import type { ImageSnapshotParams, ImageSnapshotResult } from '../../../protocol/commands/image-snapshot.js';
import type { ImageNode } from '../../node/image.js';
import { displayName, type OpenOptions, openImage } from '../../node/open.js';
import { Rehearsal } from '../../node/rehearsal.js';
import { amendments, amendNode } from '../amend.js';
import { bitmapsOf, performAll } from '../bitmap.js';
import { checkNode } from '../check.js';
import type { OperationContext } from '../context.js';
import { checkedSize, resizeNode } from '../resize.js';
import { changeSnapshots, snapshotsOf } from '../snapshot.js';
import { Checks } from './checks.js';

type Ref = ImageResizeParams['image'];

interface Attempt {
  readonly checks: Checks;
  readonly rehearsal: Rehearsal;
  /** Undefined where it could not be opened. */
  readonly image: ImageNode | undefined;
  /** Closed with it. */
  open(ref: Ref, options: OpenOptions): Promise<ImageNode>;
  /** Says nothing of what is not done. */
  readonly context: OperationContext;
}

/** Opens the image as the operation does, has the work looked at, and closes all without a trace. */
export async function rehearse<R>(
  ref: Ref,
  options: OpenOptions,
  context: OperationContext,
  work: (attempt: Attempt) => Promise<R>,
): Promise<R> {
  const rehearsal = new Rehearsal();
  const checks = new Checks(context, rehearsal);
  const opened: ImageNode[] = [];
  const open = async (each: Ref, how: OpenOptions): Promise<ImageNode> => {
    const image = await openImage(each, { ...how, rehearsal }, context);
    opened.push(image);
    return image;
  };
  try {
    const image = await checks.check('image', [], () => open(ref, { ...options, writable: true }));
    return await work({ checks, rehearsal, image, open, context: { ...context, output: () => {} } });
  } finally {
    for (const image of opened.reverse()) await image.close().catch(() => {});
    await rehearsal.end();
  }
}

export function resizePlan(params: ImageResizeParams, context: OperationContext): Promise<ImageResizeResult> {
  return rehearse(params.image, { resize: true }, context, async ({ checks, rehearsal, image }) => {
    rehearsal.relax();
    const before = image?.size ?? 0;
    const size = await checks.check('size', ['image'], () => checkedSize(params, before));
    await checks.check('resize', ['image', 'size'], async () => {
      await resizeNode(image!, size!, params.preallocation);
      await image!.flush();
    });
    return { before, size: image?.size ?? 0, plan: await checks.plan(['resize']) };
  });
}

export function snapshotPlan(
  params: ImageSnapshotParams,
  action: Exclude<ImageSnapshotParams['action'], 'list'>,
  name: string,
  context: OperationContext,
): Promise<ImageSnapshotResult> {
  return rehearse(params.image, {}, context, async ({ checks, rehearsal, image }) => {
    rehearsal.relax();
    await checks.check(action, ['image'], () => changeSnapshots(image!, action, name));
    return { snapshots: image === undefined ? [] : snapshotsOf(image), plan: await checks.plan([action]) };
  });
}

export function amendPlan(params: ImageAmendParams, context: OperationContext): Promise<ImageAmendResult> {
  return rehearse(params.image, { resize: true }, context, async (attempt) => {
    const { checks, rehearsal, image } = attempt;
    rehearsal.relax();
    const options = await checks.check('options', ['image'], () => amendments(image!, params.options));
    await checks.check('amend', ['image', 'options'], () => amendNode(image!, options!, attempt.context));
    return { plan: await checks.plan(['amend']) };
  });
}

export function bitmapPlan(params: ImageBitmapParams, context: OperationContext): Promise<ImageBitmapResult> {
  return rehearse(params.image, { noBacking: true }, context, async (attempt) => {
    const { checks, rehearsal, image } = attempt;
    const { source } = params;
    const other = await checks.check('source', ['image'], () =>
      source === undefined ? undefined : attempt.open(source, { noBacking: true }),
    );
    rehearsal.relax();
    const done = await checks.check('actions', ['image', 'source'], async () => {
      const list = await performAll(params, image!, other, attempt.context);
      // Bitmaps are written when the image is closed.
      await image!.close();
      return list;
    });
    const bitmaps = done ?? (image === undefined ? [] : bitmapsOf(image));
    return { bitmaps, plan: await checks.plan(['actions']) };
  });
}

export function checkPlan(params: ImageCheckParams, context: OperationContext): Promise<ImageCheckResult> {
  return rehearse(params.image, { forCheck: true }, context, async (attempt) => {
    const { checks, rehearsal, image } = attempt;
    const filename = displayName(params.image);
    rehearsal.relax();
    const found = await checks.check('repair', ['image'], async () => {
      const result = await checkNode(image!, filename, params.repair, attempt.context);
      await image!.flush();
      return result;
    });
    const format = image?.driver.name ?? params.image.format ?? '';
    const result = found ?? { check: { filename, format, 'check-errors': 0 } };
    return { ...result, plan: await checks.plan(['repair']) };
  });
}
