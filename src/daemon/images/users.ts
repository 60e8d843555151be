/** Who uses a held node for what, and whether two uses go together: QEMU's permissions, within this daemon. */
import { ImageError } from '../../engine/error.js';
import { ALL_PERMISSIONS, type PermissionSet, type Permissions } from '../../engine/storage/permissions.js';
import type { BlockPermission } from '../../protocol/commands/blockdev.js';

/** QAPI's names, bit n for the nth. */
const NAMES = ['consistent-read', 'write', 'write-unchanged', 'resize'] as const satisfies BlockPermission[];

export function permissionNames(set: PermissionSet): BlockPermission[] {
  return NAMES.filter((_, n) => (set & (1 << n)) !== 0);
}

export function permissionSet(names: readonly BlockPermission[]): PermissionSet {
  return names.reduce((set, name) => set | (1 << NAMES.indexOf(name)), 0);
}

export const NOTHING: Permissions = { uses: 0, shares: ALL_PERMISSIONS };

export interface NodeUser extends Permissions {
  /** `node 'w' (uses node 'f' as 'file' child)`: completes `required by ...`. */
  readonly description: string;
  /** Set where it is a job: its id and its operation. */
  readonly job?: { readonly id: string; readonly operation: string } | undefined;
  /** Of jobs: what it lets other jobs be at the same time, whatever the permissions. */
  readonly mode?: 'read' | 'write' | 'exclusive' | undefined;
}

export interface UserHandle {
  /** Throws `locked` where another use is in the way; all is as before then. */
  set(permissions: Permissions): void;
  remove(): void;
  readonly user: NodeUser;
}

export class NodeUsers {
  readonly #node: string;
  readonly #users = new Set<{ user: NodeUser }>();
  /** Takes what all users together need to what is below; throws where that is not to be had. */
  readonly #forward: (all: Permissions) => void;

  constructor(node: string, forward: (all: Permissions) => void) {
    this.#node = node;
    this.#forward = forward;
  }

  get list(): NodeUser[] {
    return [...this.#users].map(({ user }) => user);
  }

  get all(): Permissions {
    let { uses, shares } = NOTHING;
    for (const { user } of this.#users) {
      uses |= user.uses;
      shares &= user.shares;
    }
    return { uses, shares };
  }

  /** The operation of a job that uses the node. */
  get job(): NodeUser['job'] {
    return this.list.find(({ job }) => job !== undefined)?.job;
  }

  add(user: NodeUser): UserHandle {
    const slot = { user };
    this.#check(user, slot);
    this.#users.add(slot);
    try {
      this.#forward(this.all);
    } catch (error) {
      this.#users.delete(slot);
      this.#restore();
      throw error;
    }
    return {
      get user() {
        return slot.user;
      },
      set: (permissions) => {
        const before = slot.user;
        const wanted = { ...before, uses: permissions.uses, shares: permissions.shares };
        this.#check(wanted, slot);
        slot.user = wanted;
        try {
          if (this.#users.has(slot)) this.#forward(this.all);
        } catch (error) {
          slot.user = before;
          this.#restore();
          throw error;
        }
      },
      remove: () => {
        if (this.#users.delete(slot)) this.#restore();
      },
    };
  }

  #restore(): void {
    try {
      this.#forward(this.all);
    } catch {
      // A lock too many stays: what is given up never fails otherwise.
    }
  }

  #check(wanted: NodeUser, self: object): void {
    for (const other of this.#users) {
      if (other === self) continue;
      this.#checkJobs(wanted, other.user);
      this.#checkPair(other.user, wanted);
      this.#checkPair(wanted, other.user);
    }
  }

  #checkJobs(wanted: NodeUser, other: NodeUser): void {
    if (wanted.job === undefined || other.job === undefined || wanted.job.id === other.job.id) return;
    const modes = [wanted.mode, other.mode];
    if (!modes.includes('exclusive') && !(wanted.mode === 'write' && other.mode === 'write')) return;
    throw new ImageError('locked', busyText(this.#node, other.job), {
      operation: 'lock',
      check: 'node-busy',
      holder: { ...SELF, node: this.#node, job: other.job.id },
    });
  }

  #checkPair(user: NodeUser, unsharer: NodeUser): void {
    const both = user.uses & ~unsharer.shares;
    if (both === 0) return;
    const names = permissionNames(both).map((name) => name.replace('-', ' '));
    const text =
      `Permission conflict on node '${this.#node}': permissions '${names.join(', ')}' are both required by ` +
      `${user.description} and unshared by ${unsharer.description}.`;
    const job = user.job ?? unsharer.job;
    throw new ImageError('locked', text, {
      operation: 'lock',
      check: 'node-permission',
      holder: { ...SELF, node: this.#node, ...(job === undefined ? {} : { job: job.id }) },
    });
  }
}

const SELF = { pid: process.pid, command: 'imgd' };

export function busyText(node: string, job: { readonly id: string; readonly operation: string }): string {
  return `Node '${node}' is busy: block device is in use by block job: ${job.operation} (job '${job.id}')`;
}
