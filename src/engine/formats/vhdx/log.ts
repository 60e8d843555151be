/**
 * The log (section 2.3), read: which of its entries count, and what they say is to be done. A ring of 4 KiB sectors; an
 * entry is a header with its descriptors, then a data sector for each data descriptor.
 */
import { crc32c } from '../../codec/crc32c.js';
import type { Storage } from '../../storage/storage.js';
import {
  DATA_SECTOR_SIGNATURE,
  DATA_SIGNATURE,
  DataDescriptor,
  DataSector,
  DESCRIPTOR_SIZE,
  ENTRY_SIGNATURE,
  EntryHeader,
  LEADING_BYTES,
  LOG_SECTOR,
  MIB,
  sameBytes,
  TRAILING_BYTES,
  ZERO_SIGNATURE,
  ZeroDescriptor,
} from './layout.js';
import type { Region } from './regions.js';

/** The log is read in pieces of this. */
const PIECE = MIB;
/**
 * Entries overlap only in logs that were made to waste time; of an honest one no byte is looked at more than a few times,
 * however often the ring was written.
 */
const MAX_ROUNDS = 8;

export interface LogEntry {
  /** Offset in the log. */
  readonly at: number;
  readonly length: number;
  readonly tail: number;
  readonly sequence: bigint;
  readonly descriptors: number;
  readonly checksum: number;
  readonly flushedFileOffset: bigint;
  readonly lastFileOffset: bigint;
}

/** What one descriptor says. `data`: a whole sector. */
export type LogChange =
  | { readonly kind: 'data'; readonly at: bigint; readonly data: Uint8Array }
  | { readonly kind: 'zero'; readonly at: bigint; readonly length: bigint };

/** Sectors that the header and so many descriptors take. */
export function descriptorSectors(count: number): number {
  return Math.ceil((EntryHeader.size + count * DESCRIPTOR_SIZE) / LOG_SECTOR);
}

export class LogReader {
  readonly #file: Storage;
  readonly #region: Region;
  readonly #guid: Uint8Array;
  /** Bytes that may still be looked at. */
  #left: number;
  #piece: { at: number; bytes: Uint8Array } | undefined;

  /** `guid`: the entries that count have it. */
  constructor(file: Storage, region: Region, guid: Uint8Array) {
    this.#file = file;
    // What is past the end of the file is no entry.
    const inFile = Math.max(0, Math.min(region.length, file.size - region.at));
    const length = inFile < region.length ? 0 : region.length - (region.length % LOG_SECTOR);
    this.#region = { at: region.at, length };
    this.#guid = guid;
    this.#left = MAX_ROUNDS * length + PIECE;
  }

  /**
   * The entries that are to be replayed, in order; empty where there are none. An active sequence is one whose entries
   * follow each other with the sequence numbers counting up and whose last one's tail is in it; of several the one with
   * the greatest number counts, from that tail on (2.3.2).
   */
  async active(): Promise<LogEntry[]> {
    const { length } = this.#region;
    let best: LogEntry[] = [];
    for (let at = 0; at < length; ) {
      const sequence = await this.#sequenceFrom(at);
      const head = sequence.at(-1);
      if (head === undefined) {
        at += LOG_SECTOR;
        continue;
      }
      const tail = sequence.findIndex((entry) => entry.at === head.tail);
      if (tail >= 0 && head.sequence > (best.at(-1)?.sequence ?? 0n)) best = sequence.slice(tail);
      // A sequence that goes on over the end of the ring has been seen whole.
      at = head.at < at ? length : head.at + head.length;
    }
    return best;
  }

