/**
 * Creating images. Source: VMware, Virtual Disk Format 1.1; where that leaves a choice (where tables stand, what the
 * descriptor says, what files are called), the reference's.
 */
import { ImageError } from '../../error.js';
import type { CreateContext } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { NO_PARENT, newCid } from './cid.js';
import {
  bytesOfWords,
  COMPRESSION_DEFLATE,
  FLAG_COMPRESSED,
  FLAG_MARKERS,
  FLAG_NEWLINE_TEST,
  FLAG_REDUNDANT_TABLE,
  FLAG_ZEROED_GRAINS,
  HostedHeader,
  LINE_ENDS,
  MAGIC_HOSTED,
  SECTOR,
} from './layout.js';
import { MAX_DIRECTORY_ENTRIES } from './sparse.js';

const SUBFORMATS = [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
  'streamOptimized',
] as const;
type Subformat = (typeof SUBFORMATS)[number];
const ADAPTERS = ['ide', 'buslogic', 'lsilogic', 'legacyESX'] as const;

/** What the maximum in `twoGbMaxExtent...` is. */
const SPLIT = 2 ** 31;
const GRAIN_SECTORS = 128;
const TABLE_ENTRIES = 512;
const TABLE_SECTORS = (TABLE_ENTRIES * 4) / SECTOR;
/** After the header, whether the extent carries a descriptor or not. */
const DESCRIPTOR_AT = 1;
const DESCRIPTOR_SECTORS = 20;
/** Directories are written in pieces of this many entries. */
const PIECE = 256 * 1024;
const MAX_TOOLS_VERSION = '2147483647';

interface Plan {
  readonly subformat: Subformat;
  readonly flat: boolean;
  readonly split: boolean;
  readonly compressed: boolean;
  readonly adapter: string;
  readonly hardware: string;
  readonly tools: string;
  readonly zeroedGrains: boolean;
}

function invalid(message: string): ImageError {
  return new ImageError('invalid', message);
}

/** Guest sizes are whole sectors. */
export function roundSize(size: number): number {
  return Math.ceil(size / SECTOR) * SECTOR;
}

function oneOf<T extends string>(value: unknown, allowed: readonly T[]): T {
  const found = allowed.find((candidate) => candidate === (value ?? allowed[0]));
  if (found === undefined) throw invalid(`invalid parameter value: ${String(value)}`);
  return found;
}

/** The options, checked in the reference's order. */
function plan({ options, backing }: Pick<CreateContext, 'options' | 'backing'>): Plan {
  const backingFormat = backing?.format ?? options.backing_fmt;
  if (backingFormat !== undefined && backingFormat !== 'vmdk') {
    throw invalid('backing_file must be a vmdk image');
  }
  const adapter = oneOf(options.adapter_type, ADAPTERS);
  const subformat = oneOf(options.subformat, SUBFORMATS);
  const version = (options.hwversion as string | undefined) ?? 'undefined';
  const compat6 = options.compat6 === true;
  if (compat6 && version !== 'undefined') throw invalid('compat6 cannot be enabled with hwversion set');
  const flat = subformat === 'monolithicFlat' || subformat === 'twoGbMaxExtentFlat';
  const zeroedGrains = options.zeroed_grain === true;
  if (flat && backing !== undefined) throw invalid("Flat image can't have backing file");
  if (flat && zeroedGrains) throw invalid("Flat image can't enable zeroed grain");
  return {
    subformat,
    flat,
    split: subformat === 'twoGbMaxExtentSparse' || subformat === 'twoGbMaxExtentFlat',
    compressed: subformat === 'streamOptimized',
    adapter,
    hardware: version !== 'undefined' ? version : compat6 ? '6' : '4',
    tools: (options.toolsversion as string | undefined) ?? MAX_TOOLS_VERSION,
    zeroedGrains,
  };
}

/** A filename without its folder, cut before its last dot. */
function nameParts(filename: string): { readonly stem: string; readonly suffix: string } {
  const name = filename.slice(filename.lastIndexOf('/') + 1);
  const dot = name.lastIndexOf('.');
  return dot < 0 ? { stem: name, suffix: '' } : { stem: name.slice(0, dot), suffix: name.slice(dot) };
}

interface PlannedExtent {
  readonly filename: string;
  /** Guest bytes. */
  readonly size: number;
  /** True where the image file is the extent. */
  readonly own: boolean;
}

function extentsOf(p: Plan, filename: string, size: number): PlannedExtent[] {
  const { stem, suffix } = nameParts(filename);
  if (!p.flat && !p.split) return [{ filename: `${stem}${suffix}`, size, own: true }];
  if (!p.split) {
    return size === 0 ? [] : [{ filename: `${stem}-flat${suffix}`, size, own: false }];
  }
  const extents: PlannedExtent[] = [];
  for (let at = 0; at < size; at += SPLIT) {
    const number = String(extents.length + 1).padStart(3, '0');
    const name = `${stem}-${p.flat ? 'f' : 's'}${number}${suffix}`;
    extents.push({ filename: name, size: Math.min(SPLIT, size - at), own: false });
  }
  return extents;
}

interface Parent {
  readonly name: string;
  readonly cid: number;
}

