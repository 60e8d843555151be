/** 'Q', 'E', 'D', 0: the first field, read little-endian. */
export const MAGIC = 0x00444551;

/** The magic alone, as the reference does. */
export function probe(head: Uint8Array): number {
  if (head.byteLength < 4) return 0;
  return new DataView(head.buffer, head.byteOffset).getUint32(0, true) === MAGIC ? 100 : 0;
}
