/** Finding layers in a backing chain, and what a layer has of its own above another. */
import { realpathSync } from 'node:fs';
import type { MaybePromise, Range } from '../storage/storage.js';
import type { Extent } from './driver.js';
import { protocolOf } from './flat-options.js';
import { absolutePath, relativeTo } from './gate.js';
import type { ImageNode } from './image.js';

function canonical(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}

/**
 * The layer below `top` that `name` names, as QEMU looks for it: a name with a protocol is compared as it is with what each
 * image says of its backing file; another is relative to the folder of each image in turn, and the files are compared.
 */
export function findLayer(top: ImageNode, name: string, cwd: string): ImageNode | undefined {
  const special = name.startsWith('json:') || protocolOf(name) !== undefined;
  for (let layer = top; layer.backing !== undefined; layer = layer.backing) {
    const below = layer.backing;
    if (name === '') continue;
    if (special || below.path === undefined) {
      if (name === layer.format.backing?.filename || name === below.filename) return below;
      continue;
    }
    const wanted = canonical(absolutePath(relativeTo(layer.filename, name), cwd));
    if (wanted !== undefined && wanted === canonical(below.path)) return below;
  }
  return undefined;
}

/** How many layers `below` lies under `top`; -1 where it does not. */
export function depthOf(top: ImageNode, below: ImageNode): number {
  let depth = 0;
  for (let layer: ImageNode | undefined = top; layer !== undefined; layer = layer.backing, depth++) {
    if (layer === below) return depth;
  }
  return -1;
}

/**
 * What the layers from `top` down to, but without, `base` have in the first run of the range; `backing` where they have
 * nothing. Where a layer ends before the range, that counts as zeros unless `base` comes next.
 */
export function mapAbove(top: ImageNode, base: ImageNode, range: Range): MaybePromise<Extent> {
  return walk(top, base, range.at, range.length);
}

function walk(start: ImageNode, base: ImageNode, at: number, length: number): MaybePromise<Extent> {
  let layer = start;
  let rest = length;
  for (;;) {
    const left = layer.format.size - at;
    if (left <= 0) return { kind: 'zero', length: rest };
    const answer = layer.format.map({ at, length: Math.min(rest, left) });
    if (answer instanceof Promise) return later(layer, base, at, answer);
    if (answer.kind !== 'backing') return answer;
    rest = answer.length;
    if (layer.backing === undefined || layer.backing === base) return answer;
    layer = layer.backing;
  }
}

async function later(
  layer: ImageNode,
  base: ImageNode,
  at: number,
  answer: Promise<Extent>,
): Promise<Extent> {
  const extent = await answer;
  if (extent.kind !== 'backing' || layer.backing === undefined || layer.backing === base) return extent;
  return walk(layer.backing, base, at, extent.length);
}
