/** The two headers: the one with the greater sequence number counts, the other is the next to be written. */
import { randomFillSync } from 'node:crypto';
import { crc32c } from '../../codec/crc32c.js';
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import {
  HEADER_AT,
  HEADER_SIGNATURE,
  HEADER_SIZE,
  HEADER_VERSION,
  Header,
  invalid,
  LOG_VERSION,
  MIB,
  NO_GUID,
  sameBytes,
} from './layout.js';

export type HeaderFields = ReturnType<typeof Header.decode>;

/** A random GUID (version 4). */
export function newGuid(): Uint8Array {
  const guid = randomFillSync(new Uint8Array(16));
  guid[7] = (guid[7]! & 0x0f) | 0x40;
  guid[8] = (guid[8]! & 0x3f) | 0x80;
  return guid;
}

/** The checksum of a structure of which `field` is the offset of its checksum, which counts as zero. */
export function checksumOf(bytes: Uint8Array, field: number): number {
  const zero = new Uint8Array(4);
  return crc32c(bytes.subarray(field + 4), crc32c(zero, crc32c(bytes.subarray(0, field))));
}

export function encodeHeader(fields: Partial<HeaderFields>): Uint8Array {
  const bytes = new Uint8Array(HEADER_SIZE);
  Header.encodeInto({ ...fields, checksum: 0 }, bytes);
  const at = Header.offsetOf('checksum');
  new DataView(bytes.buffer).setUint32(at, checksumOf(bytes, at), true);
  return bytes;
}

/** Undefined where it is not one, or was not written whole. */
function decodeHeader(bytes: Uint8Array): HeaderFields | undefined {
  const header = Header.decode(bytes);
  if (header.signature !== HEADER_SIGNATURE) return undefined;
  if (checksumOf(bytes, Header.offsetOf('checksum')) !== header.checksum) return undefined;
  return header.version === HEADER_VERSION ? header : undefined;
}

export class Headers {
  readonly #file: Storage;
  #slot: number;
  fields: HeaderFields;

  private constructor(file: Storage, slot: number, fields: HeaderFields) {
    this.#file = file;
    this.#slot = slot;
    this.fields = fields;
  }

  /** Throws where there is no header, or one that makes no sense (section 2.2.2). */
  static async read(file: Storage): Promise<Headers> {
    const raw = HEADER_AT.map(() => new Uint8Array(HEADER_SIZE));
    for (const [slot, at] of HEADER_AT.entries()) await file.read(at, raw[slot]!);
    const [one, other] = raw.map(decodeHeader);
    let slot: number;
    if (one === undefined || other === undefined) slot = one === undefined ? 1 : 0;
    else if (one.sequenceNumber !== other.sequenceNumber) {
      slot = one.sequenceNumber > other.sequenceNumber ? 0 : 1;
    } else if (sameBytes(raw[0]!, raw[1]!)) slot = 0;
    // Some programs write both alike; two that differ cannot be told apart.
    else throw noHeader();
    const fields = [one, other][slot];
    if (fields === undefined) throw noHeader();
    const { filename } = file;
    if (fields.logVersion !== LOG_VERSION) throw invalid(filename, 'log version');
    const { logOffset } = fields;
    if (logOffset < BigInt(MIB) || logOffset % BigInt(MIB) !== 0n || logOffset > BigInt(2 ** 52)) {
      throw invalid(filename, 'log offset');
    }
    return new Headers(file, slot, fields);
  }

  get logOffset(): number {
    return Number(this.fields.logOffset);
  }

  get logEmpty(): boolean {
    return sameBytes(this.fields.logGuid, NO_GUID);
  }

  /** Writes the header that does not count, with these changes, and flushes: it counts from then on. */
  async update(
    changes: Partial<Pick<HeaderFields, 'logGuid' | 'fileWriteGuid' | 'dataWriteGuid'>>,
  ): Promise<void> {
    const next = { ...this.fields, ...changes, sequenceNumber: this.fields.sequenceNumber + 1n };
    const slot = 1 - this.#slot;
    await this.#file.write(HEADER_AT[slot]!, encodeHeader(next));
    await this.#file.flush();
    this.fields = next;
    this.#slot = slot;
  }
}

function noHeader(): ImageError {
  return new ImageError('corrupt', 'No valid VHDX header found', { errno: 'EINVAL' });
}
