/** Uses of a held node: which go together, what is said where they do not, and what reaches the locks. */
import { expect, it } from 'vitest';
import { type NodeUser, NodeUsers, permissionNames, permissionSet } from '../../src/daemon/images/users.js';
import { ImageError } from '../../src/engine/error.js';
import {
  ALL_PERMISSIONS,
  CONSISTENT_READ,
  type Permissions,
  RESIZE,
  WRITE,
} from '../../src/engine/storage/permissions.js';

const user = (name: string, uses: number, shares = ALL_PERMISSIONS): NodeUser => ({
  description: `node '${name}' (uses node 'f' as 'file' child)`,
  uses,
  shares,
});
const job = (id: string, mode: NodeUser['mode'], uses = CONSISTENT_READ): NodeUser => ({
  ...user(id, uses),
  job: { id, operation: 'image-map' },
  mode,
});

it('names permissions as QAPI does', () => {
  const all = ['consistent-read', 'write', 'write-unchanged', 'resize'] as const;
  expect(permissionNames(ALL_PERMISSIONS)).toEqual(all);
  expect(permissionSet(all)).toBe(ALL_PERMISSIONS);
  expect(permissionSet(['resize'])).toBe(RESIZE);
});

it('hands down what all users need, and takes it back', () => {
  const seen: Permissions[] = [];
  const users = new NodeUsers('f', (all) => seen.push(all));
  const reader = users.add(user('a', CONSISTENT_READ));
  const writer = users.add(user('b', WRITE, ALL_PERMISSIONS & ~RESIZE));
  expect(seen.at(-1)).toEqual({ uses: CONSISTENT_READ | WRITE, shares: ALL_PERMISSIONS & ~RESIZE });
  writer.remove();
  writer.remove();
  expect(seen.at(-1)).toEqual({ uses: CONSISTENT_READ, shares: ALL_PERMISSIONS });
  reader.set({ uses: 0, shares: 0 });
  expect(users.all).toEqual({ uses: 0, shares: 0 });
});

it('refuses what another does not share, naming both', () => {
  const users = new NodeUsers('f', () => {});
  users.add(user('w', WRITE | RESIZE, ALL_PERMISSIONS & ~(WRITE | RESIZE)));
  expect(() => users.add(user('w2', WRITE | RESIZE, ALL_PERMISSIONS & ~(WRITE | RESIZE)))).toThrow(
    "Permission conflict on node 'f': permissions 'write, resize' are both required by node 'w' (uses node 'f' as 'file' child) and unshared by node 'w2' (uses node 'f' as 'file' child).",
  );
  const idle = users.add(user('x', 0));
  expect(() => idle.set({ uses: WRITE, shares: ALL_PERMISSIONS })).toThrow('Permission conflict');
  expect(idle.user.uses).toBe(0);
  expect(users.list).toHaveLength(2);
});

it('leaves all as it was where the locks are not to be had', () => {
  let refuse = false;
  const seen: Permissions[] = [];
  const users = new NodeUsers('f', (all) => {
    if (refuse && (all.uses & WRITE) !== 0) throw new ImageError('locked', 'Failed to get "write" lock');
    seen.push(all);
  });
  const one = users.add(user('a', CONSISTENT_READ));
  refuse = true;
  expect(() => users.add(user('b', WRITE))).toThrow('Failed to get "write" lock');
  expect(() => one.set({ uses: WRITE, shares: ALL_PERMISSIONS })).toThrow('Failed to get "write" lock');
  expect(users.all).toEqual({ uses: CONSISTENT_READ, shares: ALL_PERMISSIONS });
  expect(seen.at(-1)).toEqual(users.all);
});

it('lets jobs read beside each other and beside one that writes guest bytes, and none beside one that changes all', () => {
  const users = new NodeUsers('f', () => {});
  const one = users.add(job('1', 'read'));
  users.add(job('2', 'read')).remove();
  const writer = users.add(job('3', 'write', WRITE));
  expect(() => users.add(job('4', 'write', WRITE))).toThrow(
    "Node 'f' is busy: block device is in use by block job: image-map (job '3')",
  );
  writer.remove();
  expect(() => users.add(job('5', 'exclusive'))).toThrow("(job '1')");
  // One job may use a node twice.
  users.add(job('1', 'read')).remove();
  one.remove();
  const alone = users.add(job('6', 'exclusive'));
  expect(() => users.add(job('7', 'read'))).toThrow("(job '6')");
  alone.remove();
});
