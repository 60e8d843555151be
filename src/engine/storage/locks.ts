/**
 * QEMU's locks on image files. A process that uses permission n holds a shared lock on byte 100 + n, one that does not let
 * others use it on byte 200 + n. Locks are shared, so that they never conflict with each other; after taking them a process
 * asks whether someone else holds the counterpart (200 + n for what it uses, 100 + n for what it does not share). Two
 * that come at the same moment may both fail, but never both succeed.
 */
import { hostError, ImageError } from '../error.js';
import { codeOf } from './host/errno.js';
import { findLockHolder } from './host/lock-holder.js';
import { byteLockedElsewhere, locksAvailable, setByteLock } from './host/locks.js';
import { setOwner } from './owners.js';
import {
  ALL_PERMISSIONS,
  NO_PERMISSIONS,
  PERMISSIONS,
  type PermissionSet,
  type Permissions,
} from './permissions.js';

export { permissionsFor } from './permissions.js';

export const USED_BASE = 100;
export const UNSHARED_BASE = 200;

const NOTHING: Permissions = { uses: NO_PERMISSIONS, shares: ALL_PERMISSIONS };

export class FileLocks {
  readonly #fd: number;
  readonly #filename: string;
  /** False where the host or the filesystem has no such locks: then nothing is locked, as with QEMU's `locking=auto`. */
  readonly enforced: boolean;
  #permissions = NOTHING;
  #ended = false;
  #owned = false;
  /** Permissions whose bytes are locked now. */
  #used: PermissionSet = NO_PERMISSIONS;
  #unshared: PermissionSet = NO_PERMISSIONS;

  constructor(fd: number, filename: string) {
    this.#fd = fd;
    this.#filename = filename;
    this.enforced = locksAvailable(fd);
  }

  /** Locks an open file; the locks end with the descriptor. Throws `locked` in QEMU's words. */
  static acquire(fd: number, filename: string, permissions: Permissions): FileLocks {
    const locks = new FileLocks(fd, filename);
    locks.setPermissions(permissions);
    return locks;
  }

  /**
   * Locks another descriptor of the same file for what `from` holds, without asking who else does: `from` has asked, and
   * keeps others out until it is closed.
   */
  static takeOver(fd: number, from: FileLocks): FileLocks {
    const locks = new FileLocks(fd, from.#filename);
    if (locks.enforced) locks.#take(from.#permissions.uses, ALL_PERMISSIONS & ~from.#permissions.shares);
    locks.#permissions = from.#permissions;
    return locks;
  }

  get permissions(): Permissions {
    return this.#permissions;
  }

  /**
   * Changes what the file is locked for, without a moment at which neither the old nor the new holds. Throws `locked`
   * where another is in the way, and everything is as before then.
   */
  setPermissions(wanted: Permissions): void {
    if (this.#ended) throw new ImageError('internal', 'locks of a closed file', { path: this.#filename });
    if (!this.enforced) {
      this.#permissions = wanted;
      return;
    }
    const unshared = ALL_PERMISSIONS & ~wanted.shares;
    try {
      this.#take(wanted.uses, unshared);
      this.#check(wanted.uses, unshared);
    } catch (error) {
      this.#keepOnly(this.#permissions);
      throw error;
    }
    this.#permissions = wanted;
    this.#keepOnly(wanted);
  }

  /** Says whose these locks are, for others of this process (owners.ts). */
  ownedBy(owner: number): void {
    this.#owned = true;
    setOwner(this.#fd, owner);
  }

  /** The descriptor is being closed, and the locks with it: its number may soon be another file's. */
  end(): void {
    if (this.#owned) setOwner(this.#fd, 0);
    this.#ended = true;
  }

  #take(uses: PermissionSet, unshared: PermissionSet): void {
    for (const n of bitsOf(uses & ~this.#used)) {
      this.#lockByte(USED_BASE + n);
      this.#used |= 1 << n;
    }
    for (const n of bitsOf(unshared & ~this.#unshared)) {
      this.#lockByte(UNSHARED_BASE + n);
      this.#unshared |= 1 << n;
    }
  }

  #lockByte(at: number): void {
    let taken: boolean;
    try {
      taken = setByteLock(this.#fd, at, 'read');
    } catch (error) {
      throw hostError(`Failed to lock byte ${at}`, { code: codeOf(error) }, { path: this.#filename });
    }
    // Only a lock that is not of this protocol can be in the way of a shared one.
    if (!taken) throw this.#conflict(`Failed to lock byte ${at}`, at, `byte ${at}`);
  }

  #check(uses: PermissionSet, unshared: PermissionSet): void {
    for (const n of bitsOf(uses)) this.#checkByte(UNSHARED_BASE + n, '', n);
    for (const n of bitsOf(unshared)) this.#checkByte(USED_BASE + n, 'shared ', n);
  }

  #checkByte(at: number, shared: string, n: number): void {
    let locked: boolean;
    try {
      locked = byteLockedElsewhere(this.#fd, at);
    } catch (error) {
      throw hostError(`Failed to check lock byte ${at}`, { code: codeOf(error) }, { path: this.#filename });
    }
    if (!locked) return;
    const name = PERMISSIONS[n]!;
    const hint = `Is another process using the image [${this.#filename}]?`;
    throw this.#conflict(`Failed to get ${shared}"${name}" lock`, at, `${shared}${name}`, hint);
  }

  #conflict(text: string, at: number, check: string, hint?: string): ImageError {
    const holder = findLockHolder(this.#fd, at);
    return new ImageError('locked', text, {
      path: this.#filename,
      operation: 'lock',
      check,
      ...(hint === undefined ? {} : { hint }),
      ...(holder === undefined ? {} : { holder }),
    });
  }

  /** Unlocks all bytes that these permissions do not need. A failure leaves a lock too many, which harms nothing but others' waiting. */
  #keepOnly({ uses, shares }: Permissions): void {
    for (const n of bitsOf(this.#used & ~uses)) {
      if (this.#unlockByte(USED_BASE + n)) this.#used &= ~(1 << n);
    }
    for (const n of bitsOf(this.#unshared & shares)) {
      if (this.#unlockByte(UNSHARED_BASE + n)) this.#unshared &= ~(1 << n);
    }
  }

  #unlockByte(at: number): boolean {
    try {
      return setByteLock(this.#fd, at, 'none');
    } catch {
      return false;
    }
  }
}

const BITS = Array.from({ length: 1 << PERMISSIONS.length }, (_, set) =>
  PERMISSIONS.flatMap((_, n) => ((set & (1 << n)) === 0 ? [] : [n])),
);

function bitsOf(set: PermissionSet): readonly number[] {
  return BITS[set & ALL_PERMISSIONS]!;
}
