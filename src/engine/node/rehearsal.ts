/** An operation that is tried without effect: files are opened and locked as for the real one, and changes stay in memory. */

import { CONSISTENT_READ, type Permissions } from '../storage/permissions.js';
import { ScratchMemory, ScratchStorage } from '../storage/scratch.js';
import type { Storage } from '../storage/storage.js';
import type { Lockable, OpenedFile } from './opened-file.js';

/** Metadata of all but the largest images. */
const MEMORY = 64 * 1024 * 1024;

interface Rehearsed {
  readonly storage: ScratchStorage;
  /** The host file that it stands for. */
  readonly path: string | undefined;
}

export class Rehearsal {
  readonly storages: Rehearsed[] = [];
  readonly #memory = new ScratchMemory(MEMORY);
  readonly #locked: { readonly locks: NonNullable<Lockable['locks']>; readonly to: Permissions }[] = [];
  readonly #below: Storage[] = [];
  #unknown: string | undefined;

  /** Why it does not tell anything, whatever came of it; undefined where it does. */
  get unknown(): string | undefined {
    return this.#memory.exhausted ? 'it takes more memory than a dry run may have' : this.#unknown;
  }

  /** What was found says nothing: for this reason. */
  cannot(reason: string): void {
    this.#unknown ??= reason;
  }

  /** The file, opened for writing or to be so later, with all changes in memory. */
  opened(opened: OpenedFile): OpenedFile {
    const { storage, path, reopen } = opened;
    return {
      ...opened,
      storage: storage.writable ? this.over(storage, path) : storage,
      ...(reopen && {
        reopen: async (locks) => {
          const writing = await reopen(locks);
          const lockable = (writing as Partial<Lockable>).locks;
          if (lockable !== undefined) this.locked(lockable, locks);
          return this.over(writing, path);
        },
      }),
    };
  }

  /** `below` is closed when all is over. */
  over(below: Storage, path: string | undefined, driver?: string): ScratchStorage {
    this.#below.push(below);
    return this.#add(new ScratchStorage(below, this.#memory, { driver, onClose: async () => {} }), path);
  }

  /** The same over what is not the operation's to close. */
  overHeld(below: Storage, path: string | undefined): ScratchStorage {
    return this.#add(new ScratchStorage(below, this.#memory, { onClose: async () => {} }), path);
  }

  #add(storage: ScratchStorage, path: string | undefined): ScratchStorage {
    this.storages.push({ storage, path });
    return storage;
  }

  locked(locks: NonNullable<Lockable['locks']>, { uses, shares }: Permissions): void {
    this.#locked.push({ locks, to: { uses: uses & CONSISTENT_READ, shares } });
  }

  /** What has to be open is: from here on others may read what the real operation would have for itself. */
  relax(): void {
    for (const { locks, to } of this.#locked.splice(0)) locks.setPermissions(to);
  }

  async end(): Promise<void> {
    for (const storage of this.#below.splice(0).reverse()) await storage.close().catch(() => {});
  }
}
