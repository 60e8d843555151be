/** Bochs "growing" disk images, read-only. */
import { ImageError } from '../../error.js';
import type { Extent, FormatDriver, FormatNode, OpenContext } from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { DISK_V1_AT, Header, isBochs, SECTOR, UNUSED, VERSION_1 } from './layout.js';
import { probe } from './probe.js';

/** The reference's limits: 1 Mi entries, and what 512 bytes of bitmap can stand for, four times over. */
const MAX_CATALOG = 0x100000;
const MAX_EXTENT = 0x800000;
/** Bitmaps that are kept: of 2 KiB at most. */
const MAX_BITMAPS = 1024;

/** Offsets and sizes are bytes. */
interface Geometry {
  readonly size: number;
  readonly extentSize: number;
  /** Bitmap and data, both in whole sectors. */
  readonly slot: number;
  readonly bitmapSize: number;
  /** After the catalog. */
  readonly dataAt: number;
}

function sectors(bytes: number): number {
  return Math.ceil(bytes / SECTOR);
}

/** Little-endian entries; at most 4 MiB. What lies past the end of the file reads as zeros. */
async function readCatalog(file: Storage, at: number, entries: number): Promise<Uint32Array> {
  const bytes = new Uint8Array(entries * 4);
  if (at < file.size) await file.read(at, bytes);
  const view = new DataView(bytes.buffer);
  return Uint32Array.from({ length: entries }, (_, index) => view.getUint32(index * 4, true));
}

async function openBochs({ file, writable }: OpenContext): Promise<FormatNode> {
  if (writable) throw new ImageError('read-only', 'Image is read-only');
  const head = new Uint8Array(SECTOR);
  await file.read(0, head);
  if (!isBochs(head)) throw new ImageError('corrupt', 'Image not in Bochs format');
  const header = Header.decode(head);
  const disk =
    header.version === VERSION_1 ? new DataView(head.buffer).getBigUint64(DISK_V1_AT, true) : header.disk;
  const diskSectors = disk / BigInt(SECTOR);

  const { catalog: entries, extent } = header;
  if (entries > MAX_CATALOG) throw new ImageError('limit', 'Catalog size is too large');
  if (extent < SECTOR) throw new ImageError('corrupt', `Extent size must be at least ${SECTOR}`);
  if (!Number.isInteger(Math.log2(extent))) {
    throw new ImageError('corrupt', `Extent size ${extent} is not a power of two`);
  }
  if (extent > MAX_EXTENT) throw new ImageError('limit', `Extent size ${extent} is too large`);
  if (diskSectors > BigInt(entries) * BigInt(extent / SECTOR)) {
    throw new ImageError('corrupt', 'Catalog size is too small for this disk size');
  }
  const catalog = await readCatalog(file, header.header, entries);
  return bochsNode(file, catalog, {
    size: Number(diskSectors) * SECTOR,
    extentSize: extent,
    slot: (Math.max(1, sectors(header.bitmap)) + sectors(extent)) * SECTOR,
    bitmapSize: Math.max(1, sectors(header.bitmap)) * SECTOR,
    dataAt: header.header + entries * 4,
  });
}

function bochsNode(file: Storage, catalog: Uint32Array, geometry: Geometry): FormatNode {
  const { size, extentSize, slot, bitmapSize, dataAt } = geometry;
  /** By extent, oldest first. */
  const bitmaps = new Map<number, Uint8Array>();

  const loadBitmap = async (index: number, at: number): Promise<Uint8Array> => {
    // As many bits as there are sectors, however long the bitmap is said to be.
    const bitmap = new Uint8Array(Math.ceil(extentSize / SECTOR / 8));
    if (at < file.size) await file.read(at, bitmap);
    for (const [oldest] of bitmaps) {
      if (bitmaps.size < MAX_BITMAPS) break;
      bitmaps.delete(oldest);
    }
    bitmaps.set(index, bitmap);
    return bitmap;
  };

  /** A run of sectors that are all there or all not; the first sector is a byte's lowest bit. */
  const runOf = (bitmap: Uint8Array, at: number, within: number, length: number): Extent => {
    const bit = (sector: number) => (bitmap[sector >>> 3]! >>> (sector & 7)) & 1;
    const first = Math.floor(within / SECTOR);
    const end = Math.ceil((within + length) / SECTOR);
    const there = bit(first);
    let next = first + 1;
    while (next < end && bit(next) === there) next++;
    const run = Math.min(length, next * SECTOR - within);
    if (there === 0) return { kind: 'zero', length: run };
    return { kind: 'data', length: run, storage: file, at: at + bitmapSize + within };
  };

  return {
    size,
    unit: 1,
    children: new Map(),
    startsAsZero: false,
    opaque: true,
    map(range: Range): MaybePromise<Extent> {
      const index = Math.floor(range.at / extentSize);
      const within = range.at - index * extentSize;
      const entry = catalog[index]!;
      if (entry === UNUSED) {
        let next = index + 1;
        while (next * extentSize < range.at + range.length && catalog[next] === UNUSED) next++;
        return { kind: 'zero', length: Math.min(range.length, next * extentSize - range.at) };
      }
      const at = dataAt + entry * slot;
      const length = Math.min(range.length, extentSize - within);
      const bitmap = bitmaps.get(index);
      if (bitmap !== undefined) return runOf(bitmap, at, within, length);
      return loadBitmap(index, at).then((loaded) => runOf(loaded, at, within, length));
    },
    info: () => ({}),
    close: () => Promise.resolve(),
  };
}

export const bochs: FormatDriver = {
  name: 'bochs',
  probe,
  openOptions: [],
  open: openBochs,
  createOptions: [],
  supportsBacking: false,
};
