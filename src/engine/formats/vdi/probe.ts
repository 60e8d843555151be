/** Nothing is imported here: every file that is probed runs this. */

/** The signature 0xbeda107f at byte 64 decides. */
export function probe(head: Uint8Array): number {
  const found = head[0x40] === 0x7f && head[0x41] === 0x10 && head[0x42] === 0xda && head[0x43] === 0xbe;
  return found ? 100 : 0;
}
