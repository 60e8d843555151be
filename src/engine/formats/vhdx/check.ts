/** What can be wrong with the BAT: blocks that are not in the file, or lie on something else. */
import { ImageError } from '../../error.js';
import type { CheckContext, CheckFacet, CheckResult } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { offsetOf } from './bat.js';
import { BAT_ENTRY_SIZE, BlockState, chunkRatio, MIB, SECTOR } from './layout.js';
import type { Metadata } from './metadata.js';
import type { Region, Taken } from './regions.js';

const PIECE = MIB;
/** No file is so long. */
const FAR = 2 ** 63;

/** What there is to look at. */
export interface BatParts {
  readonly file: Storage;
  readonly bat: Region;
  readonly taken: Taken;
  readonly metadata: Metadata;
}

/**
 * Looks at every payload block's entry; `report` gets one line for what is wrong, in the reference's words, and says
 * whether to go on. Only what the file has of the table is read: holes are entries without a block.
 */
export async function checkBat(parts: BatParts, report: (line: string) => boolean): Promise<void> {
  const { file, bat, metadata } = parts;
  const { size, blockSize } = metadata;
  const ratio = chunkRatio(blockSize);
  const blocks = Math.ceil(size / blockSize);
  const entries = blocks + Math.floor(Math.max(0, blocks - 1) / ratio);
  const end = Math.min(bat.at + entries * BAT_ENTRY_SIZE, file.size);
  const buffer = new Uint8Array(Math.max(0, Math.min(PIECE, end - bat.at)));
  for (let at = bat.at; at < end; ) {
    const run = await file.extent({ at, length: end - at });
    if (!run.data) {
      // Never into the middle of an entry.
      const skip = run.length - (run.length % BAT_ENTRY_SIZE);
      if (skip > 0) {
        at += skip;
        continue;
      }
    }
    const bytes = buffer.subarray(0, Math.min(buffer.length, end - at));
    await file.read(at, bytes);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let index = 0; (index + 1) * BAT_ENTRY_SIZE <= bytes.length; index++) {
      const low = view.getUint32(index * BAT_ENTRY_SIZE, true);
      if ((low & 7) !== BlockState.fullyPresent) continue;
      const entry = (at - bat.at) / BAT_ENTRY_SIZE + index;
      // The entry after each chunk is a sector bitmap's.
      if (entry % (ratio + 1) === ratio) continue;
      const high = view.getUint32(index * BAT_ENTRY_SIZE + 4, true);
      const block = entry - Math.floor(entry / (ratio + 1));
      const length = Math.min(blockSize, size - block * blockSize);
      if (!checkEntry(parts, entry, offsetOf(low, high), length, report)) return;
    }
    at += Math.max(BAT_ENTRY_SIZE, bytes.length - (bytes.length % BAT_ENTRY_SIZE));
  }
}

function checkEntry(
  { file, taken, metadata }: BatParts,
  entry: number,
  at: number,
  length: number,
  report: (line: string) => boolean,
): boolean {
  // The reference counts files in sectors.
  const fileSize = Math.ceil(file.size / SECTOR) * SECTOR;
  // Offsets are multiples of 1 MiB: exact as numbers, and as text by way of bigint.
  if (at >= FAR * 2 - metadata.blockSize && !report(`VHDX BAT entry ${entry} offset overflow.`)) return false;
  const past = `points after end of file (${fileSize}). Image has probably been truncated.`;
  if (at >= fileSize) {
    if (!report(`VHDX BAT entry ${entry} start offset ${BigInt(at)} ${past}`)) return false;
  } else if (at > fileSize - length) {
    const last = at + length - 1;
    if (!report(`VHDX BAT entry ${entry} end offset ${last} ${past}`)) return false;
  }
  if (at >= FAR) return true;
  const overlap = taken.overlap(at, metadata.blockSize);
  return overlap === undefined || report(overlap);
}

export class VhdxChecker implements CheckFacet {
  readonly #parts: BatParts;
  /** The log was replayed when the image was opened: told once. */
  #replayed: boolean;

  constructor(parts: BatParts, replayed: boolean) {
    this.#parts = parts;
    this.#replayed = replayed;
  }

  async check(context: CheckContext): Promise<CheckResult> {
    let corruptions = 0;
    await checkBat(this.#parts, (line) => {
      corruptions++;
      context.report(`qemu-img: ${line}`);
      if (context.signal?.aborted === true) throw new ImageError('cancelled', 'The job was cancelled');
      return true;
    });
    const corruptionsFixed = this.#replayed ? 1 : 0;
    this.#replayed = false;
    return { checkErrors: 0, corruptions, leaks: 0, corruptionsFixed, leaksFixed: 0 };
  }
}
