/** The chunk tables of all partitions, merged into one that is sorted by guest offset and searched by bisection. */
import { ImageError } from '../../error.js';
import {
  ADC,
  BZIP2,
  CHUNK,
  COMMENT,
  IGNORE,
  LZFSE,
  MAX_CHUNK_BYTES,
  MAX_CHUNK_SECTORS,
  MISH,
  MISH_MAGIC,
  RAW,
  SECTOR,
  SMALLEST_TABLE,
  TERMINATOR,
  ZERO,
  ZLIB,
} from './layout.js';

/** Columns of equal length, one row a chunk, in guest order without overlaps. Offsets and lengths are bytes. */
export interface ChunkTable {
  readonly count: number;
  readonly kinds: Uint32Array;
  /** The guest range; ends are clipped to the image's size. */
  readonly starts: Float64Array;
  readonly ends: Float64Array;
  /** The stored range in the file. */
  readonly offsets: Float64Array;
  readonly lengths: Uint32Array;
  /** What the whole chunk unpacks to; 0 for zeros. */
  readonly unpacked: Uint32Array;
}

const AT_SECTOR = CHUNK.offsetOf('sector');
const AT_SECTOR_COUNT = CHUNK.offsetOf('sectorCount');
const AT_DATA_OFFSET = CHUNK.offsetOf('dataOffset');
const AT_DATA_LENGTH = CHUNK.offsetOf('dataLength');

/** Exact to 2^53; what is larger is refused or lies outside of the image and its file whatever its last digits. */
function wide(view: DataView, at: number): number {
  return view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
}

function isKnown(kind: number): boolean {
  return kind === ZERO || kind === RAW || kind === IGNORE || isPacked(kind);
}

export function isPacked(kind: number): boolean {
  return kind === ADC || kind === ZLIB || kind === BZIP2 || kind === LZFSE;
}

export interface TableContext {
  readonly dataForkOffset: number;
  /** Guest size in bytes. */
  readonly size: number;
  warn(text: string): void;
}

/** Reads the resources that are chunk tables, and skips those that are not. Throws `limit` and `corrupt`. */
export function buildTable(resources: readonly Uint8Array[], context: TableContext): ChunkTable {
  const tables = resources.filter((resource) => {
    const view = new DataView(resource.buffer, resource.byteOffset, resource.byteLength);
    return resource.byteLength >= SMALLEST_TABLE && view.getUint32(0) === MISH_MAGIC;
  });
  const most = tables.reduce(
    (sum, table) => sum + Math.floor((table.byteLength - MISH.size) / CHUNK.size),
    0,
  );
  const rows = {
    count: 0,
    kinds: new Uint32Array(most),
    starts: new Float64Array(most),
    ends: new Float64Array(most),
    offsets: new Float64Array(most),
    lengths: new Uint32Array(most),
    unpacked: new Uint32Array(most),
  };
  let warned = false;
  // What QEMU calls a chunk's number: of all tables, without those that it skips.
  let number = 0;
  for (const table of tables) {
    const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
    const firstSector = wide(view, MISH.offsetOf('firstSector'));
    const dataOffset = context.dataForkOffset + wide(view, MISH.offsetOf('dataOffset'));
    for (let at = MISH.size; at + CHUNK.size <= table.byteLength; at += CHUNK.size) {
      const kind = view.getUint32(at);
      if (kind === COMMENT || kind === TERMINATOR) continue;
      const known = isKnown(kind);
      const sectors = wide(view, at + AT_SECTOR_COUNT);
      const length = wide(view, at + AT_DATA_LENGTH);
      if (known) {
        if (kind !== ZERO && kind !== IGNORE && sectors > MAX_CHUNK_SECTORS) {
          throw tooLarge('sector count', sectors, number, MAX_CHUNK_SECTORS);
        }
        if (length > MAX_CHUNK_BYTES) throw tooLarge('length', length, number, MAX_CHUNK_BYTES);
        number++;
      } else if (!warned) {
        warned = true;
        context.warn(
          `Image contains chunks of unknown type ${kind.toString(16)}, accessing them will result in I/O errors`,
        );
      }
      const start = (firstSector + wide(view, at + AT_SECTOR)) * SECTOR;
      const end = Math.min(start + sectors * SECTOR, context.size);
      if (start >= end) continue;
      const row = rows.count++;
      rows.kinds[row] = kind;
      rows.starts[row] = start;
      rows.ends[row] = end;
      rows.offsets[row] = dataOffset + wide(view, at + AT_DATA_OFFSET);
      if (known) rows.lengths[row] = length;
      if (kind === RAW || isPacked(kind)) rows.unpacked[row] = sectors * SECTOR;
    }
  }
  return inOrder(rows);
}

function tooLarge(what: string, value: number, chunk: number, max: number): ImageError {
  return new ImageError('limit', `${what} ${BigInt(value)} for chunk ${chunk} is larger than max (${max})`);
}

/** Partitions may come in any order; within one, chunks are sorted already. */
function inOrder(rows: ChunkTable): ChunkTable {
  const { count, starts, ends } = rows;
  let sorted = true;
  for (let i = 1; i < count && sorted; i++) sorted = starts[i]! >= starts[i - 1]!;
  let table = rows;
  if (!sorted) {
    const order = Uint32Array.from({ length: count }, (_, row) => row);
    order.sort((a, b) => starts[a]! - starts[b]! || a - b);
    table = {
      count,
      kinds: order.map((row) => rows.kinds[row]!),
      starts: Float64Array.from(order, (row) => starts[row]!),
      ends: Float64Array.from(order, (row) => ends[row]!),
      offsets: Float64Array.from(order, (row) => rows.offsets[row]!),
      lengths: order.map((row) => rows.lengths[row]!),
      unpacked: order.map((row) => rows.unpacked[row]!),
    };
  }
  for (let i = 1; i < count; i++) {
    if (table.starts[i]! < table.ends[i - 1]!) {
      throw new ImageError('corrupt', `Invalid dmg file: chunks overlap at guest offset ${table.starts[i]}`);
    }
  }
  return table;
}

/** The last row that starts at or before the guest offset; -1 where the first row starts after it. */
export function rowAt(table: ChunkTable, at: number): number {
  let low = 0;
  let high = table.count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (table.starts[middle]! <= at) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
