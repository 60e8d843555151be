/** The dry run of a commit: places in the base are found in memory for all that the layers above hold. */
import type { ImageCommitParams, ImageCommitResult } from '../../../protocol/commands/image-commit.js';
import type { ImageNode } from '../../node/image.js';
import { empties, findBase, grow, jobError, makeEmpty, openBase, sourceAbove } from '../commit.js';
import type { OperationContext } from '../context.js';
import { rehearse } from './change.js';
import { Skipped } from './space.js';
import { pretendWrite, turns } from './writes.js';

export function commitPlan(params: ImageCommitParams, context: OperationContext): Promise<ImageCommitResult> {
  return rehearse(params.image, {}, context, async ({ checks, rehearsal, image: top }) => {
    const base = await checks.check('base', ['image'], () => {
      const found = findBase(top!, params, context);
      // To open it for writing would change what is held.
      if (found.held) throw new Skipped('the base is held');
      return openBase(top!, found);
    });
    rehearsal.relax();
    await checks.check('resize', ['base'], () => wrapped(grow(top!, base!)));
    const totals = await checks.check('copy', ['resize'], () => wrapped(pretendCopy(top!, base!, context)));
    const emptied = empties(params) && top?.format.makeEmpty !== undefined;
    if (emptied) {
      await checks.check('empty', ['copy'], async () => {
        await base!.flush();
        await makeEmpty(top!);
      });
    }
    const { written = 0, zeros = 0 } = totals ?? {};
    const plan = await checks.plan(emptied ? ['copy', 'empty'] : ['copy']);
    return { base: base?.filename ?? '', written, zeros, emptied, plan };
  });
}

function wrapped<T>(work: Promise<T>): Promise<T> {
  return work.catch((error: unknown) => {
    throw jobError(error);
  });
}

async function pretendCopy(
  top: ImageNode,
  base: ImageNode,
  context: OperationContext,
): Promise<{ written: number; zeros: number }> {
  const source = sourceAbove(top, base);
  const turn = turns(context);
  let written = 0;
  let zeros = 0;
  for (let at = 0; at < source.size; ) {
    await turn();
    const { kind, length } = await source.run({ at, length: source.size - at });
    if (kind === 'zero') {
      await base.zero({ at, length });
      zeros += length;
    } else if (kind !== 'skip') {
      await pretendWrite(base, { at, length });
      written += length;
    }
    at += length;
  }
  await base.flush();
  return { written, zeros };
}
