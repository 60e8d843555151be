/** image-dd: blocks of an image into a new one. */
import { unlinkSync } from 'node:fs';
import type { ImageDdParams, ImageDdResult } from '../../protocol/commands/image-dd.js';
import { errnoText, hostError, ImageError } from '../error.js';
import { loadDriver } from '../formats/index.js';
import type { ImageNode } from '../node/image.js';
import { displayName, openImage } from '../node/open.js';
import type { OperationContext } from './context.js';
import { type CopySource, copy, imageSource } from './copy.js';
import { type CreatedImage, createImage, type NewFiles } from './create.js';

/** How the copy loop's errors of reading begin. */
const READ_ERROR = 'error while reading at byte ';

/** The format of the target; the reference does not say the name of one that it does not know. */
export async function checkFormat(format: string): Promise<void> {
  const driver = await loadDriver(format);
  if (driver === undefined) throw new ImageError('invalid', 'Unknown file format');
  if (driver.create === undefined) {
    throw new ImageError('unsupported', `Format driver '${format}' does not support image creation`);
  }
}

/** What of an image of `size` bytes is copied: [from, end). `start` may be behind the end. */
export function rangeOf(
  params: ImageDdParams,
  size: number,
): { readonly start: number; readonly from: number; readonly end: number } {
  const { 'block-size': block = 512, count = Number.POSITIVE_INFINITY, skip = 0 } = params;
  const end = Math.min(size, count * block);
  const start = skip * block;
  return { start, from: Math.min(start, end), end };
}

export async function createTarget(
  { target: { filename, format = 'raw' } }: ImageDdParams,
  size: number,
  context: OperationContext,
  files?: NewFiles,
): Promise<CreatedImage> {
  try {
    return await createImage({ filename, format, size }, context, files);
  } catch (error) {
    throw creationError(error, filename);
  }
}

export function creationError(error: unknown, filename: string): ImageError {
  return hostError(`${filename}: error while creating output image`, error);
}

/** Bytes [from, to) of an image, as a source of their own. */
function part(image: ImageNode, from: number, to: number): CopySource {
  const whole = imageSource(image, false, 0);
  return { size: to - from, run: ({ at, length }) => whole.run({ at: from + at, length }) };
}

/** Why bytes could not be moved, in the reference's words: which side it was, and the errno's text. */
function failure(error: unknown): unknown {
  if (!(error instanceof ImageError) || error.kind === 'cancelled') return error;
  const { errno } = error.context;
  const side = error.message.startsWith(READ_ERROR)
    ? 'error while reading from input image file'
    : 'error while writing to output image file';
  return new ImageError(
    error.kind,
    `${side}: ${errno === undefined ? error.message : errnoText(errno)}`,
    error.context,
    error,
  );
}

/**
 * Copies blocks. The blocks are only how the range is told: reads and writes are as large as a conversion's.
 *
 * @throws ImageError; what a failed copy has created is removed again.
 */
export async function dd(params: ImageDdParams, context: OperationContext): Promise<ImageDdResult> {
  if (params['dry-run'] === true) {
    const { ddPlan } = await import('./dry-run/dd.js');
    return ddPlan(params, context);
  }
  const { target } = params;
  const format = target.format ?? 'raw';
  await checkFormat(format);
  const image = await openImage(params.image, {}, context);
  let output: ImageNode | undefined;
  let created: readonly string[] = [];
  try {
    const { from, start, end } = rangeOf(params, image.size);
    created = (await createTarget(params, end - from, context)).created;
    output = await openImage({ filename: target.filename, format }, { writable: true }, context);
    if (start > end) {
      context.output({
        stream: 'stderr',
        text: `qemu-img: ${displayName(params.image)}: cannot skip to specified offset\n`,
      });
    }
    const source = part(image, from, end);
    const options = {
      outOfOrder: false,
      // Zeros too are written: the new file has all of its blocks.
      sparse: 0,
      targetIsZero: true,
      compress: false,
    };
    await copy(source, output, options, context).catch((error: unknown) => {
      throw failure(error);
    });
    await output.flush();
    await output.close();
    await image.close();
    return { copied: source.size };
  } catch (error) {
    await output?.close().catch(() => {});
    await image.close().catch(() => {});
    created.forEach(remove);
    throw error;
  }
}

function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody else has removed it.
  }
}
