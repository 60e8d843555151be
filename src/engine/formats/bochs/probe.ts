import { isBochs } from './layout.js';

/** 100 for a redolog of the "growing" kind, in a version that is known. */
export function probe(head: Uint8Array): number {
  return isBochs(head) ? 100 : 0;
}
