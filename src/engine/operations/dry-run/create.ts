/** The dry run of a creation: the image is laid out in memory. */
import type { ImageCreateParams, ImageCreateResult } from '../../../protocol/commands/image-create.js';
import { absolutePath } from '../../node/gate.js';
import { Rehearsal } from '../../node/rehearsal.js';
import type { Storage } from '../../storage/storage.js';
import type { OperationContext } from '../context.js';
import { checkStaged, checkValues, heldFile, makeImage, named, sizeError, wantedImage } from '../create.js';
import { settleSize } from '../create-backing.js';
import { creatableDriver, creatablePath, effectiveOptions } from '../create-options.js';
import { Checks } from './checks.js';
import { freshFile, rehearsedFile, stagedPlace } from './place.js';

export async function createPlan(
  params: ImageCreateParams,
  context: OperationContext,
): Promise<ImageCreateResult> {
  const { filename, format = 'raw' } = params;
  const rehearsal = new Rehearsal();
  const checks = new Checks(context, rehearsal);
  const check = <T>(name: string, needs: readonly string[], look: () => T | Promise<T>) =>
    checks.check(name, needs, () => named(params, look));
  let target: Target | undefined;
  try {
    await check('format', [], () => creatableDriver(format));
    const wanted = await check('options', ['format'], () => wantedImage(params));
    await check('backing', ['options'], () => settleSize(params, wanted!.options, context));
    await check('size', ['options', 'backing'], () => {
      try {
        checkValues(wanted!.options);
      } catch (error) {
        throw sizeError(error, wanted!.options);
      }
    });
    target = await check('target', [], () => openTarget(params, rehearsal, context));
    const made = await check('layout', ['size', 'target'], async () => {
      const files = {
        file: target!.file,
        more: (shown: string, path: string) => rehearsedFile(shown, path, rehearsal, context),
      };
      const { name, options } = wanted!;
      try {
        return await makeImage({ filename, name, at: target!.at }, options, true, context, files);
      } catch (error) {
        throw sizeError(error, options);
      }
    });
    const given = Number(wanted?.options.given.size ?? params.size ?? 0);
    return {
      ...{ filename, format, size: made?.size ?? given },
      options: wanted === undefined ? {} : effectiveOptions(wanted.options),
      plan: await checks.plan(['layout']),
    };
  } finally {
    await target?.release().catch(() => {});
    await rehearsal.end();
  }
}

interface Target {
  readonly file: Storage;
  /** Where it is made for now. */
  readonly at?: string;
  release(): Promise<void>;
}

async function openTarget(
  params: ImageCreateParams,
  rehearsal: Rehearsal,
  context: OperationContext,
): Promise<Target> {
  const { filename, node } = params;
  const release = async () => {};
  const name = creatablePath(filename);
  if (params.atomic === true) {
    checkStaged(node);
    const staged = await stagedPlace(filename, context);
    return {
      file: freshFile(name, staged.path, rehearsal),
      at: staged.path,
      release: () => staged.release(),
    };
  }
  if (node !== undefined) return { file: await heldFile(node, context, rehearsal), release };
  return {
    file: await rehearsedFile(name, absolutePath(name, context.cwd), rehearsal, context),
    release,
  };
}
