/**
 * Space-efficient sparse extents (vSphere 5.1 and later). VMware has not documented them, so that anything out of the
 * ordinary is refused; the checks and their words are the reference's.
 */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { SparseGeometry } from './extent.js';
import {
  SECTOR,
  SESPARSE_CONST_MAGIC,
  SESPARSE_GRAIN_SECTORS,
  SESPARSE_TABLE_SECTORS,
  SESPARSE_VERSION,
  SESPARSE_VOLATILE_MAGIC,
  SeSparseConstHeader,
  SeSparseVolatileHeader,
} from './layout.js';
import { capacityBytes, checkGeometry, directoryOffset } from './sparse.js';

const BYTES_PER_ENTRY = 8;
const ENTRIES_PER_SECTOR = SECTOR / BYTES_PER_ENTRY;

const hex = (value: bigint) => `0x${value.toString(16).padStart(16, '0')}`;
const unsupported = (what: string) => new ImageError('unsupported', what);
const isZero = (raw: Uint8Array) => raw.every((byte) => byte === 0);

function checkConst(header: ReturnType<typeof SeSparseConstHeader.decode>): void {
  if (header.magic !== SESPARSE_CONST_MAGIC) {
    throw new ImageError('corrupt', `Bad const header magic: ${hex(header.magic)}`);
  }
  if (header.version !== SESPARSE_VERSION) throw unsupported(`Unsupported version: ${hex(header.version)}`);
  if (header.grainSize !== BigInt(SESPARSE_GRAIN_SECTORS)) {
    throw unsupported(`Unsupported grain size: ${header.grainSize}`);
  }
  if (header.grainTableSize !== BigInt(SESPARSE_TABLE_SECTORS)) {
    throw unsupported(`Unsupported grain table size: ${header.grainTableSize}`);
  }
  if (header.flags !== 0n) throw unsupported(`Unsupported flags: ${hex(header.flags)}`);
  const reserved = [header.reserved1, header.reserved2, header.reserved3, header.reserved4];
  if (reserved.some((value) => value !== 0n)) {
    throw unsupported(`Unsupported reserved bits: ${reserved.map(hex).join(' ')}`);
  }
  if (!isZero(header.pad)) throw unsupported('Unsupported non-zero const header padding');
}

function checkVolatile(header: ReturnType<typeof SeSparseVolatileHeader.decode>): void {
  if (header.magic !== SESPARSE_VOLATILE_MAGIC) {
    throw new ImageError('corrupt', `Bad volatile header magic: ${hex(header.magic)}`);
  }
  if (header.replayJournal !== 0n) {
    throw unsupported('Image is dirty, Replaying journal not supported');
  }
  if (!isZero(header.pad)) throw unsupported('Unsupported non-zero volatile header padding');
}

/** A sector number that may lie past the end of the file, but within what an offset can express. */
function sectorNumber(file: Storage, value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER) / BigInt(SECTOR)) {
    throw new ImageError('corrupt', `seSparse header has an offset that no file can have: sector ${value}`, {
      path: file.filename,
    });
  }
  return Number(value);
}

export async function openSeSparse(file: Storage, writable: boolean): Promise<SparseGeometry> {
  if (writable) throw new ImageError('read-only', 'No write support for seSparse images available');
  const raw = new Uint8Array(SECTOR);
  await file.read(0, raw);
  const header = SeSparseConstHeader.decode(raw);
  checkConst(header);
  await file.read(sectorNumber(file, header.volatileHeaderOffset) * SECTOR, raw);
  checkVolatile(SeSparseVolatileHeader.decode(raw));
  const directoryEntries = header.grainDirSize * BigInt(ENTRIES_PER_SECTOR);
  checkGeometry(header.grainSize, directoryEntries);
  return {
    size: capacityBytes(header.capacity),
    grain: SESPARSE_GRAIN_SECTORS * SECTOR,
    entriesPerTable: SESPARSE_TABLE_SECTORS * ENTRIES_PER_SECTOR,
    directoryAt: directoryOffset(file, header.grainDirOffset, directoryEntries, 'l1'),
    directoryEntries: Number(directoryEntries),
    wide: {
      tablesOffset: sectorNumber(file, header.grainTablesOffset),
      grainsOffset: sectorNumber(file, header.grainsOffset),
    },
    zeroedGrains: false,
    compressed: false,
    markers: false,
    metadataEnd: 0,
  };
}
