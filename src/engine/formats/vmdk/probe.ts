import { MAGIC_COWD, MAGIC_HOSTED } from './layout.js';

/** The reference looks at this much of a file; a descriptor whose comments are longer is not recognised. */
const PROBED_BYTES = 512;

const SPACE = 0x20;
const HASH = 0x23;
const NEWLINE = 0x0a;
const RETURN = 0x0d;

/**
 * 100 for the magic of a sparse extent, or for text whose first line that is not a comment, nor blank (spaces and a line
 * end; a wholly empty line does not count as blank), is `version=1`, `2` or `3`.
 */
export function probe(head: Uint8Array, _filename: string, fileSize: number): number {
  const end = Math.min(head.length, PROBED_BYTES, Math.max(fileSize, 0));
  if (end < 4) return 0;
  const magic = new DataView(head.buffer, head.byteOffset).getUint32(0);
  if (magic === MAGIC_HOSTED || magic === MAGIC_COWD) return 100;
  let at = 0;
  while (at < end) {
    if (head[at] === HASH) {
      while (at < end && head[at] !== NEWLINE) at++;
      at++;
    } else if (head[at] === SPACE) {
      while (at < end && head[at] === SPACE) at++;
      if (at < end && head[at] === RETURN) at++;
      if (at >= end || head[at] !== NEWLINE) return 0;
      at++;
    } else {
      const line = Buffer.from(head.subarray(at, Math.min(at + 'version=X\r\n'.length, end))).toString(
        'latin1',
      );
      return /^version=[123]\r?\n/.test(line) ? 100 : 0;
    }
  }
  return 0;
}
