/** What can be known of a conversion before a byte moves: each check that it would come to, by name. */
import { accessSync, constants, lstatSync, type Stats } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { ImageConvertParams, ImageConvertResult } from '../../protocol/commands/image-convert.js';
import { hostError, ImageError, toImageError } from '../error.js';
import { absolutePath, checkAllowed, confine } from '../node/gate.js';
import type { ImageNode } from '../node/image.js';
import { backingPath, openImage } from '../node/open.js';
import { openFile } from '../storage/file.js';
import { permissionsFor } from '../storage/permissions.js';
import type { OperationContext } from './context.js';
import { snapshotView } from './convert.js';
import { checkApart, checkTarget, targetSpec } from './convert-target.js';
import { checkCreate } from './create.js';
import { creatablePath } from './create-options.js';
import { measure } from './measure.js';
import { stage } from './staged.js';

type Plan = NonNullable<ImageConvertResult['plan']>;
type Check = Plan['checks'][number];

/** Thrown where a check cannot be made. */
class Skipped extends Error {}

export async function convertPlan(
  params: ImageConvertParams,
  context: OperationContext,
): Promise<ImageConvertResult> {
  const checks: Check[] = [];
  const failed = (name: string): boolean => checks.some((each) => each.name === name && each.status !== 'ok');
  const check = async <T>(
    name: string,
    needs: readonly string[],
    look: () => T | Promise<T>,
  ): Promise<T | undefined> => {
    try {
      if (context.signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
      const missing = needs.find(failed);
      if (missing !== undefined) throw new Skipped(`'${missing}' is not well`);
      const found = await look();
      checks.push({ name, status: 'ok' });
      return found;
    } catch (error) {
      const { kind, message } = toImageError(error);
      if (kind === 'cancelled') throw error;
      if (error instanceof Skipped) checks.push({ name, status: 'skipped', text: error.message });
      else checks.push({ name, status: 'failed', kind, text: message });
      return undefined;
    }
  };

  const create = params.create !== false;
  const { filename } = params.target;
  const opened: ImageNode[] = [];
  try {
    const sources = await check('sources', [], () => openSources(params, opened, context));
    const size = sources?.reduce((sum, image) => sum + image.size, 0) ?? 0;
    await check('format', [], () => checkTarget(params));
    if (create) {
      await check('options', ['sources', 'format'], () => checkOptions(params, size, context));
      await check('backing', [], () => checkBacking(params, context));
      await check('target', ['format'], () => checkPlace(filename!, params.atomic === true, context));
      await check('apart', ['sources', 'target'], () => checkApart(sources!, params, context));
    } else {
      await check('target', ['sources', 'format'], () => checkExisting(params, size, context));
    }
    const space = await spaceFor(params, sources, context);
    await check('space', ['sources', 'target'], () => checkSpace(space, create));
    const ok = !checks.some(({ status }) => status === 'failed');
    const { reclaimed: _, ...sizes } = space;
    return { size, written: 0, zeros: 0, plan: { ok, checks, ...sizes } };
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

async function checkOptions(
  params: ImageConvertParams,
  size: number,
  context: OperationContext,
): Promise<void> {
  const spec = await targetSpec(params, size);
  await checkCreate(spec);
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

/** The name is allowed, can be written, and what has it is used by nobody. Nothing is emptied. */
async function checkPlace(filename: string, atomic: boolean, context: OperationContext): Promise<void> {
  const path = absolutePath(creatablePath(filename), context.cwd);
  checkAllowed(path, filename, 'caller', context.policy);
  const folder = dirname(path);
  try {
    const before = lstatSync(path, { throwIfNoEntry: false });
    // A new file takes the place of the old one: that is the folder's to allow.
    if (before === undefined || atomic) accessSync(folder, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw hostError(`Could not create '${filename}'`, error, { path: filename });
  }
  if (atomic) {
    const staged = await stage(filename, context);
    try {
      return await staged.checkClear();
    } finally {
      await staged.release();
    }
  }
  if (lstatSync(path, { throwIfNoEntry: false }) === undefined) return;
  const file = await openFile({
    ...{ path, filename, writable: true, create: 'no' },
    locks: permissionsFor({ role: 'create', writable: true }),
    owner: context.owner,
    observer: context.trace,
    confined: confine(filename, 'caller', context.policy),
  });
  await file.close();
}

/** Opened for reading: for writing it might be changed by that alone. Its lock for writing is tried on the file. */
async function checkExisting(
  params: ImageConvertParams,
  size: number,
  context: OperationContext,
): Promise<void> {
  const image = await openImage(params.target, { metadataOnly: true }, context);
  try {
    if (image.size < size) throw new ImageError('invalid', 'output file is smaller than input file');
    if (image.path === undefined || params.target.node !== undefined) return;
  } finally {
    await image.close();
  }
  const file = await openFile({
    ...{ path: image.path, filename: image.filename, writable: true, create: 'no' },
    locks: permissionsFor({ role: 'raw-data', writable: true }),
    owner: context.owner,
    observer: context.trace,
    confined: confine(image.filename, 'caller', context.policy),
  });
  await file.close();
}

interface Space {
  readonly required?: number;
  readonly 'fully-allocated'?: number;
  readonly free?: number;
  /** Of the file that would be overwritten. */
  readonly reclaimed: number;
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
  if (filename === undefined || params.create === false) return { ...measured, reclaimed: 0 };
  try {
    const path = absolutePath(creatablePath(filename), context.cwd);
    checkAllowed(path, filename, 'caller', context.policy);
    const { bavail, bsize } = await statfs(dirname(path));
    const before: Stats | undefined = lstatSync(path, { throwIfNoEntry: false });
    const reclaimed = before?.isFile() === true && params.atomic !== true ? before.blocks * 512 : 0;
    return { ...measured, free: bavail * bsize, reclaimed };
  } catch {
    return { ...measured, reclaimed: 0 };
  }
}

function checkSpace({ required, free, reclaimed }: Space, create: boolean): void {
  if (!create) throw new Skipped('the target exists');
  if (required === undefined) throw new Skipped('the format of the target does not tell what it needs');
  if (free === undefined) throw new Skipped('the file system does not tell what is free');
  if (required > free + reclaimed) {
    const text = `${required} bytes are needed at most, ${free + reclaimed} are free`;
    throw new ImageError('no-space', text, { errno: 'ENOSPC', check: 'space' });
  }
}
