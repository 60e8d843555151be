/** Nothing is imported here: every file that is probed runs this. */

const HEADER_BYTES = 64;

/** One of the two magic words, and version 2. The reference wants a whole header of what it read of the file, zero-padded. */
export function probe(head: Uint8Array): number {
  if (head.length < HEADER_BYTES) return 0;
  const magic = String.fromCharCode(...head.subarray(0, 16));
  if (magic !== 'WithoutFreeSpace' && magic !== 'WithouFreSpacExt') return 0;
  return head[16] === 2 && head[17] === 0 && head[18] === 0 && head[19] === 0 ? 100 : 0;
}
