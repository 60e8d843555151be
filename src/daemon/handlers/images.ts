/** Handlers of the commands about held images. Other dialects call `images` with what their clients sent, unchecked. */
import { stat } from 'node:fs/promises';
import { isAbsolute } from 'node:path';
import { ImageError } from '../../engine/error.js';
import { absolutePath, checkAllowed, type OpenPolicy } from '../../engine/node/gate.js';
import type { BlockDeviceInfo } from '../../protocol/commands/blockdev.js';
import type { UserObject } from '../../protocol/commands/common.js';
import type { ImageUsers } from '../../protocol/commands/image-users.js';
import { wireError } from '../../protocol/errors.js';
import { HeldError, type HeldImages } from '../images/held.js';
import { imageUsers } from '../images/image-users.js';
import type { BitmapChange } from '../images/node-bitmaps.js';
import type { NodeBitmaps } from '../images/nodes.js';
import type { Owners } from '../images/owners.js';
import { RpcError, rpcError } from '../sessions/rpc-error.js';

/** Throttle groups that nodes may name. */
export interface GroupAccess {
  add(object: UserObject): Promise<void>;
  /** Throws where a node names it. */
  remove(id: string): Promise<void>;
}

/** Dirty bitmaps of nodes. */
export interface NodeBitmapAccess {
  of(node: string): Promise<NodeBitmaps | undefined>;
  /** Of one that is not in an image. */
  change(change: BitmapChange): Promise<void>;
}

export interface ImageHandlers {
  /** Nodes that are held. */
  readonly count: number;
  add(params: Readonly<Record<string, unknown>>): Promise<Record<string, never>>;
  del(node: string): Promise<Record<string, never>>;
  reopen(options: readonly unknown[], cwd?: string): Promise<Record<string, never>>;
  query(flat: boolean): Promise<BlockDeviceInfo[]>;
  readonly groups: GroupAccess;
  readonly bitmaps: NodeBitmapAccess;
  users(of: {
    readonly filename?: string | undefined;
    readonly node?: string | undefined;
    readonly cwd?: string | undefined;
  }): Promise<ImageUsers>;
}

/** Errors of the engine thread as RPC errors. */
async function answered<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (error instanceof HeldError) {
      const { kind, message, context } = error.failure;
      throw new RpcError(wireError(kind, message, { ...context }));
    }
    if (error instanceof ImageError)
      throw new RpcError(wireError(error.kind, error.message, { ...error.context }));
    throw error;
  }
}

function folder(cwd: unknown): string {
  if (cwd === undefined) return process.cwd();
  if (typeof cwd === 'string' && isAbsolute(cwd)) return cwd;
  throw rpcError('invalid-params', "Invalid params: 'cwd' must be an absolute path", { member: 'cwd' });
}

export function createImageHandlers(held: HeldImages, owners: Owners, policy: OpenPolicy): ImageHandlers {
  return {
    get count() {
      return held.count;
    },
    async add(params) {
      await answered(held.add(params, folder(params.cwd)));
      return {};
    },
    async del(node) {
      await answered(held.del(node));
      return {};
    },
    async reopen(options, cwd) {
      folder(cwd);
      await answered(held.reopen(options));
      return {};
    },
    groups: {
      add: (object) => answered(held.addGroup(object)),
      remove: (id) => answered(held.removeGroup(id)),
    },
    bitmaps: {
      of: (node) => answered(held.bitmaps(node)),
      change: (change) => answered(held.changeBitmap(change)),
    },
    query: (flat) => answered(held.query(flat)),
    async users({ filename, node, cwd }) {
      if (filename !== undefined && node !== undefined) {
        throw rpcError('invalid-params', 'either a filename or a node', { member: 'node' });
      }
      let wanted: { filename: string; device: number; inode: number } | undefined;
      if (filename !== undefined) {
        const path = absolutePath(filename, folder(cwd));
        const look = async () => {
          checkAllowed(path, filename, 'caller', policy);
          const found = await stat(path).catch((error: NodeJS.ErrnoException) => {
            const kind = error.code === 'ENOENT' || error.code === 'ENOTDIR' ? 'not-found' : 'access';
            throw new ImageError(kind, `Could not open '${filename}': ${error.code}`, { path: filename });
          });
          return { filename: path, device: found.dev, inode: found.ino };
        };
        wanted = await answered(look());
      }
      const nodes = await answered(held.users());
      if (node !== undefined && !nodes.some((each) => each.node === node)) {
        throw rpcError('not-found', `Failed to find node with node-name='${node.slice(0, 128)}'`);
      }
      const all = await imageUsers(owners, nodes, wanted);
      if (node === undefined) return all;
      return all.filter(({ users }) => users.some((user) => user.kind === 'node' && user.node === node));
    },
  };
}
