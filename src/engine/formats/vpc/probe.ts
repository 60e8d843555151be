/** "conectix", the cookie of every footer: dynamic images have a copy of it at their start. */
const COOKIE = [0x63, 0x6f, 0x6e, 0x65, 0x63, 0x74, 0x69, 0x78] as const;

/** 100 for the copy of the footer at the start. Fixed images have none: as in the reference they must be asked for by name. */
export function probe(head: Uint8Array): number {
  return COOKIE.every((byte, index) => head[index] === byte) ? 100 : 0;
}
