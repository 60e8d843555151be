/** From the file to the footer, the dynamic disk header and the block allocation table: decoded and checked. */
import { ImageError } from '../../error.js';
import type { OpenContext } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { EntryTable } from '../entry-table.js';
import { MAX_GEOMETRY_SECTORS, sectorsOf } from './geometry.js';
import {
  bitmapBytes,
  DiskType,
  DynamicHeader,
  ENTRY_BYTES,
  FOOTER_COOKIE,
  Footer,
  footerChecksum,
  HEADER_COOKIE,
  hasCookie,
  headerChecksum,
  MAX_SECTORS,
  SECTOR,
  UNUSED,
} from './layout.js';

/** The reference's limit on entries, and on the bytes of one read, in which it wants the table. */
const MAX_ENTRIES = 0x1fffffff;
const MAX_REQUEST = 0x7ffffe00;
const MAX_OFFSET = 0x7fff_ffff_ffff_ffffn;

export type FooterFields = ReturnType<typeof Footer.decode>;
export type HeaderFields = ReturnType<typeof DynamicHeader.decode>;

/** What only dynamic and differencing disks have. Offsets and sizes are bytes. */
export interface Blocks {
  readonly header: HeaderFields;
  readonly headerSound: boolean;
  readonly blockSize: number;
  readonly bitmapSize: number;
  /** Bitmap and data. */
  readonly slot: number;
  readonly tableAt: number;
  readonly table: EntryTable;
  /** The first byte, a multiple of the sector size, after footer copy, header and table. */
  readonly metadataEnd: number;
  /** The first byte, a multiple of the sector size, after all that and all blocks. */
  readonly end: number;
}

export interface VpcImage {
  readonly file: Storage;
  /** The bytes of the footer that counts: the copy at the start, or, of fixed disks, the one at the end. */
  readonly footerBytes: Uint8Array;
  readonly footer: FooterFields;
  readonly footerSound: boolean;
  /** True where the footer was found at the start of the file. */
  readonly mirrored: boolean;
  readonly size: number;
  /** Undefined: fixed. */
  readonly blocks: Blocks | undefined;
}

function corrupt(message: string): ImageError {
  return new ImageError('corrupt', message);
}

/** The file's length in whole sectors, as the reference counts it. */
export function roundedSize(file: Storage): number {
  return Math.ceil(file.size / SECTOR) * SECTOR;
}

type SizeRule = 'creator' | 'chs' | 'current_size';

function sizeRule(option: unknown): SizeRule {
  if (option === undefined) return 'creator';
  if (option === 'chs' || option === 'current_size') return option;
  throw new ImageError('invalid', `Invalid size calculation mode: '${String(option)}'`);
}

/** Creators whose disks are as large as their geometry; all others round nothing, and their current size counts. */
const BY_GEOMETRY = new Set(['vpc ', 'qemu']);

function sectorsIn(footer: FooterFields, rule: SizeRule): bigint {
  const creator = Buffer.from(footer.creatorApplication).toString('latin1');
  const geometry = sectorsOf(footer);
  const byGeometry = rule === 'chs' || (rule === 'creator' && BY_GEOMETRY.has(creator));
  if (byGeometry && geometry !== MAX_GEOMETRY_SECTORS) return BigInt(geometry);
  return footer.currentSize / BigInt(SECTOR);
}

async function readStructure(file: Storage, at: number, length: number): Promise<Uint8Array> {
  const structure = new Uint8Array(length);
  await file.read(at, structure);
  return structure;
}

/** The footer that counts, and whether it is the copy at the start. */
async function findFooter(file: Storage): Promise<{ found: Uint8Array; mirrored: boolean }> {
  const first = await readStructure(file, 0, Footer.size);
  if (hasCookie(first, FOOTER_COOKIE)) return { found: first, mirrored: true };
  const end = roundedSize(file);
  if (end < Footer.size) throw corrupt('File too small for a VHD header');
  const last = await readStructure(file, end - Footer.size, Footer.size);
  const fixed = Footer.decode(last).diskType === DiskType.fixed;
  if (!hasCookie(last, FOOTER_COOKIE) || !fixed) throw corrupt('invalid VPC image');
  return { found: last, mirrored: false };
}

