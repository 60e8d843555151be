/** VHD images made by hand. */
import {
  ALL_ONES,
  bitmapBytes,
  DiskType,
  DynamicHeader,
  FOOTER_COOKIE,
  Footer,
  HEADER_COOKIE,
  ParentLocator,
  Platform,
  SECTOR,
  sealFooter,
  sealHeader,
  UNUSED,
  VERSION,
} from '../../src/engine/formats/vpc/layout.js';

export interface FooterParts {
  readonly size: number;
  readonly type: number;
  readonly creator?: string;
  readonly geometry?: readonly [cylinders: number, heads: number, sectorsPerTrack: number];
  readonly currentSize?: bigint;
  readonly dataOffset?: bigint;
  readonly uniqueId?: Uint8Array;
}

export const ID = Buffer.from('00112233445566778899aabbccddeeff', 'hex');

/** By default of a creator that goes by the size. */
export function footerOf(parts: FooterParts): Uint8Array {
  const [cylinders, heads, sectorsPerTrack] = parts.geometry ?? [65535, 16, 255];
  return sealFooter({
    cookie: Buffer.from(FOOTER_COOKIE),
    features: 2,
    fileFormatVersion: VERSION,
    dataOffset: parts.dataOffset ?? (parts.type === DiskType.fixed ? ALL_ONES : 512n),
    creatorApplication: Buffer.from(parts.creator ?? 'win '),
    creatorHostOs: Buffer.from('Wi2k'),
    originalSize: BigInt(parts.size),
    currentSize: parts.currentSize ?? BigInt(parts.size),
    cylinders,
    heads,
    sectorsPerTrack,
    diskType: parts.type,
    uniqueId: parts.uniqueId ?? ID,
  });
}

export function fixed(content: Uint8Array, more: Partial<FooterParts> = {}): Buffer {
  return Buffer.concat([content, footerOf({ size: content.length, type: DiskType.fixed, ...more })]);
}

export interface Block {
  readonly data: Uint8Array;
  /** All ones where absent. */
  readonly bitmap?: Uint8Array;
}

export interface DynamicParts extends Partial<FooterParts> {
  readonly size: number;
  readonly blockSize?: number;
  /** By number, in the order in which they are in the file. */
  readonly blocks?: ReadonlyMap<number, Block>;
  readonly entries?: number;
  /** A Windows path, for differencing disks; more bytes as locators of other platforms. */
  readonly parent?: string;
  readonly parentId?: Uint8Array;
  readonly locators?: readonly { readonly code: number; readonly data: Uint8Array }[];
  /** Space between the last block and the footer: what a crash may leave. */
  readonly gap?: Uint8Array;
}

export const BLOCK = 4096;

export function dynamic(parts: DynamicParts): Buffer {
  const { size, blockSize = BLOCK, blocks = new Map<number, Block>(), gap = new Uint8Array(0) } = parts;
  const differencing = parts.parent !== undefined || parts.locators !== undefined;
  const type = parts.type ?? (differencing ? DiskType.differencing : DiskType.dynamic);
  const entries = parts.entries ?? Math.ceil(size / blockSize);
  const tableAt = Footer.size + DynamicHeader.size;
  const table = Buffer.alloc(Math.ceil((entries * 4) / SECTOR) * SECTOR, 0xff);
  const footer = footerOf({ ...parts, type });
  let at = tableAt + table.length;
  const behind: Uint8Array[] = [];
  const put = (bytes: Uint8Array) => {
    const start = at;
    const padded = Buffer.alloc(Math.ceil(bytes.length / SECTOR) * SECTOR);
    padded.set(bytes);
    behind.push(padded);
    at += padded.length;
    return start;
  };
  const all = [
    ...(parts.parent === undefined
      ? []
      : [{ code: Platform.w2ru as number, data: Buffer.from(parts.parent, 'utf16le') }]),
    ...(parts.locators ?? []),
  ];
  const locators = Buffer.alloc(8 * ParentLocator.size);
  for (const [index, { code, data }] of all.entries()) {
    ParentLocator.encodeInto(
      {
        platformCode: code,
        platformDataSpace: Math.ceil(data.length / SECTOR),
        platformDataLength: data.length,
        platformDataOffset: BigInt(put(data)),
      },
      locators,
      index * ParentLocator.size,
    );
  }
  for (const [index, { data, bitmap }] of blocks) {
    table.writeUInt32BE(put(bitmap ?? new Uint8Array(bitmapBytes(blockSize)).fill(0xff)) / SECTOR, index * 4);
    put(data);
  }
  const header = sealHeader({
    cookie: Buffer.from(HEADER_COOKIE),
    dataOffset: ALL_ONES,
    tableOffset: BigInt(tableAt),
    headerVersion: VERSION,
    maxTableEntries: entries,
    blockSize,
    parentUniqueId: parts.parentId ?? new Uint8Array(16),
    parentLocators: locators,
  });
  return Buffer.concat([footer, header, table, ...behind, gap, footer]);
}

export function setEntry(image: Buffer, block: number, sector: number): Buffer {
  image.writeUInt32BE(sector, Footer.size + DynamicHeader.size + block * 4);
  return image;
}

export function entryOf(image: Uint8Array, block: number): number | undefined {
  const entry = Buffer.from(image).readUInt32BE(Footer.size + DynamicHeader.size + block * 4);
  return entry === UNUSED ? undefined : entry;
}

/** Fills in the checksum of a footer that was changed. */
export function resealed(image: Buffer, at: number): Buffer {
  const footer = image.subarray(at, at + Footer.size);
  footer.set(sealFooter(Footer.decode(footer)));
  return image;
}
