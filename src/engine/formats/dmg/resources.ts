/** From the file to its chunk tables: the trailer, and the property list or resource fork that it names. */
import { toSafe } from '../../codec/struct.js';
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { KOLY, MAX_TABLE_BYTES, RESOURCE_FORK, SECTOR, SMALLEST_TABLE } from './layout.js';

function corrupt(what: string): ImageError {
  return new ImageError('corrupt', `Invalid dmg file: ${what}`);
}

export interface Trailer {
  readonly dataForkOffset: number;
  readonly resourceForkOffset: number;
  readonly resourceForkLength: number;
  readonly xmlOffset: number;
  readonly xmlLength: number;
  /** Guest size in bytes. */
  readonly size: number;
}

/**
 * Finds the trailer. Images can have any length, and QEMU counts them in whole sectors: the magic is searched for in
 * the last 511 bytes of the second-last sector and the first four of the last.
 */
export async function readTrailer(file: Storage): Promise<Trailer> {
  const length = Math.ceil(file.size / SECTOR) * SECTOR;
  if (length === 0) throw new ImageError('corrupt', 'dmg file must be at least 512 bytes long');
  const start = Math.max(0, length - (2 * SECTOR - 1));
  // What lies past the end reads as zeros.
  const tail = new Uint8Array(SECTOR + 3 + KOLY.size);
  await file.read(start, tail);
  const found = Buffer.from(tail.buffer, 0, Math.min(length, SECTOR + 3)).indexOf('koly', 0, 'latin1');
  if (found < 0) throw new ImageError('corrupt', 'Could not locate UDIF trailer in dmg file');

  const fields = KOLY.decode(tail, found);
  const at = start + found;
  const dataForkOffset = toSafe(fields.dataForkOffset, 'Data fork offset');
  if (dataForkOffset > at) throw corrupt('the data fork is out of range');
  const within = (offset: bigint, size: bigint, what: string) => {
    const from = toSafe(offset, `${what} offset`);
    const bytes = toSafe(size, `${what} length`);
    if (from >= at || bytes > at - from) throw corrupt(`the ${what.toLowerCase()} is out of range`);
    return { from, bytes };
  };
  const resourceFork = within(fields.resourceForkOffset, fields.resourceForkLength, 'Resource fork');
  const xml = within(fields.xmlOffset, fields.xmlLength, 'Property list');
  return {
    dataForkOffset,
    resourceForkOffset: resourceFork.from,
    resourceForkLength: resourceFork.bytes,
    xmlOffset: xml.from,
    xmlLength: xml.bytes,
    size: toSafe(fields.sectorCount * BigInt(SECTOR), 'Image size'),
  };
}

/** The resources of the image that may be chunk tables, in their order. The fork goes before the property list, as in QEMU. */
export async function readResources(file: Storage, trailer: Trailer): Promise<readonly Uint8Array[]> {
  if (trailer.resourceForkLength !== 0) {
    const { resourceForkOffset: at, resourceForkLength: length } = trailer;
    if (length > MAX_TABLE_BYTES) {
      throw new ImageError('limit', `The resource fork of the dmg file is too large: ${length} bytes`);
    }
    const fork = new Uint8Array(length);
    await file.read(at, fork);
    return splitResourceFork(fork);
  }
  if (trailer.xmlLength !== 0) {
    const { xmlOffset: at, xmlLength: length } = trailer;
    if (length > MAX_TABLE_BYTES) {
      throw new ImageError('limit', `The property list of the dmg file is too large: ${length} bytes`);
    }
    const xml = new Uint8Array(length);
    await file.read(at, xml);
    return plistData(xml);
  }
  throw corrupt('no resource fork and no property list');
}

/** The resources of a Macintosh resource fork that are large enough for a chunk table. Its map (types, names, ids) is not needed: tables are known by their magic. */
export function splitResourceFork(fork: Uint8Array): Uint8Array[] {
  if (fork.byteLength < RESOURCE_FORK.size) throw corrupt('the resource fork is too short');
  const { dataOffset, dataLength } = RESOURCE_FORK.decode(fork);
  const end = dataOffset + dataLength;
  if (dataLength === 0 || end > fork.byteLength) throw corrupt('the resource data is out of range');
  const view = new DataView(fork.buffer, fork.byteOffset, fork.byteLength);
  const found: Uint8Array[] = [];
  for (let at = dataOffset; at < end; ) {
    if (at + 4 > end) throw corrupt('a resource is cut off');
    const length = view.getUint32(at);
    at += 4;
    if (length === 0 || length > end - at) throw corrupt('a resource is out of range');
    if (length >= SMALLEST_TABLE) found.push(fork.subarray(at, at + length));
    at += length;
  }
  return found;
}

const DATA = '<data>';
const DATA_END = '</data>';
/** What is shorter is no chunk table: millions of them are not worth their memory. */
const SMALLEST_BASE64 = Math.floor((SMALLEST_TABLE * 4) / 3);

/**
 * The contents of a property list's <data> elements that are large enough for a chunk table. All else in the list is of no use for reading the disk, and is not
 * looked at: no entities, no nesting, no references. Elements that are no chunk table are told by their lack of a magic.
 */
export function plistData(xml: Uint8Array): Uint8Array[] {
  const text = Buffer.from(xml.buffer, xml.byteOffset, xml.byteLength);
  const found: Uint8Array[] = [];
  let at = text.indexOf(DATA, 0, 'latin1');
  while (at >= 0) {
    const start = at + DATA.length;
    const end = text.indexOf(DATA_END, start, 'latin1');
    if (end < 0) throw corrupt('the property list is malformed');
    if (end - start >= SMALLEST_BASE64)
      found.push(Buffer.from(text.toString('latin1', start, end), 'base64'));
    at = text.indexOf(DATA, end, 'latin1');
  }
  return found;
}
