/** The dry run of dd: the new image is laid out in memory. */
import type { ImageDdParams, ImageDdResult } from '../../../protocol/commands/image-dd.js';
import { absolutePath } from '../../node/gate.js';
import type { ImageNode } from '../../node/image.js';
import { openImage } from '../../node/open.js';
import { Rehearsal } from '../../node/rehearsal.js';
import type { OperationContext } from '../context.js';
import { creatablePath } from '../create-options.js';
import { checkFormat, createTarget, creationError, rangeOf } from '../dd.js';
import { measure } from '../measure.js';
import { Checks } from './checks.js';
import { rehearsedFile } from './place.js';
import { spaceAt } from './space.js';

export async function ddPlan(params: ImageDdParams, context: OperationContext): Promise<ImageDdResult> {
  const { filename, format = 'raw' } = params.target;
  const rehearsal = new Rehearsal();
  const checks = new Checks(context, rehearsal);
  let image: ImageNode | undefined;
  try {
    await checks.check('format', [], () => checkFormat(format));
    image = await checks.check('image', [], () => openImage(params.image, {}, context));
    const { from, end } = rangeOf(params, image?.size ?? 0);
    const size = end - from;
    const open = (shown: string, path: string) => rehearsedFile(shown, path, rehearsal, context);
    const file = await checks.check('target', [], async () => {
      try {
        const path = creatablePath(filename);
        return await open(path, absolutePath(path, context.cwd));
      } catch (error) {
        throw creationError(error, filename);
      }
    });
    await checks.check('layout', ['format', 'image', 'target'], () =>
      createTarget(params, size, context, { file: file!, more: open }),
    );
    // All is written, zeros too.
    const measured = await measure({ size, format }, context).catch(() => undefined);
    const full = measured === undefined ? undefined : Number(measured['fully-allocated']);
    const space = { required: full, 'fully-allocated': full, ...(await spaceAt(filename, false, context)) };
    return { copied: size, plan: await checks.plan(['image', 'layout'], space) };
  } finally {
    await image?.close().catch(() => {});
    await rehearsal.end();
  }
}
