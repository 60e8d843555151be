/** Held nodes as QAPI's BlockDeviceInfo tells of them. */
import { shownName } from '../../engine/node/node-name.js';
import { recordedPath } from '../../engine/node/open.js';
import { imageInfo, storageInfo } from '../../engine/operations/info.js';
import type { BlockDeviceInfo } from '../../protocol/commands/blockdev.js';
import type { ImageInfo } from '../../protocol/commands/image-info.js';
import type { HeldNode } from './graph.js';
import { listBitmaps } from './node-bitmaps.js';

/** Chains are cut here: what is deeper was refused when it was opened. */
const MAX_DEPTH = 300;

type Info = BlockDeviceInfo['image'];

async function ownInfo(node: HeldNode): Promise<Info> {
  const info: ImageInfo =
    node.image === undefined ? await storageInfo(node.file!.storage) : await imageInfo(node.image);
  const { children: _, ...own } = info;
  return { ...own, filename: nameOf(node) };
}

/** The name that opens the same, as `json:` where its file's name alone would open something else. */
function nameOf(node: HeldNode): string {
  if (node.image === undefined) {
    const { name } = node.file!;
    // `null-co://` has no size.
    const telling = node.settings.driver.startsWith('null-') && Object.keys(name.options).length > 1;
    return shownName(telling ? { ...name, plain: undefined } : name);
  }
  const { name } = node.image;
  return overridden(node)
    ? shownName({ ...name, plain: undefined, options: optionsOf(node) })
    : shownName(name);
}

/** Whether its backing file is not the one that the image names. */
function overridden(node: HeldNode): boolean {
  const { name, format } = node.image!;
  const recorded = format.backing && recordedPath(name, format.backing.filename);
  const below = node.children.get('backing')?.to;
  return below === undefined ? recorded !== undefined : recorded !== nameOf(below);
}

function optionsOf(node: HeldNode): Readonly<Record<string, unknown>> {
  if (node.image === undefined) return node.file!.name.options;
  const { options } = node.image.name;
  if (!overridden(node)) return options;
  const below = node.children.get('backing')?.to;
  return { backing: below === undefined ? null : optionsOf(below), ...options };
}

/** What shows through: the backing file, or the child of a filter. */
function underneath({ image, children, settings }: HeldNode): HeldNode | undefined {
  if (image !== undefined) return children.get('backing')?.to;
  if (settings.driver === 'quorum') return undefined;
  return (children.get('image') ?? children.get('test') ?? children.get('file'))?.to;
}

function depthOf(node: HeldNode): number {
  let depth = 0;
  for (let below = underneath(node); below !== undefined && depth < MAX_DEPTH; below = underneath(below))
    depth++;
  return depth;
}

async function withBacking(node: HeldNode, infos: Map<HeldNode, Info>, depth = 0): Promise<Info> {
  let info = infos.get(node);
  if (info === undefined) {
    info = await ownInfo(node);
    infos.set(node, info);
  }
  const below = underneath(node);
  if (below === undefined || depth >= MAX_DEPTH) return info;
  return { ...info, 'backing-image': await withBacking(below, infos, depth + 1) };
}

export async function describe(nodes: readonly HeldNode[], flat: boolean): Promise<BlockDeviceInfo[]> {
  const infos = new Map<HeldNode, Info>();
  const told: BlockDeviceInfo[] = [];
  for (const node of nodes) {
    // One that is being closed meanwhile is not there.
    const image = await (flat ? ownInfo(node) : withBacking(node, infos)).catch(() => undefined);
    if (image === undefined) continue;
    const { settings } = node;
    const bitmaps = await listBitmaps(node, true).catch(() => []);
    const backing = node.image?.format.backing;
    const below = node.children.get('backing')?.to;
    told.push({
      'node-name': node.name,
      drv: settings.driver,
      ro: !node.writable,
      file: image.filename,
      ...(below === undefined
        ? {}
        : { backing_file: (overridden(node) ? undefined : backing?.filename) ?? nameOf(below) }),
      backing_file_depth: flat ? 0 : depthOf(node),
      active: true,
      encrypted: image.encrypted ?? false,
      detect_zeroes: settings.detectZeroes,
      bps: 0,
      bps_rd: 0,
      bps_wr: 0,
      iops: 0,
      iops_rd: 0,
      iops_wr: 0,
      image,
      cache: { writeback: true, direct: settings.direct, 'no-flush': settings.noFlush },
      write_threshold: 0,
      ...(bitmaps.length === 0 ? {} : { 'dirty-bitmaps': bitmaps }),
    });
  }
  return told;
}
