/** Opening a qcow2 image: the header's claims are checked in the reference's order and words, then the parts are built. */
import { ImageError } from '../../error.js';
import type { OpenContext } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { rewriteHeader } from './backing.js';
import {
  type BitmapDirectory,
  bitmapDirectory,
  checkBitmapTables,
  readBitmaps,
  type StoredBitmap,
} from './bitmaps.js';
import { repairDirty } from './check.js';
import { cString, extension, type Header, hasFeature, readHeader } from './header.js';
import { Image } from './image.js';
import {
  Autoclear,
  CryptMethod,
  CryptoHeaderExtension,
  ExtensionType,
  type Geometry,
  geometry,
  KNOWN_AUTOCLEAR,
  loadTable,
  MAX_FILE_BYTES,
  MAX_L1_BYTES,
  MAX_REFCOUNT_ORDER,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  SnapshotEntry,
  tableBytes,
  validPlace,
} from './layout.js';
import { Qcow2Node } from './node.js';
import { Refcounts } from './refcounts.js';
import { readRuntime } from './runtime.js';
import { readSnapshots, type SnapshotTable } from './snapshots.js';

/** QEMU counts sectors and L1 entries in ints. */
const INT_MAX = 0x7fff_ffff;

function bad(message: string): ImageError {
  return new ImageError('corrupt', message);
}

/** The geometry that the header asks for; throws where it makes no sense. */
export function headerGeometry(header: Header): Geometry {
  const extendedL2 = hasFeature(header, 'extendedL2');
  if (extendedL2 && header.clusterBits - 5 < MIN_CLUSTER_BITS) {
    throw new ImageError('unsupported', `Unsupported subcluster size: ${2 ** (header.clusterBits - 5)}`);
  }
  if (header.refcountOrder > MAX_REFCOUNT_ORDER) {
    throw bad('Reference count entry width too large; may not exceed 64 bits');
  }
  return geometry({
    clusterBits: header.clusterBits,
    refcountOrder: header.refcountOrder,
    extendedL2,
    externalData: hasFeature(header, 'dataFile'),
  });
}

function checkTables(header: Header, g: Geometry, forCheck: boolean): void {
  const { clusterSize } = g;
  const tableBytesWanted = header.refcountTableClusters * clusterSize;
  if (tableBytesWanted > MAX_REFCOUNT_TABLE_BYTES) throw bad('Reference count table too large');
  if (header.refcountTableClusters === 0 && !forCheck)
    throw bad('Image does not contain a reference count table');
  if (!validPlace(header.refcountTableOffset, tableBytesWanted, clusterSize)) {
    throw bad('Reference count table offset invalid');
  }
  // The checker says itself what is too much, and can take it away.
  if (header.snapshotCount > MAX_SNAPSHOTS && !forCheck) throw bad('Snapshot table too large');
  const snapshotBytes = header.snapshotCount * SnapshotEntry.size;
  if (!validPlace(header.snapshotsOffset, snapshotBytes, clusterSize) && !forCheck) {
    throw bad('Snapshot table offset invalid');
  }
  if (header.l1Size * 8 > MAX_L1_BYTES) throw bad('Active L1 table too large');
  if (!validPlace(header.l1TableOffset, header.l1Size * 8, clusterSize))
    throw bad('Active L1 table offset invalid');
  // In 64 bits, as the reference counts: what wraps is told afterwards.
  const needed = BigInt.asUintN(64, header.size + BigInt(g.l2Span) - 1n) / BigInt(g.l2Span);
  if (needed > BigInt(INT_MAX)) throw bad('Image is too big');
  if (BigInt(header.l1Size) < needed) throw bad('L1 table is too small');
  if (header.size > MAX_FILE_BYTES) throw bad('Could not refresh total sector count: File too large');
  if (header.size > BigInt(Number.MAX_SAFE_INTEGER)) throw new ImageError('limit', 'Image is too big');
}

function checkEncryption(header: Header, metadataOnly: boolean): void {
  const stored = extension(header, ExtensionType.cryptoHeader);
  if (stored !== undefined) {
    if (header.cryptMethod !== CryptMethod.luks)
      throw bad('CRYPTO header extension only expected with LUKS encryption method');
    if (stored.byteLength !== CryptoHeaderExtension.size) {
      throw bad(
        `CRYPTO header extension size ${stored.byteLength}, but expected size ${CryptoHeaderExtension.size}`,
      );
    }
  } else if (header.cryptMethod === CryptMethod.luks) {
    throw bad(`Missing CRYPTO header for crypt method ${header.cryptMethod}`);
  }
  if (header.cryptMethod !== CryptMethod.none && !metadataOnly) {
    throw new ImageError(
      'unsupported',
      'Encrypted qcow2 images can only be described, not read or written, so far',
    );
  }
}

/**
 * The active L1 table. For a writer it is `whole`; a reader takes no memory for entries past the end of the file, which are
 * zero and not in the array: the readers of entries take what is not there for that.
 */
async function readL1(file: Storage, header: Header, whole: boolean): Promise<Uint32Array> {
  if (header.l1Size === 0) return new Uint32Array(0);
  if (header.l1TableOffset > BigInt(Number.MAX_SAFE_INTEGER - MAX_L1_BYTES)) {
    throw bad('Could not read L1 table: Input/output error');
  }
  const at = Number(header.l1TableOffset);
  const there = Math.max(0, Math.ceil((file.size - at) / 8));
  const l1 = new Uint32Array((whole ? header.l1Size : Math.min(header.l1Size, there)) * 2);
  if (l1.length > 0) await file.read(at, tableBytes(l1));
  return loadTable(l1);
}

