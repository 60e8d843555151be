/** image-check: a format's own checker, run once, and once more after a repair. */
import type { ImageCheck, ImageCheckParams, ImageCheckResult } from '../../protocol/commands/image-check.js';
import { errnoText, ImageError } from '../error.js';
import type { CheckFacet, CheckResult } from '../node/driver.js';
import type { ImageNode } from '../node/image.js';
import { displayName, openImage } from '../node/open.js';
import type { OperationContext } from './context.js';

type Repair = ImageCheckParams['repair'];

/** Counts of zero are left out, as QAPI has it; `check-errors` is always there. */
function described(filename: string, image: ImageNode, result: CheckResult): ImageCheck {
  const check: ImageCheck = { filename, format: image.driver.name, 'check-errors': result.checkErrors };
  if (result.imageEndOffset) check['image-end-offset'] = result.imageEndOffset;
  if (result.corruptions) check.corruptions = result.corruptions;
  if (result.leaks) check.leaks = result.leaks;
  if (result.corruptionsFixed) check['corruptions-fixed'] = result.corruptionsFixed;
  if (result.leaksFixed) check['leaks-fixed'] = result.leaksFixed;
  if (result.totalClusters) check['total-clusters'] = result.totalClusters;
  if (result.allocatedClusters) check['allocated-clusters'] = result.allocatedClusters;
  if (result.fragmentedClusters) check['fragmented-clusters'] = result.fragmentedClusters;
  if (result.compressedClusters) check['compressed-clusters'] = result.compressedClusters;
  return check;
}

/** A check that could not be carried through, in the reference's words: its errno's text alone. */
function checkFailed(error: unknown): unknown {
  if (!(error instanceof ImageError) || error.kind === 'cancelled') return error;
  if (error.message.startsWith('Check failed')) return error;
  const { errno } = error.context;
  const text = errno === undefined ? error.message : errnoText(errno);
  return new ImageError(error.kind, `Check failed: ${text}`, error.context, error);
}

async function pass(checker: CheckFacet, repair: Repair, context: OperationContext): Promise<CheckResult> {
  try {
    return await checker.check({
      repair: { leaks: repair !== undefined, errors: repair === 'all' },
      report: (line) => context.output({ stream: 'stderr', text: `${line}\n` }),
      signal: context.signal,
      progress: (done, total) => context.progress({ phase: 'check', done, total }),
    });
  } catch (error) {
    throw checkFailed(error);
  }
}

/** Checks an open image, and once more where something was repaired. */
export async function checkNode(
  image: ImageNode,
  filename: string,
  repair: Repair,
  context: OperationContext,
): Promise<ImageCheckResult> {
  const { checker } = image.format;
  if (checker === undefined) {
    throw new ImageError('unsupported', 'This image format does not support checks', { path: filename });
  }
  const first = await pass(checker, repair, context);
  if (first.corruptionsFixed === 0 && first.leaksFixed === 0) {
    return { check: described(filename, image, first) };
  }
  const second = await pass(checker, undefined, context);
  const { leaksFixed, corruptionsFixed } = first;
  return {
    check: described(filename, image, { ...second, leaksFixed, corruptionsFixed }),
    repaired: described(filename, image, first),
  };
}

/**
 * Checks an image, and repairs it where asked to. What is found goes to stderr line by line.
 *
 * @throws ImageError `unsupported` where the format has no checker; `Check failed: ...` where the check broke off.
 */
export async function check(params: ImageCheckParams, context: OperationContext): Promise<ImageCheckResult> {
  const { repair } = params;
  if (params['dry-run'] === true) {
    if (repair === undefined)
      throw new ImageError('invalid', "'dry-run' is for repairs: a check changes nothing");
    const { checkPlan } = await import('./dry-run/change.js');
    return checkPlan(params, context);
  }
  const filename = displayName(params.image);
  const image = await openImage(params.image, { forCheck: true, writable: repair !== undefined }, context);
  let result: ImageCheckResult;
  try {
    result = await checkNode(image, filename, repair, context);
    if (repair !== undefined) await image.flush();
  } catch (error) {
    await image.close().catch(() => {});
    throw error;
  }
  await image.close();
  return result;
}
