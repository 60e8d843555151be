/** The metadata region (section 2.6): what kind of disk it is. */
import type { Storage } from '../../storage/storage.js';
import {
  FileFlags,
  FileParameters,
  Item,
  invalid,
  MAX_BLOCK_SIZE,
  MAX_DISK_SIZE,
  MAX_METADATA,
  METADATA_SIGNATURE,
  METADATA_TABLE_SIZE,
  MetadataFlags,
  MetadataTableEntry,
  MetadataTableHeader,
  MIN_BLOCK_SIZE,
  ParentLocatorEntry,
  ParentLocatorHeader,
  SECTOR,
  sameBytes,
  unsupported,
} from './layout.js';
import type { Region } from './regions.js';

export interface Metadata {
  /** Guest bytes, whole sectors. */
  readonly size: number;
  /** Bytes as the image has them: the BAT is for these. */
  readonly diskSize: number;
  readonly blockSize: number;
  /** Fixed: blocks keep their place. */
  readonly fixed: boolean;
}

/** How much of a parent locator is looked at for its message. */
const MAX_LOCATOR = 64 * 1024;
const MAX_LOCATOR_ENTRIES = 64;
/** Keys of a parent's path (2.6.2.6.3), the best first. */
const PATH_KEYS = ['absolute_win32_path', 'relative_path', 'volume_path'];

type ItemName = keyof typeof Item;
type Entry = ReturnType<typeof MetadataTableEntry.decode>;

async function readTable(file: Storage, region: Region): Promise<Map<ItemName, Entry>> {
  const { filename } = file;
  const table = new Uint8Array(METADATA_TABLE_SIZE);
  await file.read(region.at, table);
  const header = MetadataTableHeader.decode(table);
  if (!sameBytes(header.signature, METADATA_SIGNATURE)) throw invalid(filename, 'metadata signature');
  if (header.entryCount > MAX_METADATA) throw invalid(filename, 'metadata count');
  const found = new Map<ItemName, Entry>();
  for (let index = 0; index < header.entryCount; index++) {
    const at = MetadataTableHeader.size + index * MetadataTableEntry.size;
    const entry = MetadataTableEntry.decode(table, at);
    const known = (Object.keys(Item) as ItemName[]).find((name) => sameBytes(Item[name], entry.itemId));
    if (known === undefined) {
      if ((entry.flags & MetadataFlags.isRequired) !== 0) throw unsupported(filename, 'unknown metadata');
      continue;
    }
    if (found.has(known)) throw invalid(filename, 'metadata item twice');
    if (entry.offset < METADATA_TABLE_SIZE) throw invalid(filename, 'metadata item offset');
    found.set(known, entry);
  }
  return found;
}

/** The parent's name from its locator, for a message. Undefined where it cannot be made out. */
export function parentName(locator: Uint8Array): string | undefined {
  if (locator.length < ParentLocatorHeader.size) return undefined;
  const { keyValueCount } = ParentLocatorHeader.decode(locator);
  const text = (at: number, length: number): string | undefined =>
    at + length > locator.length || length % 2 !== 0
      ? undefined
      : new TextDecoder('utf-16le').decode(locator.subarray(at, at + length));
  const values = new Map<string, string>();
  for (let index = 0; index < Math.min(keyValueCount, MAX_LOCATOR_ENTRIES); index++) {
    const at = ParentLocatorHeader.size + index * ParentLocatorEntry.size;
    if (at + ParentLocatorEntry.size > locator.length) break;
    const entry = ParentLocatorEntry.decode(locator, at);
    const key = text(entry.keyOffset, entry.keyLength);
    const value = text(entry.valueOffset, entry.valueLength);
    if (key !== undefined && value !== undefined) values.set(key, value);
  }
  const name = PATH_KEYS.map((key) => values.get(key)).find((value) => value !== undefined);
  // It is shown on a terminal.
  return name?.replace(/\p{C}/gu, '?');
}

/** A disk that holds only what differs from another one. */
async function refuseParent(file: Storage, region: Region, entry: Entry): Promise<never> {
  const locator = new Uint8Array(Math.min(entry.length, MAX_LOCATOR));
  await file.read(region.at + entry.offset, locator);
  const name = parentName(locator);
  const parent = name === undefined ? '' : ` of '${name}'`;
  throw unsupported(file.filename, 'parent', `Differencing disks (this is one${parent}) are not supported.`);
}

export async function readMetadata(file: Storage, region: Region): Promise<Metadata> {
  const { filename } = file;
  const items = await readTable(file, region);
  const locator = items.get('parentLocator');
  if (locator !== undefined) await refuseParent(file, region, locator);
  const view = async (name: ItemName, length: number): Promise<DataView> => {
    const entry = items.get(name);
    if (entry === undefined) throw unsupported(filename, `no ${name}`);
    const bytes = new Uint8Array(length);
    await file.read(region.at + entry.offset, bytes);
    return new DataView(bytes.buffer);
  };
  const parameters = await view('fileParameters', FileParameters.size);
  const { blockSize, flags } = FileParameters.decode(new Uint8Array(parameters.buffer));
  const disk = (await view('virtualDiskSize', 8)).getBigUint64(0, true);
  const logicalSector = (await view('logicalSectorSize', 4)).getUint32(0, true);
  await view('virtualDiskId', 16);
  await view('physicalSectorSize', 4);

  // A parent, but not where it is.
  if ((flags & FileFlags.hasParent) !== 0) throw invalid(filename, 'no parent locator');
  if (blockSize < MIN_BLOCK_SIZE || blockSize > MAX_BLOCK_SIZE || (blockSize & (blockSize - 1)) !== 0) {
    throw invalid(filename, 'block size');
  }
  if (logicalSector !== SECTOR) throw unsupported(filename, 'sector size');
  if (disk > BigInt(MAX_DISK_SIZE)) throw invalid(filename, 'disk size');
  const diskSize = Number(disk);
  const fixed = (flags & FileFlags.leaveBlockAllocated) !== 0;
  return { size: diskSize - (diskSize % SECTOR), diskSize, blockSize, fixed };
}
