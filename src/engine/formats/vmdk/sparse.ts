/** Headers of hosted (KDMV) and COWD sparse extents: decoded, checked against the limits, and made a geometry. */
import { errnoText, ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { Hosted, SparseGeometry } from './extent.js';
import {
  COMPRESSION_DEFLATE,
  COWD_TABLE_ENTRIES,
  CowdHeader,
  FLAG_MARKERS,
  FLAG_REDUNDANT_TABLE,
  FLAG_ZEROED_GRAINS,
  GD_AT_END,
  HostedHeader,
  MAGIC_COWD,
  MAGIC_HOSTED,
  MARKER_END_OF_STREAM,
  MARKER_FOOTER,
  Marker,
  SECTOR,
} from './layout.js';

/** The reference's bounds: a grain of 1 GiB, 512 entries in a hosted table, and 32 Mi entries in a directory. */
const MAX_GRAIN_SECTORS = 0x200000n;
const MAX_TABLE_ENTRIES = 512;
export const MAX_DIRECTORY_ENTRIES = 32n * 1024n * 1024n;
/** A compressed grain is held in memory whole. Writers use 64 KiB; this is the largest unit of any other format here. */
const MAX_COMPRESSED_GRAIN = 2 * 1024 * 1024;
/** Host offsets from here on cannot be read at all. */
const OFFSET_LIMIT = 2n ** 63n - 2n ** 30n;

const sectorsOf = (file: Storage) => Math.ceil(file.size / SECTOR);

/** The first four bytes, big-endian. */
export async function readMagic(file: Storage): Promise<number> {
  if (file.size === 0) throw new ImageError('corrupt', 'File is too small, not a valid image');
  const head = new Uint8Array(4);
  await file.read(0, head);
  return new DataView(head.buffer).getUint32(0);
}

/** Guest bytes from a capacity in sectors. */
export function capacityBytes(sectors: bigint): number {
  if (sectors > BigInt(Number.MAX_SAFE_INTEGER) / BigInt(SECTOR)) {
    throw new ImageError('limit', `Could not refresh total sector count: ${errnoText('EFBIG')}`, {
      errno: 'EFBIG',
    });
  }
  return Number(sectors) * SECTOR;
}

/** The grain size and directory length that all sparse extents are held to. */
export function checkGeometry(grainSectors: bigint, directoryEntries: bigint): void {
  if (grainSectors === 0n || grainSectors > MAX_GRAIN_SECTORS) {
    throw new ImageError('corrupt', 'Invalid granularity, image may be corrupt');
  }
  if (directoryEntries > MAX_DIRECTORY_ENTRIES) throw new ImageError('limit', 'L1 size too big');
}

/**
 * Byte offset of a directory. Past the end of the file it reads as zeros, as everything does there, so that such an
 * extent is empty; only what is no offset at all is refused.
 */
export function directoryOffset(file: Storage, sector: bigint, entries: bigint, what: string): number {
  const at = sector * BigInt(SECTOR);
  if (at + entries * 8n > OFFSET_LIMIT) {
    throw new ImageError(
      'corrupt',
      `Could not read ${what} table from extent '${file.filename}': ${errnoText('EIO')}`,
      { path: file.filename, errno: 'EIO' },
    );
  }
  // Beyond 2^53 the number is not exact, and need not be: no file is that long.
  return Number(at);
}

export async function readHostedHeader(file: Storage): Promise<Hosted> {
  const raw = new Uint8Array(HostedHeader.size);
  await file.read(0, raw);
  return HostedHeader.decode(raw);
}

/** The header at the end of a stream: footer marker, header, end-of-stream marker, a sector each. */
async function readFooter(file: Storage): Promise<Hosted> {
  const at = (sectorsOf(file) - 3) * SECTOR;
  if (at < 0) {
    throw new ImageError('corrupt', `Failed to read footer: ${errnoText('EIO')}`, { path: file.filename });
  }
  const raw = new Uint8Array(3 * SECTOR);
  await file.read(at, raw);
  const marker = Marker.decode(raw);
  const end = Marker.decode(raw, 2 * SECTOR);
  if (
    new DataView(raw.buffer).getUint32(SECTOR) !== MAGIC_HOSTED ||
    marker.size !== 0 ||
    marker.type !== MARKER_FOOTER ||
    end.val !== 0n ||
    end.size !== 0 ||
    end.type !== MARKER_END_OF_STREAM
  ) {
    throw new ImageError('corrupt', 'Invalid footer', { path: file.filename, offset: at });
  }
  return HostedHeader.decode(raw, SECTOR);
}

function checkHosted(file: Storage, header: Hosted, writable: boolean, atEnd: boolean): SparseGeometry {
  const compressed = header.compressAlgorithm === COMPRESSION_DEFLATE;
  if (header.version > 3) {
    throw new ImageError('unsupported', `Unsupported VMDK version ${header.version}`);
  }
  if (header.version === 3 && writable && !compressed) {
    // Version 3 means change tracking: a writer that does not keep it breaks incremental backups.
    throw new ImageError('read-only', 'VMDK version 3 must be read only');
  }
  const entries = header.numGTEsPerGT;
  if (entries > MAX_TABLE_ENTRIES) throw new ImageError('limit', 'L2 table size too big');
  const span = BigInt(entries) * header.grainSize;
  if (BigInt.asUintN(32, span) === 0n) throw new ImageError('corrupt', 'L1 entry size is invalid');
  if (BigInt(sectorsOf(file)) < header.overHead) {
    const least = BigInt.asIntN(64, header.overHead * BigInt(SECTOR));
    throw new ImageError('corrupt', `File truncated, expecting at least ${least} bytes`, {
      path: file.filename,
    });
  }
  const directoryEntries = (header.capacity + span - 1n) / span;
  checkGeometry(header.grainSize, directoryEntries);
  const grain = Number(header.grainSize) * SECTOR;
  if (compressed && grain > MAX_COMPRESSED_GRAIN) {
    throw new ImageError(
      'limit',
      `Compressed grains of ${grain} bytes are not supported (the limit is ${MAX_COMPRESSED_GRAIN})`,
    );
  }
  const backupAt =
    header.flags & FLAG_REDUNDANT_TABLE
      ? directoryOffset(file, header.rgdOffset, directoryEntries, 'l1 backup')
      : undefined;
  return {
    size: capacityBytes(header.capacity),
    grain,
    entriesPerTable: entries,
    directoryAt: directoryOffset(file, header.gdOffset, directoryEntries, 'l1'),
    backupAt: backupAt || undefined,
    directoryEntries: Number(directoryEntries),
    zeroedGrains: (header.flags & FLAG_ZEROED_GRAINS) !== 0,
    compressed,
    markers: (header.flags & FLAG_MARKERS) !== 0,
    metadataEnd: Number(header.overHead) * SECTOR,
    hosted: { header, atEnd },
  };
}

/** The geometry of a hosted extent; its footer, where there is one, wins over the header. */
export async function openHosted(file: Storage, header: Hosted, writable: boolean): Promise<SparseGeometry> {
  const atEnd = header.gdOffset === GD_AT_END;
  return checkHosted(file, atEnd ? await readFooter(file) : header, writable, atEnd);
}

async function openCowd(file: Storage): Promise<SparseGeometry> {
  const raw = new Uint8Array(CowdHeader.size);
  await file.read(0, raw);
  const header = CowdHeader.decode(raw);
  const entries = BigInt(header.numGDEntries);
  checkGeometry(BigInt(header.grainSize), entries);
  return {
    size: capacityBytes(BigInt(header.numSectors)),
    grain: header.grainSize * SECTOR,
    entriesPerTable: COWD_TABLE_ENTRIES,
    directoryAt: directoryOffset(file, BigInt(header.gdOffset), entries, 'l1'),
    directoryEntries: header.numGDEntries,
    zeroedGrains: false,
    compressed: false,
    markers: false,
    metadataEnd: 0,
  };
}

/** The geometry of an extent file that is to be KDMV or COWD by its magic, whichever the extent line says. */
export async function openSparse(file: Storage, magic: number, writable: boolean): Promise<SparseGeometry> {
  if (magic === MAGIC_COWD) return openCowd(file);
  if (magic !== MAGIC_HOSTED) throw new ImageError('corrupt', 'Image not in VMDK format');
  return openHosted(file, await readHostedHeader(file), writable);
}