function describe(p: Plan, size: number, extents: readonly PlannedExtent[], parent: Parent | undefined) {
  const heads = p.adapter === 'ide' ? 16 : 255;
  const lines = extents.map(
    (extent) =>
      `RW ${extent.size / SECTOR} ${p.flat ? 'FLAT' : 'SPARSE'} "${extent.filename}"${p.flat ? ' 0' : ''}\n`,
  );
  return (
    '# Disk DescriptorFile\n' +
    'version=1\n' +
    `CID=${newCid().toString(16)}\n` +
    `parentCID=${(parent?.cid ?? NO_PARENT).toString(16)}\n` +
    `createType="${p.subformat}"\n` +
    `${parent === undefined ? '' : `parentFileNameHint="${parent.name}"`}\n` +
    `# Extent description\n${lines.join('')}\n` +
    '# The Disk Data Base\n' +
    '#DDB\n' +
    '\n' +
    `ddb.virtualHWVersion = "${p.hardware}"\n` +
    `ddb.geometry.cylinders = "${Math.floor(size / (63 * heads * SECTOR))}"\n` +
    `ddb.geometry.heads = "${heads}"\n` +
    'ddb.geometry.sectors = "63"\n' +
    `ddb.adapterType = "${p.adapter}"\n` +
    `ddb.toolsVersion = "${p.tools}"\n`
  );
}

/** A directory whose tables stand one after another behind it. */
async function writeDirectory(file: Storage, sector: number, first: number, count: number): Promise<void> {
  for (let from = 0; from < count; from += PIECE) {
    const entries = new Uint32Array(Math.min(PIECE, count - from));
    for (let index = 0; index < entries.length; index++) {
      entries[index] = first + (from + index) * TABLE_SECTORS;
    }
    await file.write(sector * SECTOR + from * 4, bytesOfWords(entries));
  }
}

/**
 * Header, room for a descriptor, redundant directory and tables, directory and tables; grains start at a multiple of their
 * size. Tables are all there from the start, empty. The header comes last, so that it is true.
 */
async function writeSparse(
  file: Storage,
  p: Plan,
  size: number,
  descriptor: Buffer | undefined,
): Promise<void> {
  const capacity = size / SECTOR;
  const tables = Math.ceil(capacity / (GRAIN_SECTORS * TABLE_ENTRIES));
  if (BigInt(tables) > MAX_DIRECTORY_ENTRIES) {
    throw new ImageError('limit', 'L1 size too big', { errno: 'EFBIG' });
  }
  const directorySectors = Math.ceil((tables * 4) / SECTOR);
  const half = directorySectors + tables * TABLE_SECTORS;
  const redundant = DESCRIPTOR_AT + DESCRIPTOR_SECTORS;
  const directory = redundant + half;
  const overHead = Math.ceil((directory + half) / GRAIN_SECTORS) * GRAIN_SECTORS;
  const version = p.compressed ? 3 : p.zeroedGrains ? 2 : 1;
  const header = HostedHeader.encode({
    version,
    flags:
      FLAG_NEWLINE_TEST |
      FLAG_REDUNDANT_TABLE |
      (p.compressed ? FLAG_COMPRESSED | FLAG_MARKERS : 0) |
      (p.zeroedGrains ? FLAG_ZEROED_GRAINS : 0),
    capacity: BigInt(capacity),
    grainSize: BigInt(GRAIN_SECTORS),
    descriptorOffset: BigInt(DESCRIPTOR_AT),
    descriptorSize: BigInt(DESCRIPTOR_SECTORS),
    numGTEsPerGT: TABLE_ENTRIES,
    rgdOffset: BigInt(redundant),
    gdOffset: BigInt(directory),
    overHead: BigInt(overHead),
    lineEndCheck: LINE_ENDS,
    compressAlgorithm: p.compressed ? COMPRESSION_DEFLATE : 0,
  });
  new DataView(header.buffer, header.byteOffset).setUint32(0, MAGIC_HOSTED);
  await file.truncate(overHead * SECTOR);
  await writeDirectory(file, redundant, redundant + directorySectors, tables);
  await writeDirectory(file, directory, directory + directorySectors, tables);
  if (descriptor !== undefined) await file.write(DESCRIPTOR_AT * SECTOR, descriptor);
  await file.flush();
  await file.write(0, header);
  await file.flush();
}

async function writeExtent(
  context: CreateContext,
  p: Plan,
  extent: PlannedExtent,
  text: Buffer,
): Promise<void> {
  if (extent.own) return writeSparse(context.file, p, extent.size, text);
  const file = await context.createExtra(extent.filename);
  try {
    if (p.flat) {
      await file.truncate(extent.size);
      await file.flush();
    } else await writeSparse(file, p, extent.size, undefined);
  } finally {
    await file.close();
  }
}

/** Throws `invalid` in the reference's words for options that make no sense. */
export function checkCreate(context: Pick<CreateContext, 'options' | 'backing'>): void {
  plan(context);
}

/**
 * Writes a new image: its extents, then the descriptor that names them. Throws `invalid` in the reference's words for options
 * that make no sense, before anything is written.
 */
export async function createVmdk(context: CreateContext): Promise<void> {
  const p = plan(context);
  const size = roundSize(context.size);
  let parent: Parent | undefined;
  if (context.backing !== undefined) {
    const found = await context.inspectBacking?.();
    if (found !== undefined && found.format !== 'vmdk') {
      throw invalid(`Invalid backing file format: ${found.format}. Must be vmdk`);
    }
    parent = { name: context.backing.filename, cid: found?.contentId ?? 0 };
  }
  const extents = extentsOf(p, context.filename, size);
  const text = Buffer.from(describe(p, size, extents, parent));
  if (extents[0]?.own && text.length > DESCRIPTOR_SECTORS * SECTOR) {
    throw new ImageError('no-space', 'The descriptor does not fit into the image', { errno: 'ENOSPC' });
  }
  for (const extent of extents) await writeExtent(context, p, extent, text);
  if (extents[0]?.own) return;
  await context.file.write(0, text);
  await context.file.flush();
}
