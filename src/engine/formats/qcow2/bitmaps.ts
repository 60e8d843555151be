/** Persistent bitmaps: the header extension and the directory, checked and listed. */
import { ImageError } from '../../error.js';
import type { BitmapInfo, OpenContext } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { cString, extension, type Header } from './header.js';
import {
  Autoclear,
  BITMAP_TYPE_DIRTY,
  BitmapEntry,
  BitmapFlag,
  BitmapsExtension,
  bitmapCluster,
  ExtensionType,
  type Geometry,
  KNOWN_BITMAP_FLAGS,
  loadTable,
  MAX_BITMAP_BYTES,
  MAX_BITMAP_DIRECTORY_BYTES,
  MAX_BITMAP_GRANULARITY_BITS,
  MAX_BITMAP_NAME,
  MAX_BITMAP_TABLE_ENTRIES,
  MAX_BITMAPS,
  MIN_BITMAP_GRANULARITY_BITS,
  tableBytes,
} from './layout.js';

/** Where the bitmap directory is. */
export interface BitmapDirectory {
  readonly at: number;
  readonly length: number;
  readonly count: number;
}

/** An entry of the directory. */
export interface StoredBitmap {
  readonly info: BitmapInfo;
  readonly tableAt: number;
  readonly tableEntries: number;
  /** Host offset of the entry's flags field. */
  readonly flagsAt: number;
  readonly flags: number;
}

/** The bitmaps extension, checked; undefined where there is none, or where it is no longer consistent with the image. */
export function bitmapDirectory(
  header: Header,
  geometry: Geometry,
  warn: OpenContext['warn'],
): BitmapDirectory | undefined {
  const stored = extension(header, ExtensionType.bitmaps);
  if (stored === undefined) return undefined;
  const bad = (what: string) => new ImageError('corrupt', what);
  if (stored.byteLength !== BitmapsExtension.size) throw bad('bitmaps_ext: Invalid extension length');
  if ((header.autoclear & Autoclear.bitmaps) === 0n) {
    warn(
      header.version < 3
        ? 'This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap ' +
            'support; so now they must all be considered inconsistent'
        : 'a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent',
      "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.",
    );
    return undefined;
  }
  const { count, reserved, directorySize, directoryOffset } = BitmapsExtension.decode(stored);
  if (reserved !== 0) throw bad('bitmaps_ext: Reserved field is not zero');
  if (count > MAX_BITMAPS) {
    throw bad(
      `bitmaps_ext: Image has ${count} bitmaps, exceeding the QEMU supported maximum of ${MAX_BITMAPS}`,
    );
  }
  if (count === 0) throw bad('found bitmaps extension with zero bitmaps');
  const limit = BigInt(Number.MAX_SAFE_INTEGER);
  if (directoryOffset % BigInt(geometry.clusterSize) !== 0n || directoryOffset > limit) {
    throw bad('bitmaps_ext: invalid bitmap directory offset');
  }
  if (directorySize === 0n) throw bad('Requested bitmap directory size is zero');
  if (directorySize > BigInt(MAX_BITMAP_DIRECTORY_BYTES)) {
    throw bad(
      `bitmaps_ext: bitmap directory size (${directorySize}) exceeds the maximum supported size (${MAX_BITMAP_DIRECTORY_BYTES})`,
    );
  }
  return { at: Number(directoryOffset), length: Number(directorySize), count };
}