async function openDataFile(context: OpenContext, header: Header): Promise<Storage | undefined> {
  if (context.metadataOnly) return context.openChild('data-file', undefined, { unopened: true });
  if (!hasFeature(header, 'dataFile')) {
    const stray = await context.openChild('data-file', undefined);
    if (stray !== undefined) {
      await stray.close();
      throw new ImageError('invalid', "'data-file' can only be set for images with an external data file");
    }
    if ((header.autoclear & Autoclear.dataFileRaw) !== 0n) throw bad('data-file-raw requires a data file');
    return undefined;
  }
  const stored = extension(header, ExtensionType.dataFile);
  const name = stored === undefined ? undefined : cString(stored);
  // As in the reference: a relative name belongs to the caller's folder, unlike that of a backing file.
  const found = await context.openChild('data-file', name, { writable: context.writable, inCwd: true });
  if (found === undefined) throw new ImageError('invalid', "'data-file' is required for this image");
  return found;
}

async function snapshotTable(file: Storage, header: Header, forCheck: boolean): Promise<SnapshotTable> {
  if (header.snapshotsOffset > BigInt(Number.MAX_SAFE_INTEGER - MAX_SNAPSHOT_TABLE_BYTES)) {
    if (header.snapshotCount === 0 || forCheck) return { snapshots: [], bytes: 0 };
    throw bad('Failed to read snapshot table: Input/output error');
  }
  // More than there may be: the checker reads the table itself, and would have to hold what zeros past the file's end make up.
  if (forCheck && header.snapshotCount > MAX_SNAPSHOTS) return { snapshots: [], bytes: 0 };
  try {
    return await readSnapshots(file, header);
  } catch (error) {
    // The checker reads the table itself and says what is wrong with it.
    if (forCheck) return { snapshots: [], bytes: 0 };
    throw error;
  }
}

/** A guest disk has whole sectors: what a header says beyond them is not there. */
function wholeSectors(size: number): number {
  return size - (size % 512);
}

/** Feature bits that this program does not know promise something it cannot keep. */
async function clearUnknownAutoclear(image: Image): Promise<void> {
  const { header } = image;
  if ((header.autoclear & ~KNOWN_AUTOCLEAR) === 0n) return;
  header.autoclear &= KNOWN_AUTOCLEAR;
  await image.writeField64('autoclear', header.autoclear);
  await image.file.flush();
}

/** Bitmaps that are no longer consistent are lost as soon as anything may change. */
async function dropBitmaps(image: Image): Promise<void> {
  await rewriteHeader(image, (header) => {
    header.extensions = header.extensions.filter(({ type }) => type !== ExtensionType.bitmaps);
  });
}

async function loadBitmaps(
  file: Storage,
  directory: BitmapDirectory,
  header: Header,
  g: Geometry,
): Promise<{ directory: BitmapDirectory; list: readonly StoredBitmap[] }> {
  const list = await readBitmaps(file, directory, g);
  await checkBitmapTables(file, list, Number(header.size), g);
  return { directory, list };
}

/** Opens an image. Throws `corrupt`, `unsupported`, `limit`, and whatever the gate says about a data file. */
export async function openQcow2(context: OpenContext): Promise<Qcow2Node> {
  const { file, writable, forCheck, metadataOnly } = context;
  let header = await readHeader(file);
  if (writable && !forCheck) {
    if (hasFeature(header, 'corrupt')) {
      throw bad('qcow2: Image is corrupt; cannot be opened read/write');
    }
    if (hasFeature(header, 'dirty')) {
      // Its refcounts were left behind (lazy refcounts): they are counted anew before anything relies on them.
      checkTables(header, headerGeometry(header), true);
      await repairDirty({ file }, context.say);
      header = await readHeader(file);
    }
  }
  const g = headerGeometry(header);
  checkTables(header, g, forCheck);
  const runtime = readRuntime(context.options, header, g);
  const wholeL1 = writable && !forCheck;
  const l1 = await readL1(file, header, wholeL1);
  checkEncryption(header, metadataOnly);
  const directory = bitmapDirectory(header, g, context.warn);
  const dataFile = await openDataFile(context, header);
  try {
    const snapshots = await snapshotTable(file, header, forCheck);
    const bitmaps = directory === undefined ? undefined : await loadBitmaps(file, directory, header, g);
    const image = new Image({
      file,
      dataFile,
      header,
      geometry: g,
      writable,
      l1,
      size: wholeSectors(Number(header.size)),
      runtime,
      say: context.say,
    });
    image.snapshotTableBytes = snapshots.bytes;
    if (writable && !forCheck) await image.overlaps.setSnapshots(snapshots.snapshots);
    let refcounts: Refcounts | undefined;
    if (writable) {
      if (header.refcountTableOffset > BigInt(Number.MAX_SAFE_INTEGER - MAX_REFCOUNT_TABLE_BYTES)) {
        throw bad('Could not initialize refcount handling: Input/output error');
      }
      refcounts = await Refcounts.open(image);
      if (!forCheck) await clearUnknownAutoclear(image);
      const lost = directory === undefined && extension(header, ExtensionType.bitmaps) !== undefined;
      if (lost) await dropBitmaps(image);
    }
    return new Qcow2Node({
      image,
      refcounts,
      snapshots: snapshots.snapshots,
      bitmaps,
      reloadL1: (from, of) => readL1(from, of, wholeL1),
    });
  } catch (error) {
    await dataFile?.close().catch(() => {});
    throw error;
  }
}
