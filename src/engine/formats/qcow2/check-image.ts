/** What the checker reads of an image, and how it reads: from the file, past all caches and trusting nothing. */
import { toSafe } from '../../codec/struct.js';
import { type ErrorKind, errnoText, ImageError } from '../../error.js';
import type { CheckContext, CheckResult } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import type { MetadataGuard } from './check-overlap.js';
import { extension, hasFeature, readHeader } from './header.js';
import {
  Autoclear,
  BitmapsExtension,
  CryptoHeaderExtension,
  ExtensionType,
  type Geometry,
  geometry,
  loadTable,
  MAX_REFCOUNT_ORDER,
  MAX_REFCOUNT_TABLE_BYTES,
  SnapshotEntry,
  tableBytes,
  validPlace,
} from './layout.js';

/** Region of the file that the header or an extension names, in bytes. */
export interface Region {
  readonly at: number;
  readonly length: number;
}

/** The header as it is on disk now. Offsets and lengths are bytes, sizes of tables are entries unless they say bytes. */
export interface CheckHeader {
  readonly version: number;
  readonly size: number;
  readonly geometry: Geometry;
  readonly incompatible: bigint;
  readonly l1: Region;
  readonly refcountTable: Region;
  readonly snapshotCount: number;
  readonly snapshotsOffset: number;
  /** The snapshot table is where one can be. */
  readonly snapshotsPlaced: boolean;
  readonly crypto?: Region;
  readonly bitmaps?: { readonly count: number; readonly directory: Region };
}

/** The state of one check: where it reads, what it tells, what it has counted. */
export interface CheckState {
  readonly file: Storage;
  readonly context: CheckContext;
  readonly result: CheckResult;
  readonly header: CheckHeader;
  /** Asked before anything is written. */
  readonly guard: MetadataGuard;
}

/** Reads the header anew. Offsets above 2^53 are beyond any file: their use is reported, never followed. */
export async function readCheckHeader(file: Storage): Promise<CheckHeader> {
  const header = await readHeader(file);
  const { clusterBits, refcountOrder, incompatible } = header;
  if (refcountOrder > MAX_REFCOUNT_ORDER) {
    throw new ImageError('unsupported', 'Reference count entry width too large; may not exceed 64 bits');
  }
  const tableLength = header.refcountTableClusters * 2 ** clusterBits;
  if (tableLength > MAX_REFCOUNT_TABLE_BYTES) {
    throw new ImageError('limit', 'Reference count table too large');
  }
  const crypto = extension(header, ExtensionType.cryptoHeader);
  const bitmaps = extension(header, ExtensionType.bitmaps);
  return {
    version: header.version,
    size: toSafe(header.size, 'Image size'),
    geometry: geometry({
      clusterBits,
      refcountOrder,
      extendedL2: hasFeature(header, 'extendedL2'),
      externalData: hasFeature(header, 'dataFile'),
    }),
    incompatible,
    l1: { at: Number(header.l1TableOffset), length: header.l1Size * 8 },
    refcountTable: { at: Number(header.refcountTableOffset), length: tableLength },
    snapshotCount: header.snapshotCount,
    snapshotsOffset: Number(header.snapshotsOffset),
    snapshotsPlaced: validPlace(
      header.snapshotsOffset,
      header.snapshotCount * SnapshotEntry.size,
      2 ** clusterBits,
    ),
    ...(crypto !== undefined && crypto.length >= CryptoHeaderExtension.size && header.cryptMethod !== 0
      ? { crypto: region(CryptoHeaderExtension.decode(crypto)) }
      : {}),
    // without the bit a program that knows no bitmaps has written: they are dropped, not counted
    ...(bitmaps !== undefined &&
    bitmaps.length >= BitmapsExtension.size &&
    (header.autoclear & Autoclear.bitmaps) !== 0n
      ? { bitmaps: bitmapsOf(BitmapsExtension.decode(bitmaps)) }
      : {}),
  };
}

function region({ offset, length }: { readonly offset: bigint; readonly length: bigint }): Region {
  return { at: Number(offset), length: Number(length) };
}

function bitmapsOf(of: {
  readonly count: number;
  readonly directoryOffset: bigint;
  readonly directorySize: bigint;
}): NonNullable<CheckHeader['bitmaps']> {
  const directory = region({ offset: of.directoryOffset, length: of.directorySize });
  return { count: of.count, directory };
}

/**
 * A table of 64-bit entries in host order, `length` bytes at `at`. What lies past the end of the file reads as zeros and
 * takes no memory: the answer is shorter then.
 */
export async function readTable(file: Storage, { at, length }: Region): Promise<Uint32Array> {
  const there = Math.max(0, Math.min(length, Math.ceil((file.size - at) / 8) * 8));
  const words = new Uint32Array(there / 4);
  if (there > 0) await file.read(at, tableBytes(words));
  return loadTable(words);
}

/** A 64-bit entry of a table as messages show it. */
export function entryHex(high: number, low: number): string {
  return high === 0 ? low.toString(16) : `${high.toString(16)}${low.toString(16).padStart(8, '0')}`;
}

/** `%lx` of an offset; exact up to 2^56 as long as it is a multiple of 512. */
export function hex(value: number): string {
  return BigInt(value).toString(16);
}

/** How long the checker works before it lets others have a turn: its reads may all be answered without one. */
const TURN_MS = 20;
let turnBegan = 0;

/** The end of a check that cannot go on. */
export function checkFailed(kind: ErrorKind, errno: string): ImageError {
  return new ImageError(kind, `Check failed: ${errnoText(errno)}`, { errno, operation: 'check' });
}

/** Looked at between units of work: throws where the job was cancelled, and now and then lets the event loop turn. */
export function breathe(signal: AbortSignal | undefined): Promise<void> | undefined {
  if (signal?.aborted === true) {
    const reason: unknown = signal.reason;
    throw reason instanceof ImageError ? reason : new ImageError('cancelled', 'Operation cancelled');
  }
  const now = performance.now();
  if (now - turnBegan < TURN_MS) return undefined;
  return new Promise((resolve) => {
    setImmediate(() => {
      turnBegan = performance.now();
      resolve();
    });
  });
}
