/** The region table (section 2.2.3): where the BAT and the metadata are, and what nothing else may lie on. */
import type { Storage } from '../../storage/storage.js';
import { checksumOf } from './header.js';
import {
  BAT_REGION,
  invalid,
  MAX_REGIONS,
  METADATA_REGION,
  REGION_REQUIRED,
  REGION_SIGNATURE,
  REGION_TABLE_AT,
  REGION_TABLE_SIZE,
  RegionTableEntry,
  RegionTableHeader,
  sameBytes,
  unsupported,
} from './layout.js';

export interface Region {
  readonly at: number;
  /** Bytes; at + length may be beyond the file, which reads as zeros then. */
  readonly length: number;
}

/** No file is so long: what is said to be there does not exist, and arithmetic stays exact. */
const FAR = 2 ** 52;

/** Regions of the file that are taken, the last added looked at first. */
export class Taken {
  readonly #regions: Region[] = [];

  add(region: Region): void {
    this.#regions.unshift(region);
  }

  /** What is wrong with a region there, in the reference's words; undefined where all is well. */
  overlap(at: number, length: number): string | undefined {
    const end = at + length;
    for (const { at: start, length: taken } of this.#regions) {
      if (at < start + taken && start < end) {
        return `VHDX region ${at}-${end} overlaps with region ${start}-${start + taken}`;
      }
    }
    return undefined;
  }
}

export interface Regions {
  readonly bat: Region;
  readonly metadata: Region;
  readonly taken: Taken;
}

/** `complain` gets what the reference says besides the error that is thrown. */
export async function readRegions(
  file: Storage,
  log: Region,
  complain: (text: string) => void,
): Promise<Regions> {
  const { filename } = file;
  const table = new Uint8Array(REGION_TABLE_SIZE);
  // The first one only, as the reference does: a second that differs would be another image.
  await file.read(REGION_TABLE_AT[0], table);
  const header = RegionTableHeader.decode(table);
  if (header.signature !== REGION_SIGNATURE) throw invalid(filename, 'region table signature');
  if (checksumOf(table, RegionTableHeader.offsetOf('checksum')) !== header.checksum) {
    throw invalid(filename, 'region table checksum');
  }
  if (header.entryCount > MAX_REGIONS) throw invalid(filename, 'region count');
  const taken = new Taken();
  taken.add(log);
  let bat: Region | undefined;
  let metadata: Region | undefined;
  for (let index = 0; index < header.entryCount; index++) {
    const entry = RegionTableEntry.decode(table, RegionTableHeader.size + index * RegionTableEntry.size);
    const at = Number(entry.fileOffset > BigInt(FAR) ? BigInt(FAR) : entry.fileOffset);
    const region = { at, length: entry.length };
    const overlap = taken.overlap(region.at, region.length);
    if (overlap !== undefined) {
      complain(overlap);
      throw invalid(filename, 'regions overlap');
    }
    // Entries that are all zeros are room left free.
    if (region.length > 0) taken.add(region);
    if (sameBytes(entry.guid, BAT_REGION)) {
      if (bat !== undefined) throw invalid(filename, 'two BATs');
      bat = region;
    } else if (sameBytes(entry.guid, METADATA_REGION)) {
      if (metadata !== undefined) throw invalid(filename, 'two metadata regions');
      metadata = region;
    } else if ((entry.required & REGION_REQUIRED) !== 0) {
      throw unsupported(filename, 'unknown region');
    }
  }
  if (bat === undefined || metadata === undefined) throw invalid(filename, 'missing region');
  return { bat, metadata, taken };
}
