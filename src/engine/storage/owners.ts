/**
 * Who in this process has a descriptor open: threads share the descriptors, and one table, by which whoever meets a lock of
 * this very process can be told whose it is. Owners are numbers above 0, whose meaning is their giver's.
 */
let table: Int32Array | undefined;

/** Descriptors beyond this many are nobody's: processes have fewer. */
export const OWNED_DESCRIPTORS = 65_536;

/** Uses this table (on shared memory) in this thread from now on. */
export function shareOwners(shared: Int32Array): void {
  table = shared;
}

/** @param owner 0: nobody, before the descriptor is closed. */
export function setOwner(fd: number, owner: number): void {
  if (table !== undefined && fd < table.length) Atomics.store(table, fd, owner);
}
