/** Going on with a conversion that was cut off: what is remembered of it, and whether that still holds. */
import { stat } from 'node:fs/promises';
import { ImageError } from '../error.js';
import { absolutePath } from '../node/gate.js';
import type { ImageNode } from '../node/image.js';
import type { openImage } from '../node/open.js';
import { identity } from '../node/open-storage.js';
import { FileStorage } from '../storage/file-storage.js';
import type { OperationContext } from './context.js';

/** How far a conversion has come, as the daemon's journal keeps it. */
export interface ConvertMark {
  readonly offset: number;
  readonly size: number;
  /** `device:inode` of the target's file, and its path. */
  readonly target: string;
  readonly path: string;
  /** The files that the conversion made: where it fails, they go. */
  readonly created?: readonly string[];
  /** All files of the sources and their backing chains, as they were. */
  readonly sources: readonly string[];
  /** Size and time of change of the target's file, as the daemon after the crash found it. */
  readonly seen?: string;
}

/** Compared before the offset, and at the start of the image. */
const TAIL = 8 * 1024 * 1024;
const HEAD = 1024 * 1024;
const PART = 1024 * 1024;

/** What tells a file from another, and from itself at another time. */
async function fingerprint(path: string): Promise<string> {
  const found = await stat(path, { bigint: true });
  // A device's node stays as it is whatever is written to the device.
  if (!found.isFile()) throw new ImageError('unsupported', `'${path}' is no regular file`);
  const { dev, ino, size, mtimeNs, ctimeNs } = found;
  return `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`;
}

export async function fileIdentity(path: string): Promise<string> {
  const { dev, ino } = await stat(path, { bigint: true });
  return `${dev}:${ino}`;
}

/** Undefined where a source is no regular file of the host: nobody can tell whether that has changed. */
export async function sourceFingerprints(
  images: readonly ImageNode[],
  { cwd }: OperationContext,
): Promise<string[] | undefined> {
  const paths = new Set<string>();
  for (const image of images) {
    for (let layer: ImageNode | undefined = image; layer !== undefined; layer = layer.backing) {
      if (layer.path === undefined) return undefined;
      paths.add(layer.path);
      for (const child of layer.format.children.values()) {
        if (!(child instanceof FileStorage)) return undefined;
        const path = absolutePath(child.filename, cwd);
        const { device, inode } = child.identity;
        if (identity(path) !== `${device}:${inode}`) return undefined;
        paths.add(path);
      }
    }
  }
  try {
    return await Promise.all([...paths].map((path) => fingerprint(path)));
  } catch {
    return undefined;
  }
}

function isString(value: unknown): value is string {
  return typeof value === 'string';
}

function isMark(value: unknown): value is ConvertMark {
  const mark = value as ConvertMark | undefined;
  return (
    typeof mark?.offset === 'number' &&
    typeof mark.path === 'string' &&
    Array.isArray(mark.sources ?? undefined) &&
    (mark.created === undefined || (Array.isArray(mark.created) && mark.created.every(isString)))
  );
}

/**
 * The target as it was left, opened to go on writing, where the sources are what they were and it has what it should.
 *
 * @returns why not, otherwise; undefined where nothing is remembered.
 */
export async function openUnfinished(
  sources: readonly ImageNode[],
  size: number,
  open: (path: string) => ReturnType<typeof openImage>,
  context: OperationContext,
): Promise<{ target: ImageNode; mark: ConvertMark } | string | undefined> {
  const mark = context.checkpoint?.last;
  if (mark === undefined || mark === null) return undefined;
  if (!isMark(mark)) return 'what is remembered of it makes no sense';
  const now = await sourceFingerprints(sources, context);
  if (size !== mark.size || JSON.stringify(now) !== JSON.stringify(mark.sources))
    return 'a source has changed';
  let target: ImageNode | undefined;
  try {
    if ((await fileIdentity(mark.path)) !== mark.target) return 'the target is another file';
    const { size: bytes, mtimeNs } = await stat(mark.path, { bigint: true });
    if (mark.seen !== undefined && mark.seen !== `${bytes}:${mtimeNs}`) return 'the target was changed since';
    target = await open(mark.path);
    const { file } = target;
    if (file instanceof FileStorage && `${file.identity.device}:${file.identity.inode}` !== mark.target) {
      return await refused(target, 'the target is another file');
    }
    if (target.size < size) return await refused(target, 'the target has another size');
    const same = await agree(sources, target, mark.offset, context);
    return same ? { target, mark } : await refused(target, 'the target has other content');
  } catch (error) {
    await target?.close().catch(() => {});
    if (error instanceof ImageError && (error.kind === 'cancelled' || error.kind === 'locked')) throw error;
    return `the target cannot be gone on with (${error instanceof Error ? error.message : String(error)})`;
  }
}

async function refused(target: ImageNode, reason: string): Promise<string> {
  await target.close();
  return reason;
}

/** The start of the content, and the last stretch before `offset`. */
async function agree(
  sources: readonly ImageNode[],
  target: ImageNode,
  offset: number,
  context: OperationContext,
): Promise<boolean> {
  const tail = Math.max(0, offset - TAIL);
  const ranges = [
    [0, Math.min(HEAD, tail)],
    [tail, offset],
  ] as const;
  const buffers = [Buffer.alloc(PART), Buffer.alloc(PART)] as const;
  for (const [start, end] of ranges) {
    for (let at = start; at < end; at += PART) {
      if (context.signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
      const [mine, theirs] = buffers.map((buffer) => buffer.subarray(0, Math.min(PART, end - at)));
      await Promise.all([target.read(at, mine!), readAll(sources, at, theirs!)]);
      if (!mine!.equals(theirs!)) return false;
    }
  }
  return true;
}

/** Guest bytes of the sources, one after another. */
async function readAll(sources: readonly ImageNode[], at: number, into: Buffer): Promise<void> {
  let start = 0;
  let done = 0;
  for (const image of sources) {
    const from = at + done - start;
    if (from < image.size && done < into.byteLength) {
      const part = into.subarray(done, done + image.size - from);
      await image.read(from, part);
      done += part.byteLength;
    }
    start += image.size;
  }
}
