/** From an image file to its extents: the descriptor, the files that it names, their headers. */
import { ImageError } from '../../error.js';
import type { OpenContext } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import {
  type ExtentLine,
  parseCreateType,
  parseExtents,
  readContentIds,
  readDescriptor,
} from './descriptor.js';
import type { SparseGeometry, VmdkExtent } from './extent.js';
import { MAGIC_COWD, MAGIC_HOSTED, SECTOR } from './layout.js';
import { openSeSparse } from './sesparse.js';
import { capacityBytes, openHosted, openSparse, readHostedHeader, readMagic } from './sparse.js';

export interface VmdkImage {
  readonly extents: readonly VmdkExtent[];
  /** By child name, `extents.N`; the image file itself is not among them. */
  readonly children: ReadonlyMap<string, Storage>;
  readonly size: number;
  /** As the descriptor has it, or as the header implies; empty for a lone COWD file. */
  readonly createType: string;
  /** Of the file with the descriptor: where the content ids are looked for, in bytes. */
  readonly file: Storage;
  readonly idsAt: number;
  /** Another one as soon as content is written. */
  cid: number;
  readonly parentCid: number;
  readonly parentName: string | undefined;
}

/** Embedded descriptors are taken from the sector after the header, as the reference does, wherever the header points. */
const EMBEDDED_AT = SECTOR;

/** Collects extents one after another in the guest disk. */
class Assembly {
  readonly extents: VmdkExtent[] = [];
  readonly children = new Map<string, Storage>();
  size = 0;
  createType = '';

  place(size: number): { at: number } {
    const at = this.size;
    this.size = capacityBytes((BigInt(at) + BigInt(size)) / BigInt(SECTOR));
    return { at };
  }

  sparse(storage: Storage, type: string, geometry: SparseGeometry): void {
    const { at } = this.place(geometry.size);
    this.extents.push({ kind: 'sparse', ...geometry, storage, type, at, index: this.extents.length });
    // What is compressed is called so whatever a descriptor says.
    if (geometry.compressed) this.createType = 'streamOptimized';
  }

  async closeChildren(): Promise<void> {
    for (const storage of this.children.values()) await storage.close();
  }
}

async function openLine(context: OpenContext, into: Assembly, line: ExtentLine): Promise<void> {
  const { type } = line;
  const size = capacityBytes(line.sectors);
  if (type === 'ZERO') {
    into.extents.push({ kind: 'zero', size, type, ...into.place(size) });
    return;
  }
  const child = `extents.${into.extents.length}`;
  const how = { writable: context.writable && !line.readOnly };
  const storage = await context.openChild(child, line.filename, how).catch((error: unknown) => {
    throw error instanceof ImageError && error.message.startsWith('Cannot generate a base directory')
      ? error.prefixed(`Cannot use relative paths with VMDK descriptor file '${context.file.filename}': `)
      : error;
  });
  if (storage === undefined) {
    throw new ImageError('not-found', `Could not open '${line.filename}': No such file or directory`);
  }
  into.children.set(child, storage);
  switch (type) {
    case 'FLAT':
    case 'VMFS':
      into.extents.push({
        kind: 'flat',
        size,
        type,
        ...into.place(size),
        storage,
        start: capacityBytes(line.offset),
      });
      break;
    case 'SPARSE':
    case 'VMFSSPARSE':
      // The header's capacity counts, not the line's: the reference does not compare them either.
      into.sparse(storage, type, await openSparse(storage, await readMagic(storage), context.writable));
      break;
    case 'SESPARSE':
      into.sparse(storage, type, await openSeSparse(storage, context.writable));
      break;
  }
}

async function openDescriptor(context: OpenContext, into: Assembly, at: number): Promise<void> {
  const text = await readDescriptor(context.file, at);
  into.createType = parseCreateType(text);
  for (const line of parseExtents(text)) await openLine(context, into, line);
}

async function openMonolithic(context: OpenContext, into: Assembly, magic: number): Promise<void> {
  const { file, writable } = context;
  if (magic === MAGIC_COWD) {
    into.sparse(file, '', await openSparse(file, magic, writable));
    return;
  }
  const header = await readHostedHeader(file);
  if (header.capacity === 0n && header.descriptorOffset !== 0n) {
    // No grains of its own, just a descriptor that names others.
    await openDescriptor(context, into, capacityBytes(header.descriptorOffset));
    return;
  }
  into.createType = 'monolithicSparse';
  into.sparse(file, '', await openHosted(file, header, writable));
}

/** Opens all that the image consists of. On failure what was opened is closed again. */
export async function openImage(context: OpenContext): Promise<VmdkImage> {
  const { file } = context;
  const into = new Assembly();
  try {
    const magic = await readMagic(file);
    const binary = magic === MAGIC_HOSTED || magic === MAGIC_COWD;
    if (binary) await openMonolithic(context, into, magic);
    else await openDescriptor(context, into, 0);
    const idsAt = binary ? EMBEDDED_AT : 0;
    const ids = await readContentIds(file, idsAt);
    const { extents, children, size, createType } = into;
    return { extents, children, size, createType, file, idsAt, ...ids };
  } catch (error) {
    await into.closeChildren().catch(() => undefined);
    throw error;
  }
}
