/** The target of a conversion: what it shall be, what it must not be, and its making. */
import type { FormatOptions } from '../../protocol/commands/common.js';
import type { ImageConvertParams } from '../../protocol/commands/image-convert.js';
import { hostError, ImageError } from '../error.js';
import { loadDriver } from '../formats/index.js';
import { absolutePath } from '../node/gate.js';
import type { ImageNode } from '../node/image.js';
import { backingPath } from '../node/open.js';
import { identity } from '../node/open-storage.js';
import type { OperationContext } from './context.js';
import { type CreateSpec, checkCreateSpec, createImage } from './create.js';
import { consistsOf } from './create-backing.js';
import { creatablePath } from './create-options.js';

/** Refusals that need no file to be opened beyond the sources. */
export async function checkTarget(params: ImageConvertParams): Promise<void> {
  const { target } = params;
  const create = params.create ?? true;
  if (!create && (params.atomic === true || params.resume === true)) {
    throw new ImageError('invalid', "'atomic' and 'resume' are for targets that are created");
  }
  if (params.resume === true && target.cache === 'unsafe') {
    throw new ImageError(
      'invalid',
      "'resume' needs a target that is flushed: its cache mode cannot be unsafe",
    );
  }
  if (create) {
    if (target.node !== undefined) {
      throw new ImageError(
        'invalid',
        'A held node is not created anew: it is a target with create=false only',
      );
    }
    if (target['image-opts'] !== undefined) {
      throw new ImageError('invalid', '--target-image-opts requires use of -n flag');
    }
    const name = target.format ?? 'raw';
    const driver = await loadDriver(name);
    if (driver === undefined) throw new ImageError('invalid', `Unknown file format '${name}'`);
    if (driver.create === undefined) {
      throw new ImageError('unsupported', `Format driver '${name}' does not support image creation`);
    }
  }
}

/**
 * The target must not be made out of a source, or of its own backing file: creating it empties it. Locks see to the former,
 * but not where the source is opened without (`-U`, `locking=off`): then it is refused in the same words. To the latter they
 * would come too late.
 */
export function checkApart(
  sources: readonly ImageNode[],
  params: ImageConvertParams,
  { cwd }: OperationContext,
): void {
  const filename = params.target.filename!;
  const path = absolutePath(creatablePath(filename), cwd);
  const shared = params.sources.some((ref, index) => {
    const locked = ref['force-share'] !== true && ref.filename?.startsWith('json:') === false;
    return !locked && consistsOf(sources[index]!, path);
  });
  if (shared) {
    const hint = `Is another process using the image [${filename}]?`;
    throw new ImageError('locked', 'Failed to get "write" lock', { path: filename, operation: 'lock', hint });
  }
  const backing = params.backing ?? params.options?.backing_file;
  if (typeof backing !== 'string' || backing === '') return;
  const below = identity(absolutePath(backingPath(filename, backing), cwd));
  if (below !== undefined && below === identity(path)) {
    throw new ImageError('invalid', `'${filename}' cannot be its own backing file`, { path: filename });
  }
}

/** What the new image shall be. Throws where that makes no sense, before anything is touched. */
export async function targetSpec(params: ImageConvertParams, size: number): Promise<CreateSpec> {
  const { backing, options = {}, 'backing-format': backingFormat } = params;
  const format = params.target.format ?? 'raw';
  const spec = {
    filename: params.target.filename!,
    format,
    size,
    options,
    ...(backing === undefined ? {} : { backing }),
    ...(backingFormat === undefined ? {} : { 'backing-format': backingFormat }),
  };
  const backed = backing !== undefined || options.backing_file !== undefined;
  await checkCreateSpec(spec);
  if (backed && params.sources.length > 1) {
    throw new ImageError(
      'invalid',
      'Having a backing file for the target makes no sense when concatenating multiple input images',
    );
  }
  if (backed && (backingFormat ?? options.backing_fmt) === undefined) {
    throw new ImageError('invalid', 'Use of backing file requires explicit backing format');
  }
  if (params.compress === true) await checkCompressed(format, options);
  // It is as large as its sources, whatever the options say; they are looked at all the same.
  const { size: _, ...others } = options;
  return { ...spec, options: others };
}

/** Creates the target; gives the files that were not there before. */
export async function createTarget(
  sources: readonly ImageNode[],
  params: ImageConvertParams,
  spec: CreateSpec,
  context: OperationContext,
  at?: string,
): Promise<readonly string[]> {
  try {
    checkApart(sources, params, context);
    const { path, created } = await createImage({ ...spec, at }, context);
    // A temporary file that was left behind by a crash is this call's now.
    return at === undefined ? created : [path];
  } catch (error) {
    throw creationError(error, params);
  }
}

/** Why the target could not be made. */
export function creationError(error: unknown, { target }: ImageConvertParams): ImageError {
  return hostError(`${target.filename}: error while converting ${target.format ?? 'raw'}`, error);
}

/** What a new image cannot be together with compressed, in the reference's words; options are not checked otherwise. */
async function checkCompressed(format: string, options: FormatOptions): Promise<void> {
  const driver = await loadDriver(format);
  if (driver !== undefined && driver.compresses !== true) throw notCompressed();
  const { encryption, preallocation } = options;
  const encrypted = options['encrypt.format'] !== undefined || encryption === 'on' || encryption === true;
  if (encrypted) throw new ImageError('invalid', 'Compression and encryption not supported at the same time');
  if (preallocation !== undefined && preallocation !== 'off') {
    throw new ImageError('invalid', 'Compression and preallocation not supported at the same time');
  }
}

export function notCompressed(): ImageError {
  return new ImageError('unsupported', 'Compression not supported for this file format');
}
