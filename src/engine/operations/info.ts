/** image-info: what an image is, without looking at its guest's bytes. */
import type { ImageRef } from '../../protocol/commands/common.js';
import type { ImageInfo, ImageInfoParams, ImageInfoResult } from '../../protocol/commands/image-info.js';
import type { SnapshotInfo as DescribedSnapshot } from '../../protocol/commands/image-snapshot.js';
import { ImageError } from '../error.js';
import type { SnapshotInfo } from '../node/driver.js';
import { fromJson, fromOptionString } from '../node/flat-options.js';
import type { ImageNode } from '../node/image.js';
import { shownName } from '../node/node-name.js';
import { NodeStorage, toldBelow } from '../node/node-storage.js';
import { openImage, recordedPath } from '../node/open.js';
import { PROTOCOLS } from '../node/open-storage.js';
import type { FileStorage } from '../storage/file.js';
import type { Storage } from '../storage/storage.js';
import type { OperationContext } from './context.js';

/** QEMU counts the length of files in sectors. */
const SECTOR = 512;
/** No sane chain is longer; names that grow with every layer never repeat. */
const MAX_CHAIN = 256;

/** Whether the caller named a protocol where others name a format: the file itself is the image then. */
function namesProtocol(ref: ImageRef): boolean {
  if (ref.format !== undefined) return PROTOCOLS.has(ref.format);
  // One bare word is the name of a held node.
  if (ref.node !== undefined || ref['image-opts']?.includes('=') === false) return false;
  const { filename } = ref;
  const options =
    ref['image-opts'] !== undefined
      ? fromOptionString(ref['image-opts'])
      : filename?.startsWith('json:')
        ? fromJson(filename.slice('json:'.length))
        : undefined;
  const driver = options?.take('driver');
  return typeof driver === 'string' && PROTOCOLS.has(driver);
}

/** What the reference tells of a node that is no image's format: a protocol, or a filter. */
export async function storageInfo(storage: Storage): Promise<ImageInfo> {
  if (storage instanceof NodeStorage) return imageInfo(storage.image);
  const actual = await storage.allocated();
  const info: ImageInfo = {
    filename: storage.filename,
    format: storage.driver,
    'virtual-size': Math.ceil(storage.size / SECTOR) * SECTOR,
    ...(actual === undefined ? {} : { 'actual-size': actual }),
  };
  if (storage.children !== undefined) {
    const { clusterSize, dirty } = await toldBelow(storage);
    if (clusterSize !== undefined) info['cluster-size'] = clusterSize;
    if (dirty !== undefined) info['dirty-flag'] = dirty;
    info.children = await childrenOf(storage.children);
    return info;
  }
  if (isHostFile(storage)) {
    info['dirty-flag'] = false;
    info['format-specific'] = { type: 'file', data: {} };
  }
  info.children = [];
  return info;
}

/** Only files and devices of the host have something specific to tell. */
function isHostFile(storage: Storage): boolean {
  return storage.driver === 'file' || storage.driver === 'host_device';
}

/** QAPI's form of a snapshot. */
export function snapshotInfo(snapshot: SnapshotInfo): DescribedSnapshot {
  const { id, name, vmClockNsec, icount } = snapshot;
  return {
    id,
    name,
    'vm-state-size': snapshot.vmStateSize,
    'date-sec': snapshot.dateSec,
    'date-nsec': snapshot.dateNsec,
    'vm-clock-sec': Number(vmClockNsec / 1_000_000_000n),
    'vm-clock-nsec': Number(vmClockNsec % 1_000_000_000n),
    ...(icount === undefined ? {} : { icount: Number(icount) }),
  };
}

type Child = { name: string; info: ImageInfo };

/** The last attached child comes first. */
async function childrenOf(storages: ReadonlyMap<string, Storage>): Promise<Child[]> {
  const children: Child[] = [];
  for (const [name, storage] of [...storages].reverse()) {
    children.push({ name, info: await storageInfo(storage) });
  }
  return children;
}