  async #sequenceFrom(start: number): Promise<LogEntry[]> {
    const found: LogEntry[] = [];
    const { length } = this.#region;
    let at = start;
    for (let used = 0; used < length; ) {
      const entry = await this.#entryAt(at);
      if (entry === undefined || used + entry.length > length) break;
      const last = found.at(-1);
      if (last !== undefined && entry.sequence !== last.sequence + 1n) break;
      found.push(entry);
      used += entry.length;
      at = (at + entry.length) % length;
    }
    return found;
  }

  /** A sector of the log, valid until the next call. Undefined where too much was looked at. */
  async #sector(at: number): Promise<Uint8Array | undefined> {
    const { length, at: base } = this.#region;
    const wrapped = at % length;
    const start = wrapped - (wrapped % PIECE);
    if (this.#piece?.at !== start) {
      const bytes = new Uint8Array(Math.min(PIECE, length - start));
      await this.#file.read(base + start, bytes);
      this.#piece = { at: start, bytes };
    }
    this.#left -= LOG_SECTOR;
    if (this.#left < 0) return undefined;
    return this.#piece.bytes.subarray(wrapped - start, wrapped - start + LOG_SECTOR);
  }

  /** The entry that begins there, checked in all its parts; undefined where there is none. */
  async #entryAt(at: number): Promise<LogEntry | undefined> {
    const sector = await this.#sector(at);
    if (sector === undefined) return undefined;
    const header = EntryHeader.decode(sector);
    const { entryLength, tail, descriptorCount, sequenceNumber } = header;
    const { length } = this.#region;
    if (header.signature !== ENTRY_SIGNATURE || !sameBytes(header.logGuid, this.#guid)) return undefined;
    if (entryLength === 0 || entryLength % LOG_SECTOR !== 0 || entryLength > length) return undefined;
    if (tail % LOG_SECTOR !== 0 || tail >= length || sequenceNumber === 0n) return undefined;
    if (descriptorSectors(descriptorCount) * LOG_SECTOR > entryLength) return undefined;
    const entry: LogEntry = {
      at,
      length: entryLength,
      tail,
      sequence: sequenceNumber,
      descriptors: descriptorCount,
      checksum: header.checksum,
      flushedFileOffset: header.flushedFileOffset,
      lastFileOffset: header.lastFileOffset,
    };
    return (await this.#isWhole(entry)) ? entry : undefined;
  }

  /** Every descriptor, every data sector, and the checksum over all. */
  async #isWhole(entry: LogEntry): Promise<boolean> {
    const sectors = entry.length / LOG_SECTOR;
    const first = descriptorSectors(entry.descriptors);
    const checksumAt = EntryHeader.offsetOf('checksum');
    let dataSectors = 0;
    let crc = 0;
    for (let index = 0; index < sectors; index++) {
      const sector = await this.#sector(entry.at + index * LOG_SECTOR);
      if (sector === undefined) return false;
      if (index === 0) {
        crc = crc32c(sector.subarray(0, checksumAt));
        crc = crc32c(new Uint8Array(4), crc);
        crc = crc32c(sector.subarray(checksumAt + 4), crc);
      } else crc = crc32c(sector, crc);
      if (index < first) {
        for (const descriptor of descriptorsIn(sector, index, entry.descriptors)) {
          if (descriptor.sequenceNumber !== entry.sequence) return false;
          if (descriptor.fileOffset % BigInt(LOG_SECTOR) !== 0n) return false;
          if (descriptor.signature === DATA_SIGNATURE) dataSectors++;
          else if (descriptor.signature !== ZERO_SIGNATURE) return false;
          else if (ZeroDescriptor.decode(descriptor.raw).zeroLength % BigInt(LOG_SECTOR) !== 0n) return false;
        }
        // What the descriptors ask for is known before the data is looked at.
        if (index === first - 1 && first + dataSectors !== sectors) return false;
      } else {
        const { signature, sequenceHigh, sequenceLow } = dataSectorEnds(sector);
        if (signature !== DATA_SECTOR_SIGNATURE) return false;
        if ((BigInt(sequenceHigh) << 32n) + BigInt(sequenceLow) !== entry.sequence) return false;
      }
    }
    return crc === entry.checksum;
  }

  /** What an entry of `active()` says, in order. */
  async *changes(entry: LogEntry): AsyncGenerator<LogChange> {
    // What was spent on finding it does not count here.
    this.#left = Number.POSITIVE_INFINITY;
    let data = entry.at + descriptorSectors(entry.descriptors) * LOG_SECTOR;
    for (let index = 0; index < descriptorSectors(entry.descriptors); index++) {
      const sector = (await this.#sector(entry.at + index * LOG_SECTOR))!.slice();
      for (const { signature, raw } of descriptorsIn(sector, index, entry.descriptors)) {
        if (signature === ZERO_SIGNATURE) {
          const { fileOffset, zeroLength } = ZeroDescriptor.decode(raw);
          yield { kind: 'zero', at: fileOffset, length: zeroLength };
          continue;
        }
        const { fileOffset, leadingBytes, trailingBytes } = DataDescriptor.decode(raw);
        const bytes = (await this.#sector(data))!.slice();
        data += LOG_SECTOR;
        const view = new DataView(bytes.buffer);
        view.setBigUint64(0, leadingBytes, true);
        view.setUint32(LOG_SECTOR - TRAILING_BYTES, trailingBytes, true);
        yield { kind: 'data', at: fileOffset, data: bytes };
      }
    }
  }
}

function dataSectorEnds(sector: Uint8Array): {
  signature: number;
  sequenceHigh: number;
  sequenceLow: number;
} {
  const view = new DataView(sector.buffer, sector.byteOffset, LOG_SECTOR);
  return {
    signature: view.getUint32(0, true),
    sequenceHigh: view.getUint32(DataSector.offsetOf('sequenceHigh'), true),
    sequenceLow: view.getUint32(DataSector.offsetOf('sequenceLow'), true),
  };
}

interface RawDescriptor {
  readonly signature: number;
  readonly fileOffset: bigint;
  readonly sequenceNumber: bigint;
  readonly raw: Uint8Array;
}

/** The descriptors in one sector of an entry, by its index. */
function* descriptorsIn(sector: Uint8Array, index: number, count: number): Generator<RawDescriptor> {
  const inFirst = (LOG_SECTOR - EntryHeader.size) / DESCRIPTOR_SIZE;
  const perSector = LOG_SECTOR / DESCRIPTOR_SIZE;
  const before = index === 0 ? 0 : inFirst + (index - 1) * perSector;
  const here = Math.min(count - before, index === 0 ? inFirst : perSector);
  let at = index === 0 ? EntryHeader.size : 0;
  for (let n = 0; n < here; n++, at += DESCRIPTOR_SIZE) {
    const { signature, fileOffset, sequenceNumber } = DataDescriptor.decode(sector, at);
    yield { signature, fileOffset, sequenceNumber, raw: sector.subarray(at, at + DESCRIPTOR_SIZE) };
  }
}

/** One sector that an entry is to change. */
export interface SectorChange {
  /** Offset in the file, a multiple of 4 KiB. */
  readonly at: number;
  /** 4 KiB. */
  readonly data: Uint8Array;
}

/** An entry that is a sequence by itself, to be written at offset `at` of the log. */
export function encodeEntry(
  entry: {
    readonly at: number;
    readonly sequence: bigint;
    readonly logGuid: Uint8Array;
    readonly fileSize: number;
  },
  changes: readonly SectorChange[],
): Uint8Array {
  const first = descriptorSectors(changes.length);
  const bytes = new Uint8Array((first + changes.length) * LOG_SECTOR);
  EntryHeader.encodeInto(
    {
      signature: ENTRY_SIGNATURE,
      entryLength: bytes.length,
      tail: entry.at,
      sequenceNumber: entry.sequence,
      descriptorCount: changes.length,
      logGuid: entry.logGuid,
      flushedFileOffset: BigInt(entry.fileSize),
      lastFileOffset: BigInt(entry.fileSize),
    },
    bytes,
  );
  for (const [index, { at, data }] of changes.entries()) {
    const view = new DataView(data.buffer, data.byteOffset, LOG_SECTOR);
    DataDescriptor.encodeInto(
      {
        signature: DATA_SIGNATURE,
        trailingBytes: view.getUint32(LOG_SECTOR - TRAILING_BYTES, true),
        leadingBytes: view.getBigUint64(0, true),
        fileOffset: BigInt(at),
        sequenceNumber: entry.sequence,
      },
      bytes,
      EntryHeader.size + index * DESCRIPTOR_SIZE,
    );
    DataSector.encodeInto(
      {
        signature: DATA_SECTOR_SIGNATURE,
        sequenceHigh: Number(entry.sequence >> 32n),
        data: data.subarray(LEADING_BYTES, LOG_SECTOR - TRAILING_BYTES),
        sequenceLow: Number(entry.sequence & 0xffff_ffffn),
      },
      bytes,
      (first + index) * LOG_SECTOR,
    );
  }
  new DataView(bytes.buffer).setUint32(EntryHeader.offsetOf('checksum'), crc32c(bytes), true);
  return bytes;
}
