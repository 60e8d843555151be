/**
 * The text descriptor: a file of its own, or embedded in a sparse extent. Source: VMware, Virtual Disk Format 1.1, "The
 * descriptor file"; where that leaves a choice, the reference's. Texts here are latin1: one character a byte.
 */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';

/** Of a descriptor file this much is read (the reference's bound); what is after it is not seen. */
const MAX_DESCRIPTOR = (1 << 20) - 1;
/** Content ids and the parent's name are looked for in the first twenty sectors. */
export const HEADER_PART = 20 * 512;
/** Every extent is an open file. 8 TiB in pieces of 2 GiB. */
export const MAX_EXTENTS = 4096;
const MAX_PARENT_NAME = 4095;
const MAX_CREATE_TYPE = 127;

/** The types whose extent lines are understood. The reference takes these, but for vmfsThin, which is vmfs laid out thinly. */
const CREATE_TYPES: ReadonlySet<string> = new Set([
  'monolithicFlat',
  'vmfs',
  'vmfsThin',
  'vmfsSparse',
  'seSparse',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
]);

export type ExtentType = 'FLAT' | 'VMFS' | 'SPARSE' | 'VMFSSPARSE' | 'SESPARSE' | 'ZERO';

/** Of a line that is refused this much is shown; no sane one is longer. */
const MAX_SHOWN = 1024;
const INT64_MAX = 2n ** 63n - 1n;
const UINT64_MAX = 2n ** 64n - 1n;

/** One line of the extent description. */
export interface ExtentLine {
  readonly type: ExtentType;
  /** `RDONLY`: what is in it must not change. */
  readonly readOnly: boolean;
  /** Sectors, > 0. */
  readonly sectors: bigint;
  /** As recorded; empty for ZERO. */
  readonly filename: string;
  /** Sector in the file where a flat extent's content starts. */
  readonly offset: bigint;
}

/** What the descriptor's header says of the image's content and its parent's. */
export interface ContentIds {
  readonly cid: number;
  readonly parentCid: number;
  readonly parentName: string | undefined;
}

async function readText(file: Storage, at: number, length: number): Promise<string> {
  const raw = Buffer.alloc(Math.max(0, Math.min(length, file.size - at)));
  if (raw.length > 0) await file.read(at, raw);
  const end = raw.indexOf(0);
  return raw.toString('latin1', 0, end < 0 ? raw.length : end);
}

/** Descriptor text from a byte offset on, up to the first zero byte. */
export function readDescriptor(file: Storage, at: number): Promise<string> {
  return readText(file, at, MAX_DESCRIPTOR);
}

/** Bytes of the file as the name that they are. */
function nameOf(latin1: string): string {
  return Buffer.from(latin1, 'latin1').toString('utf8');
}

/** `createType="..."`; throws where there is none, or none that is known. */
export function parseCreateType(text: string): string {
  const at = text.indexOf('createType');
  const from = at + 'createType="'.length;
  const to = text.indexOf('"', from);
  if (at < 0 || from >= text.length || to < 0 || to - from > MAX_CREATE_TYPE) {
    throw new ImageError('corrupt', 'invalid VMDK image descriptor');
  }
  const type = text.slice(from, to);
  if (!CREATE_TYPES.has(type)) {
    throw new ImageError('unsupported', `Unsupported image type '${nameOf(type)}'`);
  }
  return type;
}

/** A decimal number as strtoll has it: what does not fit becomes the largest, without work on endless digits. */
function integer(text: string): bigint {
  const negative = text.startsWith('-');
  const digits = text.replace(/^[+-]?0*/, '');
  const size = digits.length > 19 ? INT64_MAX : BigInt(digits === '' ? 0 : digits);
  const value = size > INT64_MAX ? INT64_MAX : size;
  return negative ? -value : value;
}

function invalidLine(line: string): ImageError {
  return new ImageError('corrupt', `Invalid extent line: ${nameOf(line.slice(0, MAX_SHOWN))}`);
}

/**
 * One line, or undefined where it is none of an extent. The reference passes over lines that it does not understand,
 * which moves all that follows to other guest addresses; those that are extents for certain are errors here.
 */