/** Opens the image. With `forCheck` what a check is to find is not refused: wrong checksums, blocks outside of the file. */
export async function openImage({ file, options, forCheck }: OpenContext): Promise<VpcImage> {
  const rule = sizeRule(options.force_size_calc);
  const { found, mirrored } = await findFooter(file);
  const footer = Footer.decode(found);
  const footerSound = footerChecksum(found) === footer.checksum;
  if (!footerSound && !forCheck) throw corrupt('Incorrect header checksum');
  const sectors = sectorsIn(footer, rule);
  if (sectors > MAX_SECTORS) {
    throw new ImageError('limit', `Could not open '${file.filename}': File too large`, { errno: 'EFBIG' });
  }
  const size = Number(sectors) * SECTOR;
  const blocks = mirrored ? await openBlocks(file, footer, size, forCheck) : undefined;
  const fixed = footer.diskType === DiskType.fixed;
  return {
    file,
    footerBytes: found,
    footer,
    footerSound,
    mirrored,
    size,
    blocks: fixed ? undefined : blocks,
  };
}

async function openBlocks(
  file: Storage,
  footer: FooterFields,
  size: number,
  forCheck: boolean,
): Promise<Blocks> {
  const { dataOffset } = footer;
  if (dataOffset > MAX_OFFSET - BigInt(DynamicHeader.size)) {
    throw corrupt('Error reading dynamic VHD header');
  }
  // What lies past the end reads as zeros, and so has no cookie.
  if (dataOffset >= BigInt(file.size)) throw corrupt('Invalid header magic');
  const bytes = await readStructure(file, Number(dataOffset), DynamicHeader.size);
  if (!hasCookie(bytes, HEADER_COOKIE)) throw corrupt('Invalid header magic');
  const header = DynamicHeader.decode(bytes);

  const { blockSize, maxTableEntries: entries, tableOffset } = header;
  if (blockSize < SECTOR || !Number.isInteger(Math.log2(blockSize))) {
    throw corrupt(`Invalid block size ${blockSize}`);
  }
  if (blockSize * entries < size) throw corrupt('Page table too small');
  if (entries > MAX_ENTRIES) {
    throw new ImageError('limit', `Max Table Entries too large (${entries | 0})`);
  }
  const tableBytes = entries * ENTRY_BYTES;
  if (tableBytes > MAX_REQUEST || tableOffset > MAX_OFFSET - BigInt(tableBytes)) {
    throw new ImageError('limit', 'Error reading pagetable');
  }
  const truncated = () =>
    corrupt('block-vpc: free_data_block_offset points after the end of file. The image has been truncated.');
  // The table lies in the file, whatever else is wrong: its entries are read.
  const fileEnd = roundedSize(file);
  if (tableOffset + BigInt(tableBytes) > BigInt(fileEnd)) throw truncated();

  const tableAt = Number(tableOffset);
  const table = new EntryTable(file, tableAt, entries, 'big');
  const bitmapSize = bitmapBytes(blockSize);
  const slot = bitmapSize + blockSize;
  const metadata = Math.max(tableAt + tableBytes, Number(dataOffset) + DynamicHeader.size);
  const metadataEnd = Math.ceil(metadata / SECTOR) * SECTOR;
  const highest = await highestEntry(table);
  const last = highest < 0 ? 0 : highest * SECTOR + slot;
  const end = Math.max(Math.ceil((tableAt + tableBytes) / SECTOR) * SECTOR, last);
  if (end > fileEnd && !forCheck) throw truncated();
  return {
    header,
    headerSound: headerChecksum(bytes) === header.checksum,
    blockSize,
    bitmapSize,
    slot,
    tableAt,
    table,
    metadataEnd,
    end: Math.max(end, metadataEnd),
  };
}

/** The highest entry in use, or -1. */
async function highestEntry(table: EntryTable): Promise<number> {
  let highest = -1;
  await table.scan((page, _first, count) => {
    for (let i = 0; i < count; i++) {
      const entry = page[i]!;
      if (entry !== UNUSED && entry > highest) highest = entry;
    }
  });
  return highest;
}
