/** The dry run of a rebase: places in the image are found in memory for all that may read differently. */
import type { ImageRebaseParams, ImageRebaseResult } from '../../../protocol/commands/image-rebase.js';
import type { ImageNode } from '../../node/image.js';
import type { OperationContext } from '../context.js';
import { checkChangeable, checkOptions, newBacking, openNew, putName } from '../rebase.js';
import { mayDiffer } from '../rebase-copy.js';
import { rehearse } from './change.js';
import { pretendWrite, turns } from './writes.js';

export function rebasePlan(params: ImageRebaseParams, context: OperationContext): Promise<ImageRebaseResult> {
  const { unsafe = false, compress = false } = params;
  return rehearse(params.image, { noBacking: unsafe }, context, async ({ checks, rehearsal, image: top }) => {
    let opened: ImageNode | undefined;
    try {
      await checks.check('options', ['image'], () => checkOptions(top!, params));
      const to = await checks.check('backing', ['image'], async () => {
        const backing = newBacking(params);
        if (unsafe || backing === undefined) return undefined;
        const { image, own } = await openNew(top!, backing.filename, params, context);
        if (own) opened = image;
        return image;
      });
      rehearsal.relax();
      await checks.check('changeable', ['image'], () => checkChangeable(top!, params));
      const written = await checks.check('copy', ['options', 'backing', 'changeable'], async () => {
        let bytes = 0;
        if (unsafe) return bytes;
        const turn = turns(context);
        for await (const run of mayDiffer({ top: top!, from: top!.backing, to, compress })) {
          await turn();
          await pretendWrite(top!, run);
          bytes += run.length;
        }
        return bytes;
      });
      await checks.check('name', ['changeable', 'copy'], () => putName(top!, params));
      return { written: written ?? 0, zeros: 0, plan: await checks.plan(['name']) };
    } finally {
      await opened?.close().catch(() => {});
    }
  });
}
