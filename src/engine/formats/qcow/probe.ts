/** 'Q', 'F', 'I', 0xfb: qcow2 has the same magic, and other versions. */
export const MAGIC = 0x514649fb;
export const VERSION = 1;

export function probe(head: Uint8Array): number {
  if (head.byteLength < 8) return 0;
  const view = new DataView(head.buffer, head.byteOffset);
  return view.getUint32(0) === MAGIC && view.getUint32(4) === VERSION ? 100 : 0;
}
