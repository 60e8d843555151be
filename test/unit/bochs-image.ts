/** Bochs growing images made by hand. */
import { Header, UNUSED, VERSION_1, VERSION_2 } from '../../src/engine/formats/bochs/layout.js';

export interface BochsParts {
  /** Guest bytes. */
  readonly size: number;
  readonly extentSize?: number;
  readonly version1?: boolean;
  /** Extents by number, in file order: their bytes, and which sectors count (all where absent), the first the lowest bit. */
  readonly extents?: ReadonlyMap<number, { readonly data: Uint8Array; readonly bitmap?: Uint8Array }>;
  readonly catalog?: number;
}

export const EXTENT = 4096;

export function bochsImage(parts: BochsParts): Buffer {
  const {
    size,
    extentSize = EXTENT,
    extents = new Map<number, { data: Uint8Array; bitmap?: Uint8Array }>(),
  } = parts;
  const catalog = parts.catalog ?? Math.ceil(size / extentSize);
  const head = Header.encode({
    magic: Buffer.from('Bochs Virtual HD Image'),
    type: Buffer.from('Redolog'),
    subtype: Buffer.from('Growing'),
    version: parts.version1 === true ? VERSION_1 : VERSION_2,
    header: 512,
    catalog,
    bitmap: 512,
    extent: extentSize,
    disk: BigInt(size),
  });
  const start = Buffer.alloc(512);
  start.set(head);
  if (parts.version1 === true) start.writeBigUInt64LE(BigInt(size), Header.offsetOf('timestamp'));
  const table = Buffer.alloc(catalog * 4);
  for (let i = 0; i < catalog; i++) table.writeUInt32LE(UNUSED, i * 4);
  const behind: Uint8Array[] = [];
  for (const [index, { data, bitmap }] of extents) {
    table.writeUInt32LE(behind.length / 2, index * 4);
    const bits = Buffer.alloc(512, bitmap === undefined ? 0xff : 0);
    bits.set(bitmap ?? []);
    const padded = Buffer.alloc(extentSize);
    padded.set(data);
    behind.push(bits, padded);
  }
  return Buffer.concat([start, table, ...behind]);
}
