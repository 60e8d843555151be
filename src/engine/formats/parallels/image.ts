/** The header, read and checked as the reference does it, and what follows from it. */
import { errnoText, ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { EntryTable } from '../entry-table.js';
import {
  Header,
  IN_USE,
  MAGIC_EXT,
  MAGIC_V1,
  MAX_BAT_ENTRIES,
  MAX_TRACKS,
  SECTOR,
  VERSION,
} from './layout.js';

/** Sectors that a signed 64-bit count of bytes reaches. */
const MAX_OFFSET = (2n ** 63n - 1n) / BigInt(SECTOR);

export class ParallelsImage {
  readonly file: Storage;
  readonly header: Header;
  /** Guest bytes. */
  readonly size: number;
  readonly clusterSize: number;
  /** Bytes that one in a BAT entry stands for. */
  readonly entryUnit: number;
  readonly isExt: boolean;
  readonly bat: EntryTable;
  /** Byte offset of the data area: as the header has it where that can be. */
  dataStart: number;
  /** Byte offset after the last cluster, as a check has found it. */
  dataEnd: number | undefined;
  /** The header's own word on it can be true. */
  dataOffOk: boolean;
  /** Somebody did not close the image. */
  unclean: boolean;

  constructor(file: Storage, header: Header) {
    this.file = file;
    this.header = header;
    this.isExt = text(header.magic) === MAGIC_EXT;
    const sectors = this.isExt ? header.sectors : header.sectors & 0xffff_ffffn;
    if (sectors * BigInt(SECTOR) > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new ImageError('limit', `Could not refresh total sector count: ${errnoText('EFBIG')}`, {
        errno: 'EFBIG',
      });
    }
    this.size = Number(sectors) * SECTOR;
    this.clusterSize = header.tracks * SECTOR;
    this.entryUnit = this.isExt ? this.clusterSize : SECTOR;
    this.bat = new EntryTable(file, Header.size, header.batEntries);
    this.unclean = header.inUse === IN_USE;
    const { ok, start } = this.#dataArea();
    this.dataOffOk = ok;
    this.dataStart = start;
  }

  /** First byte after the BAT. */
  get metadataEnd(): number {
    return Header.size + this.header.batEntries * 4;
  }

  /** Length of the file as the reference counts it: in whole sectors. */
  get fileSize(): number {
    return Math.ceil(this.file.size / SECTOR) * SECTOR;
  }

  /** The first sector where the data area may begin: rounded as the reference does, rightly only for powers of two. */
  get leastDataOff(): number {
    const { tracks } = this.header;
    const least = Math.ceil(this.metadataEnd / SECTOR);
    return this.isExt ? ((least + tracks - 1) & -tracks) >>> 0 : least;
  }

  /** Where the data area begins, and whether the header is right about it. */
  #dataArea(): { ok: boolean; start: number } {
    const { dataOff } = this.header;
    const least = this.leastDataOff;
    if (dataOff === 0 && !this.isExt) return { ok: true, start: least * SECTOR };
    if (dataOff < least || dataOff > this.fileSize / SECTOR) return { ok: false, start: least * SECTOR };
    return { ok: true, start: dataOff * SECTOR };
  }

  /** After the file or the header has changed. */
  checkDataOff(): boolean {
    this.dataOffOk = this.#dataArea().ok;
    return this.dataOffOk;
  }

  /** Byte offset in the file that a BAT entry stands for; infinite where no file reaches. */
  placeOf(entry: number): number {
    const place = entry * this.entryUnit;
    return place + this.clusterSize > Number.MAX_SAFE_INTEGER ? Number.POSITIVE_INFINITY : place;
  }

  async writeHeader(): Promise<void> {
    await this.file.write(0, Header.encode(this.header));
  }
}

function text(magic: Uint8Array): string {
  return String.fromCharCode(...magic);
}

/** Throws `corrupt` or `limit` in the reference's words. */
export async function readImage(file: Storage): Promise<ParallelsImage> {
  const raw = new Uint8Array(Header.size);
  await file.read(0, raw);
  const header = Header.decode(raw);
  const magic = text(header.magic);
  if ((magic !== MAGIC_V1 && magic !== MAGIC_EXT) || header.version !== VERSION) {
    throw new ImageError('corrupt', 'Image not in Parallels format');
  }
  if (header.tracks === 0) throw new ImageError('corrupt', 'Invalid image: Zero sectors per track');
  if (header.tracks > MAX_TRACKS) throw new ImageError('limit', 'Invalid image: Too big cluster');
  if (header.batEntries > MAX_BAT_ENTRIES) throw new ImageError('limit', 'Catalog too large');
  if (header.extOff > MAX_OFFSET) throw new ImageError('corrupt', 'Invalid image: Too big offset');
  return new ParallelsImage(file, header);
}
