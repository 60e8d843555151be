/** image-rebase: another backing file for an image, which reads as before. */
import type { ImageRebaseParams, ImageRebaseResult } from '../../protocol/commands/image-rebase.js';
import { errnoText, ImageError } from '../error.js';
import { loadDriver } from '../formats/index.js';
import { findLayer } from '../node/chain.js';
import type { ImageNode } from '../node/image.js';
import { backingPath, openImage } from '../node/open.js';
import type { OperationContext } from './context.js';
import type { CopyTotals } from './copy.js';
import { QEMU_FORMATS } from './create.js';
import { copyDifferences } from './rebase-copy.js';

interface NewBacking {
  readonly filename: string;
  readonly format: string | undefined;
}

/** The new backing file: a layer that is there already, or opened. */
export async function openNew(
  top: ImageNode,
  name: string,
  params: ImageRebaseParams,
  context: OperationContext,
): Promise<{ readonly image: ImageNode; readonly own: boolean }> {
  const path = backingPath(top.filename, name);
  const found = findLayer(top, path.startsWith('json:') ? path : absolute(path, context), context.cwd);
  if (found !== undefined) return { image: found, own: false };
  const format = params['backing-format'];
  const share = params['backing-force-share'];
  const ref = {
    filename: path,
    ...(format === undefined ? {} : { format }),
    ...(share ? { 'force-share': true } : {}),
  };
  try {
    const cache = params['backing-cache'];
    const image = await openImage(ref, cache === undefined ? {} : { cache }, context);
    return { image, own: true };
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    const prefix = `Could not open '${path}': `;
    const rest = error.message.startsWith(prefix) ? error.message.slice(prefix.length) : error.message;
    throw new ImageError(
      error.kind,
      `Could not open new backing file '${name}': ${rest}`,
      error.context,
      error,
    );
  }
}

function absolute(path: string, { cwd }: OperationContext): string {
  return path.startsWith('/') ? path : `${cwd}/${path}`;
}

/** Copies what differs, makes that durable, and then changes the name. Whenever it breaks off, `top` reads as before. */
export async function rebaseOnto(
  top: ImageNode,
  to: ImageNode | undefined,
  backing: NewBacking | undefined,
  compress: boolean,
  context: OperationContext,
): Promise<CopyTotals> {
  const totals = await copyDifferences({ top, from: top.backing, to, compress }, context);
  await changeName(top, backing);
  return totals;
}

async function changeName(top: ImageNode, backing: NewBacking | undefined): Promise<void> {
  const { format } = top;
  if (format.changeBacking === undefined) throw unchangeable(top);
  await top.flush();
  await format.changeBacking(backing?.filename, backing?.format);
}

function unchangeable({ filename }: ImageNode): ImageError {
  return new ImageError('unsupported', 'Operation not supported', { path: filename, errno: 'ENOTSUP' });
}

/** The reference's words for a name that cannot be put into the image. */
function changeError(error: unknown, name: string | undefined): unknown {
  if (!(error instanceof ImageError)) return error;
  const { errno } = error.context;
  let why = errno === undefined ? error.message : errnoText(errno);
  if (errno === 'ENOSPC') why = 'No space left in the file header';
  const text = `Could not change the backing file to '${name ?? '(null)'}': ${why}`;
  return new ImageError(error.kind, text, error.context, error);
}

/** What the image and the words refuse before another file is looked at. */
export async function checkOptions(top: ImageNode, params: ImageRebaseParams): Promise<void> {
  const { 'backing-format': format, compress = false } = params;
  if (compress && top.format.pack === undefined) {
    throw new ImageError('unsupported', 'Compression not supported for this file format');
  }
  if (format !== undefined && !QEMU_FORMATS.has(format) && (await loadDriver(format)) === undefined) {
    throw new ImageError('invalid', `Invalid format name: '${format}'`);
  }
  if (top.driver.tellsClusters === false) {
    throw new ImageError('unsupported', 'could not get block driver info');
  }
}

/** Undefined: none. */
export function newBacking({ backing, 'backing-format': format }: ImageRebaseParams): NewBacking | undefined {
  return backing === undefined || backing === '' ? undefined : { filename: backing, format };
}

export function checkChangeable(top: ImageNode, params: ImageRebaseParams): void {
  const { backing: name } = params;
  if (newBacking(params) !== undefined && params['backing-format'] === undefined) {
    throw new ImageError(
      'invalid',
      `Could not change the backing file to '${name}': backing format must be specified`,
    );
  }
  if (top.format.changeBacking === undefined) throw changeError(unchangeable(top), name);
}

export async function putName(top: ImageNode, params: ImageRebaseParams): Promise<void> {
  try {
    await changeName(top, newBacking(params));
  } catch (error) {
    throw changeError(error, params.backing);
  }
}

export async function rebase(
  params: ImageRebaseParams,
  context: OperationContext,
): Promise<ImageRebaseResult> {
  if (params['dry-run'] === true) {
    const { rebasePlan } = await import('./dry-run/rebase.js');
    return rebasePlan(params, context);
  }
  const { unsafe = false, compress = false } = params;
  const top = await openImage(params.image, { writable: true, noBacking: unsafe }, context);
  const opened: ImageNode[] = [top];
  try {
    await checkOptions(top, params);
    const backing = newBacking(params);
    let to: ImageNode | undefined;
    if (!unsafe && backing !== undefined) {
      const { image, own } = await openNew(top, backing.filename, params, context);
      if (own) opened.push(image);
      to = image;
    }
    // Said before anything is copied: it would be in vain.
    checkChangeable(top, params);
    const job = { top, from: top.backing, to, compress };
    const totals = unsafe ? { written: 0, zeros: 0 } : await copyDifferences(job, context);
    await putName(top, params);
    const { size } = top;
    await closeAll(opened);
    context.progress({ phase: 'done', done: size, total: size, ...totals });
    return totals;
  } catch (error) {
    await closeAll(opened).catch(() => {});
    throw error;
  }
}

async function closeAll(images: ImageNode[]): Promise<void> {
  let failure: unknown;
  for (const image of images.splice(0).reverse()) {
    try {
      await image.close();
    } catch (error) {
      failure ??= error;
    }
  }
  if (failure !== undefined) throw failure;
}
