/** The dirty bitmaps of held nodes: those in the image, and those that are in memory alone. */
import {
  bitmapExists,
  bitmapNotFound,
  DirtyBitmaps,
  defaultGranularity,
  facetOf,
} from '../../engine/node/dirty-bitmaps.js';
import type { BitmapFacet } from '../../engine/node/driver.js';
import type { DirtyBitmapInfo } from '../../protocol/commands/blockdev.js';
import type { HeldNode } from './graph.js';

export interface BitmapPlace {
  readonly node: string;
  readonly name: string;
}

/** A change of a bitmap that is in memory alone. */
export type BitmapChange = BitmapPlace &
  (
    | { readonly action: 'add'; readonly granularity: number | undefined; readonly recording: boolean }
    | { readonly action: 'remove' | 'clear' | 'enable' | 'disable' }
    | { readonly action: 'merge'; readonly source: BitmapPlace }
  );

function inImage(node: HeldNode): BitmapFacet | undefined {
  return node.image?.format.bitmapStore;
}

function inMemory(node: HeldNode): DirtyBitmaps | undefined {
  return node.image === undefined ? node.file?.dirtyBitmaps : node.image.dirtyBitmaps;
}

async function made(node: HeldNode): Promise<DirtyBitmaps> {
  const found = inMemory(node);
  if (found !== undefined) return found;
  const { image, file } = node;
  const granularity = defaultGranularity((await image?.format.info())?.clusterSize);
  const size = () => (image === undefined ? file!.storage.size : image.size);
  const bitmaps = new DirtyBitmaps(size, granularity);
  if (image !== undefined) image.dirtyBitmaps = bitmaps;
  else file!.dirtyBitmaps = bitmaps;
  return bitmaps;
}

/** @param find gives a node by its name, or throws. */
export async function changeBitmap(change: BitmapChange, find: (node: string) => HeldNode): Promise<void> {
  const { name } = change;
  const node = find(change.node);
  if (change.action === 'add') {
    const stored = inImage(node)?.list() ?? [];
    if (stored.some((each) => each.name === name)) throw bitmapExists(name);
    const bitmaps = await made(node);
    // Those that came before are listed before it.
    node.bitmapNames = namesOf(node);
    await bitmaps.add(name, change.granularity);
    return bitmaps.setEnabled(name, change.recording);
  }
  const bitmaps = inMemory(node);
  if (bitmaps === undefined) throw bitmapNotFound(name);
  switch (change.action) {
    case 'remove':
      return bitmaps.remove(name);
    case 'clear':
      return bitmaps.clear(name);
    case 'enable':
    case 'disable':
      return bitmaps.setEnabled(name, change.action === 'enable');
    case 'merge': {
      const from = find(change.source.node);
      const source = facetOf(inMemory(from), inImage(from), change.source.name);
      if (source === undefined) throw bitmapNotFound(change.source.name);
      return bitmaps.merge(name, await source.content(change.source.name));
    }
  }
}

/** All of a node's, the oldest first. */
function namesOf(node: HeldNode): string[] {
  const all = [inImage(node), inMemory(node)].flatMap((facet) => facet?.list().map(({ name }) => name) ?? []);
  const there = new Set(all);
  // A set keeps the order: those that were seen before, then the others.
  return [...new Set([...node.bitmapNames.filter((name) => there.has(name)), ...all])];
}

/** The newest first, as QEMU lists them. `count` is 0 where not `counted`. */
export async function listBitmaps(node: HeldNode, counted: boolean): Promise<DirtyBitmapInfo[]> {
  const found = new Map<string, DirtyBitmapInfo>();
  for (const [facet, persistent] of [
    [inImage(node), true],
    [inMemory(node), false],
  ] as const) {
    const list = facet?.list() ?? [];
    const counts = counted && list.length > 0 ? await facet!.counts() : undefined;
    for (const { name, granularity, flags } of list) {
      const inconsistent = flags.includes('in-use');
      found.set(name, {
        name,
        recording: flags.includes('auto') && !inconsistent,
        persistent,
        ...(inconsistent ? { inconsistent } : {}),
        busy: false,
        granularity,
        count: counts?.get(name) ?? 0,
      });
    }
  }
  node.bitmapNames = namesOf(node);
  return node.bitmapNames.flatMap((name) => found.get(name) ?? []).reverse();
}
