/** Who has images open. */
import * as v from 'valibot';
import { command, type ResultOf } from '../command.js';
import { BlockPermission } from './blockdev.js';

const Permissions = {
  /** What it does with the file, and what it does not let others do, by the locks that it holds. */
  uses: v.array(BlockPermission),
  unshared: v.array(BlockPermission),
};

export const ImageUser = v.variant('kind', [
  /** A node that this daemon holds; `jobs` are those that are using it now. */
  v.strictObject({
    kind: v.literal('node'),
    node: v.string(),
    jobs: v.array(v.string()),
    parents: v.array(v.string()),
    ...Permissions,
  }),
  /** A job of this daemon that opened the file by its name. */
  v.strictObject({ kind: v.literal('job'), job: v.string(), operation: v.string(), ...Permissions }),
  /** Another process; `command` is its program's name alone. */
  v.strictObject({ kind: v.literal('process'), pid: v.number(), command: v.string(), ...Permissions }),
]);
export type ImageUser = v.InferOutput<typeof ImageUser>;

export const queryImageUsers = command({
  name: 'query-image-users',
  doc: "Tells who has image files open under QEMU's locks: nodes and jobs of this daemon, and other processes as far as /proc shows them. Of one file, or of all that this daemon has open. Two names of one file are one file.",
  params: v.strictObject({
    filename: v.optional(v.string()),
    node: v.optional(v.string()),
    cwd: v.optional(v.string()),
  }),
  result: v.array(
    v.strictObject({
      /** Absolute. */
      filename: v.string(),
      device: v.number(),
      inode: v.number(),
      users: v.array(ImageUser),
    }),
  ),
  errors: ['not-found', 'access', 'denied', 'invalid'],
  job: false,
});
export type ImageUsers = ResultOf<typeof queryImageUsers>;