/** Reads and checks the directory. Throws `corrupt`. */
export async function readBitmaps(
  file: Storage,
  directory: BitmapDirectory,
  geometry: Geometry,
): Promise<readonly StoredBitmap[]> {
  const broken = () => new ImageError('corrupt', 'Broken bitmap directory', { path: file.filename });
  // What lies past the end of the file reads as zeros, and a bitmap of zeros is none.
  const bytes = new Uint8Array(Math.max(0, Math.min(directory.length, file.size - directory.at)));
  await file.read(directory.at, bytes);
  const bitmaps: StoredBitmap[] = [];
  for (let at = 0; at < directory.length; ) {
    if (at + BitmapEntry.size > directory.length) throw broken();
    const enough = bitmaps.length === directory.count;
    if (at + BitmapEntry.size > bytes.byteLength) throw enough ? countError('More', file) : unfit('');
    const entry = BitmapEntry.decode(bytes, at);
    const nameAt = at + BitmapEntry.size;
    // Of 32 bits, as in the reference; where it wraps there is extra data.
    const length = (BitmapEntry.size + entry.extraDataSize + entry.nameSize) >>> 0;
    const end = at + Math.ceil(length / 8) * 8;
    if (end > directory.length) throw broken();
    if (entry.extraDataSize !== 0) {
      throw new ImageError('corrupt', 'Bitmap extra data is not supported', { path: file.filename });
    }
    const name = cString(bytes.subarray(nameAt, nameAt + entry.nameSize));
    if (enough) throw countError('More', file);
    if (end > bytes.byteLength) throw unfit(name);
    checkEntry(entry, name, geometry);
    const flags: string[] = [];
    if ((entry.flags & BitmapFlag.inUse) !== 0) flags.push('in-use');
    if ((entry.flags & BitmapFlag.auto) !== 0) flags.push('auto');
    bitmaps.push({
      info: {
        name,
        granularity: 2 ** entry.granularityBits,
        flags,
      },
      tableAt: Number(entry.tableOffset),
      tableEntries: entry.tableSize,
      flagsAt: directory.at + at + BitmapEntry.offsetOf('flags'),
      flags: entry.flags,
    });
    at = end;
  }
  if (bitmaps.length < directory.count) throw countError('Less', file);
  return bitmaps;
}

function countError(which: 'More' | 'Less', file: Storage): ImageError {
  const what = `${which} bitmaps found than specified in header extension`;
  return new ImageError('corrupt', what, { path: file.filename });
}

function unfit(name: string): ImageError {
  return new ImageError('corrupt', `Bitmap '${name}' doesn't satisfy the constraints`);
}

/** What the tables of bitmaps say that are to be trusted must make sense. Throws `corrupt`. */
export async function checkBitmapTables(
  file: Storage,
  bitmaps: readonly StoredBitmap[],
  size: number,
  { clusterSize }: Geometry,
): Promise<void> {
  const names = new Set<string>();
  for (const { info, tableAt, tableEntries, flags } of bitmaps) {
    const bad = (what: string) => new ImageError('corrupt', what, { path: file.filename });
    if (names.has(info.name)) throw bad(`Bitmap already exists: ${info.name}`);
    names.add(info.name);
    if ((flags & BitmapFlag.inUse) !== 0) continue;
    const unreadable = () =>
      bad(`Could not read bitmap_table table from image for bitmap '${info.name}': Invalid argument`);
    if (tableEntries !== Math.ceil(size / (info.granularity * clusterSize * 8))) throw unreadable();
    const table = await readBitmapTable(file, tableAt, tableEntries);
    for (let index = 0; index < table.length / 2; index++) {
      const cluster = bitmapCluster(table, index);
      if (cluster.kind === 'invalid' || (cluster.kind === 'data' && cluster.at % clusterSize !== 0)) {
        throw unreadable();
      }
    }
  }
}

/** A bitmap's table as far as the file has it; what lies past the end is zeros, and says nothing. */
export async function readBitmapTable(file: Storage, at: number, entries: number): Promise<Uint32Array> {
  const there = Math.max(0, Math.ceil((file.size - at) / 8));
  const table = new Uint32Array(Math.min(entries, there) * 2);
  if (table.length > 0) await file.read(at, tableBytes(table));
  return loadTable(table);
}

function checkEntry(
  entry: ReturnType<typeof BitmapEntry.decode>,
  name: string,
  { clusterSize }: Geometry,
): void {
  const bad =
    entry.tableSize === 0 ||
    entry.tableSize > MAX_BITMAP_TABLE_ENTRIES ||
    entry.tableOffset === 0n ||
    entry.tableSize * clusterSize > MAX_BITMAP_BYTES ||
    entry.tableOffset % BigInt(clusterSize) !== 0n ||
    entry.tableOffset > BigInt(Number.MAX_SAFE_INTEGER) ||
    entry.nameSize === 0 ||
    entry.nameSize > MAX_BITMAP_NAME ||
    entry.granularityBits < MIN_BITMAP_GRANULARITY_BITS ||
    entry.granularityBits > MAX_BITMAP_GRANULARITY_BITS ||
    (entry.flags & ~KNOWN_BITMAP_FLAGS) !== 0 ||
    entry.type !== BITMAP_TYPE_DIRTY;
  if (bad) throw unfit(name);
}
