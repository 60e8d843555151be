/** The dry run of a conversion. */
import type { ImageConvertParams, ImageConvertResult } from '../../../protocol/commands/image-convert.js';
import { ImageError } from '../../error.js';
import type { ImageNode } from '../../node/image.js';
import { backingPath, openImage } from '../../node/open.js';
import { Rehearsal } from '../../node/rehearsal.js';
import type { OperationContext } from '../context.js';
import { checkFits, openTarget, snapshotView } from '../convert.js';
import { checkApart, checkTarget, creationError, targetSpec } from '../convert-target.js';
import { checkCreate } from '../create.js';
import { measure } from '../measure.js';
import { Checks } from './checks.js';
import { checkPlace } from './place.js';
import { Skipped, type Space, spaceAt } from './space.js';

export async function convertPlan(
  params: ImageConvertParams,
  context: OperationContext,
): Promise<ImageConvertResult> {
  const checks = new Checks(context);
  const create = params.create !== false;
  const { filename } = params.target;
  const opened: ImageNode[] = [];
  try {
    const sources = await checks.check('sources', [], () => openSources(params, opened, context));
    const size = sources?.reduce((sum, image) => sum + image.size, 0) ?? 0;
    await checks.check('format', [], () => checkTarget(params));
    if (create) {
      await checks.check('options', ['sources', 'format'], () => checkOptions(params, size, context));
      await checks.check('backing', [], () => checkBacking(params, context));
      const atomic = params.atomic === true;
      // What stands in the way of a temporary name is said without more.
      const place = () => checkPlace(filename!, atomic, context);
      await checks.check('target', ['format'], atomic ? place : () => making(params, place));
      await checks.check('apart', ['sources', 'target'], () =>
        making(params, () => checkApart(sources!, params, context)),
      );
    } else {
      await checks.check('target', ['sources', 'format'], () => checkExisting(params, size, context));
    }
    const space = await spaceFor(params, sources, context);
    return { size, written: 0, zeros: 0, plan: await checks.plan(['sources', 'target'], space) };
  } finally {
    for (const image of opened.reverse()) await image.close().catch(() => {});
  }
}

async function openSources(
  params: ImageConvertParams,
  opened: ImageNode[],
  context: OperationContext,
): Promise<ImageNode[]> {
  for (const ref of params.sources) opened.push(await openImage(ref, { stable: true }, context));
  if (params.snapshot === undefined) return [...opened];
  if (opened.length > 1) throw new ImageError('invalid', 'No support for concatenating multiple snapshot');
  return [await snapshotView(opened[0]!, params.snapshot)];
}

/** In the words of a target that could not be made. */
async function making<T>(params: ImageConvertParams, look: () => T | Promise<T>): Promise<T> {
  try {
    return await look();
  } catch (error) {
    throw creationError(error, params);
  }
}

async function checkOptions(
  params: ImageConvertParams,
  size: number,
  context: OperationContext,
): Promise<void> {
  const spec = await targetSpec(params, size);
  await making(params, () => checkCreate(spec));
  const { format, options = {} } = spec;
  // Some formats look at their options no sooner than when they lay an image out: to measure one is to do that.
  await measure({ size, format, options }, context).catch((error: unknown) => {
    if (!(error instanceof ImageError) || error.kind !== 'unsupported') throw error;
  });
}

async function checkBacking(params: ImageConvertParams, context: OperationContext): Promise<void> {
  const backing = params.backing ?? params.options?.backing_file;
  if (typeof backing !== 'string' || backing === '') return;
  const format = params['backing-format'] ?? params.options?.backing_fmt;
  const ref = {
    filename: backingPath(params.target.filename!, backing),
    ...(typeof format === 'string' ? { format } : {}),
  };
  await (await openImage(ref, { metadataOnly: true }, context)).close();
}

/** Opened for writing as the conversion does it, with all changes in memory. */
async function checkExisting(
  params: ImageConvertParams,
  size: number,
  context: OperationContext,
): Promise<void> {
  const rehearsal = new Rehearsal();
  try {
    const image = await openTarget(params, rehearsal, context);
    try {
      checkFits(image, size);
    } finally {
      await image.close();
    }
  } catch (error) {
    throw rehearsal.unknown === undefined ? error : new Skipped(rehearsal.unknown);
  } finally {
    await rehearsal.end();
  }
}

async function spaceFor(
  params: ImageConvertParams,
  sources: readonly ImageNode[] | undefined,
  context: OperationContext,
): Promise<Space> {
  const { filename, format = 'raw' } = params.target;
  const { options, snapshot, backing } = params;
  let measured: { required?: number; 'fully-allocated'?: number } = {};
  // Over a backing file it depends on what that has.
  if (sources?.length === 1 && backing === undefined && options?.backing_file === undefined) {
    const told = await measure(
      {
        ...{ image: params.sources[0]!, format },
        ...(options === undefined ? {} : { options }),
        ...(snapshot === undefined ? {} : { snapshot }),
      },
      context,
    ).catch(() => undefined);
    if (told !== undefined) {
      measured = { required: Number(told.required), 'fully-allocated': Number(told['fully-allocated']) };
    }
  }
  if (filename === undefined || params.create === false) return { ...measured, skipped: 'the target exists' };
  return { ...measured, ...(await spaceAt(filename, params.atomic === true, context)) };
}