/** QAPI's ImageInfo of one opened layer. */
export async function imageInfo(image: ImageNode): Promise<ImageInfo> {
  const { format, file, driver } = image;
  const own = await format.info();
  const children = await childrenOf(new Map([['file', file], ...format.children]));
  const info: ImageInfo = {
    filename: shownName(image.name),
    format: driver.name,
    'virtual-size': format.size,
  };
  if (children.every((child) => child.info['actual-size'] !== undefined)) {
    info['actual-size'] = children.reduce((sum, child) => sum + child.info['actual-size']!, 0);
  }
  if (image.backing !== undefined) {
    children.unshift({ name: 'backing', info: await imageInfo(image.backing) });
  }
  if (own.clusterSize) info['cluster-size'] = own.clusterSize;
  if (own.encrypted) info.encrypted = true;
  if (own.compressed) info.compressed = true;
  if (own.dirty !== undefined) info['dirty-flag'] = own.dirty;
  const { backing } = format;
  if (backing !== undefined) {
    info['backing-filename'] = backing.filename;
    const full = recordedPath(image.name, backing.filename);
    if (full !== undefined) info['full-backing-filename'] = full;
    if (backing.format !== undefined) info['backing-filename-format'] = backing.format;
  }
  const snapshots = format.snapshots?.list() ?? [];
  if (snapshots.length > 0) info.snapshots = snapshots.map(snapshotInfo);
  if (own.specific !== undefined) info['format-specific'] = own.specific;
  info.children = children;
  return info;
}

interface Layer {
  readonly info: ImageInfo;
  /** Tells the same file under another name; undefined for what is no file of the host. */
  readonly identity: string | undefined;
}

async function openLayer(ref: ImageRef, context: OperationContext): Promise<Layer> {
  const image = await openImage(ref, { noBacking: true, metadataOnly: true }, context);
  try {
    const info = namesProtocol(ref) ? await storageInfo(image.file) : await imageInfo(image);
    const { identity } = image.file as Partial<FileStorage>;
    return { info, identity: identity && `${identity.device}:${identity.inode}` };
  } finally {
    await image.close();
  }
}

/**
 * What an image is, or each image of its backing chain, top first. Backing files are opened one at a time, by the names
 * that the images above have for them.
 */
export async function info(params: ImageInfoParams, context: OperationContext): Promise<ImageInfoResult> {
  const images: ImageInfo[] = [];
  const seen = new Set<string>();
  let ref: ImageRef | undefined = params.image;
  while (ref !== undefined) {
    const name: string = ref.filename ?? ref['image-opts'] ?? ref.node ?? '';
    const endless = () => {
      throw new ImageError('invalid', `Backing file '${name}' creates an infinite loop.`, {
        path: name,
        check: 'backing-loop',
      });
    };
    if (seen.has(`name ${name}`)) endless();
    seen.add(`name ${name}`);
    if (images.length >= MAX_CHAIN) {
      throw new ImageError('limit', `The backing chain has more than ${MAX_CHAIN} layers`, { path: name });
    }
    const waits = context.pace(0);
    if (waits !== undefined) await waits;
    const layer: Layer = await openLayer(ref, context);
    if (layer.identity !== undefined) {
      if (seen.has(layer.identity)) endless();
      seen.add(layer.identity);
    }
    images.push(layer.info);
    const next = layer.info['full-backing-filename'];
    if (params['backing-chain'] !== true || next === undefined) break;
    const format = layer.info['backing-filename-format'];
    ref = {
      filename: next,
      ...(format === undefined ? {} : { format }),
      ...(ref['force-share'] === undefined ? {} : { 'force-share': ref['force-share'] }),
      ...(ref.cache === undefined ? {} : { cache: ref.cache }),
    };
  }
  return { images };
}
