/** A file that was opened for an image, or what stands in for one. */
import type { Permissions } from '../storage/permissions.js';
import type { Storage } from '../storage/storage.js';
import type { NodeName } from './image.js';

/** What can be locked for a use: a file, or a held node that others use too. */
export interface Lockable {
  readonly locks: { setPermissions(permissions: Permissions): void } | undefined;
}

export interface OpenedFile {
  readonly storage: Storage;
  /** The host file that it comes down to; undefined where there is none, or not one. */
  readonly path: string | undefined;
  readonly name: NodeName;
  /** Host files that are locked for what this one is used for; images below lock their own. */
  readonly lockables: readonly Lockable[];
  /** Opens the file for writing, under these locks, in place of `storage`. */
  readonly reopen?: (locks: Permissions) => Promise<Storage>;
}
