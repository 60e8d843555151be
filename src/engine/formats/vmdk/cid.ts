/** The content id: whoever changes what an image holds gives it another, so that images on top of it notice. */
import { randomInt } from 'node:crypto';
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { HEADER_PART } from './descriptor.js';

/** `parentCID` of an image that has no parent. */
export const NO_PARENT = 0xffffffff;
const MAX_DIGITS = 8;

/** A content id that is none of these. */
export function newCid(digits = MAX_DIGITS, old?: number): number {
  for (;;) {
    const cid = randomInt(16 ** Math.min(digits, MAX_DIGITS));
    if (cid !== old && cid !== NO_PARENT) return cid;
  }
}

/**
 * Writes a new content id over the old one in the descriptor at byte `at` of the file. As many digits take the place of
 * the old ones, and nothing else is touched: a descriptor that is torn is no descriptor.
 *
 * @throws ImageError `corrupt` where the descriptor has none.
 */
export async function renewCid(file: Storage, at: number, old: number): Promise<number> {
  const raw = Buffer.alloc(Math.max(0, Math.min(HEADER_PART, file.size - at)));
  await file.read(at, raw);
  const text = raw.toString('latin1');
  // Found as it is read: the first `CID`, one character, then the number.
  const name = text.indexOf('CID');
  const from = name + 'CID='.length;
  const match = name < 0 ? null : /^\s*[+-]?(?:0x)?([0-9a-f]+)/i.exec(text.slice(from));
  if (match === null) {
    throw new ImageError('corrupt', 'invalid VMDK image descriptor', { path: file.filename, offset: at });
  }
  const [whole, digits] = match;
  const plain = whole.length === digits!.length;
  const cid = newCid(digits!.length, old);
  const start = plain ? from : from + whole.search(/\S/);
  const room = from + whole.length - start;
  await file.write(at + start, Buffer.from(cid.toString(16).padStart(room, '0'), 'latin1'));
  return cid;
}