function parseExtentLine(line: string): ExtentLine | undefined {
  const start = /^\s*(RW|RDONLY|NOACCESS)\s+([+-]?\d+)(?!\d)\s*([^\s"]{1,10})\s*/.exec(line);
  if (start === null) return undefined;
  const [whole, access, count, type] = start;
  const sectors = integer(count!);
  if (sectors < 0n) throw invalidLine(line);
  if (sectors === 0n) return undefined;
  if (access === 'NOACCESS') {
    throw new ImageError(
      'unsupported',
      `Extents without access are not supported: ${nameOf(line.slice(0, MAX_SHOWN))}`,
    );
  }
  const readOnly = access === 'RDONLY';
  if (type === 'ZERO') return { type, readOnly, sectors, filename: '', offset: 0n };
  const rest = /^"([^"]{1,511})(?:"\s*([+-]?\d+)?)?/.exec(line.slice(whole.length));
  if (rest === null) throw invalidLine(line);
  const filename = nameOf(rest[1]!);
  const offset = rest[2] === undefined ? undefined : integer(rest[2]);
  switch (type) {
    case 'FLAT':
      if (offset === undefined || offset < 0n) throw invalidLine(line);
      return { type, readOnly, sectors, filename, offset };
    case 'VMFS':
    case 'SPARSE':
    case 'VMFSSPARSE':
    case 'SESPARSE':
      if (offset !== undefined) throw invalidLine(line);
      return { type, readOnly, sectors, filename, offset: 0n };
    default:
      throw new ImageError('unsupported', `Unsupported extent type '${nameOf(type!)}'`);
  }
}

/** The extent lines in order. Throws for lines that are no valid extent, for too many, and for none at all. */
export function parseExtents(text: string): ExtentLine[] {
  const extents: ExtentLine[] = [];
  for (let at = 0; at < text.length; ) {
    const newline = text.indexOf('\n', at);
    const end = newline < 0 ? text.length : newline;
    const extent = parseExtentLine(text.slice(at, end).replace(/\r$/, ''));
    if (extent !== undefined) extents.push(extent);
    if (extents.length > MAX_EXTENTS) {
      throw new ImageError('limit', `Too many extents (more than ${MAX_EXTENTS})`);
    }
    at = end + 1;
  }
  if (extents.length === 0) throw new ImageError('corrupt', 'invalid VMDK image descriptor');
  return extents;
}

/** `CID=` or `parentCID=` and a hexadecimal number, where the name is first found in the text. */
function parseCid(text: string, name: string): number | undefined {
  const at = text.indexOf(name);
  if (at < 0) return undefined;
  const match = /^\s*([+-]?)(?:0x)?([0-9a-f]+)/i.exec(text.slice(at + name.length + 1));
  if (match === null) return undefined;
  const value = BigInt(`0x${match[2]}`);
  // As strtoul has it: cut to 32 bits what fits in 64, else all ones.
  if (value > UINT64_MAX) return 0xffffffff;
  return Number(BigInt.asUintN(32, match[1] === '-' ? -value : value));
}

/** `parentFileNameHint="..."`; null where it is there and makes no sense. */
function parseParentName(text: string): string | undefined | null {
  const at = text.indexOf('parentFileNameHint');
  if (at < 0) return undefined;
  const from = at + 'parentFileNameHint="'.length;
  const to = text.indexOf('"', from);
  if (from > text.length || to < 0 || to - from > MAX_PARENT_NAME) return null;
  return to === from ? undefined : nameOf(text.slice(from, to));
}

/** The content ids and the parent's name, from the descriptor that starts at byte `at` of the image file. */
export async function readContentIds(file: Storage, at: number): Promise<ContentIds> {
  const text = await readText(file, at, HEADER_PART);
  const parentName = parseParentName(text);
  const cid = parseCid(text, 'CID');
  const parentCid = parseCid(text, 'parentCID');
  if (parentName === null || cid === undefined || parentCid === undefined) {
    // The reference has no words of its own for this: a lone extent of a split image ends here.
    throw new ImageError('corrupt', `Could not open '${file.filename}': Invalid argument`, {
      path: file.filename,
      offset: at,
      errno: 'EINVAL',
    });
  }
  return { cid, parentCid, parentName };
}
