/** The held images of one engine thread: what the commands do to them, and what a job gets of them. */
import { ImageError } from '../../engine/error.js';
import { loadDriver } from '../../engine/formats/index.js';
import type { DirtyBitmaps } from '../../engine/node/dirty-bitmaps.js';
import type { OpenPolicy } from '../../engine/node/gate.js';
import { ImageNode, type NodeName } from '../../engine/node/image.js';
import type { NodeScope } from '../../engine/node/node-scope.js';
import { openTree } from '../../engine/node/open.js';
import type { OpenOptions } from '../../engine/node/open-storage.js';
import type { Rehearsal } from '../../engine/node/rehearsal.js';
import type { OperationContext } from '../../engine/operations/context.js';
import { ALL_PERMISSIONS, permissionsFor } from '../../engine/storage/permissions.js';
import type { Storage } from '../../engine/storage/storage.js';
import type { BlockDeviceInfo, BlockPermission, DirtyBitmapInfo } from '../../protocol/commands/blockdev.js';
import type { UserObject } from '../../protocol/commands/common.js';
import { describe } from './describe.js';
import { Graph, type HeldNode, type JobUser } from './graph.js';
import { Groups } from './groups.js';
import { type BitmapChange, changeBitmap, listBitmaps } from './node-bitmaps.js';
import { checkOptions, flat, type Tree } from './options.js';
import { rehearsedView } from './rehearse.js';
import { Reopener } from './reopen.js';
import { permissionSet } from './users.js';

export interface NodeChange {
  readonly change: 'added' | 'removed' | 'reopened' | 'lost';
  readonly node: string;
  readonly driver: string;
  readonly filename: string;
  readonly readOnly: boolean;
  /** Number that marks the node's descriptors. */
  readonly owner: number;
  /** Of `lost`. */
  readonly reason?: string;
}

export interface NodeBitmaps {
  /** Whether bitmaps can be stored in it. */
  readonly stores: boolean;
  readonly readOnly: boolean;
  readonly bitmaps: readonly DirtyBitmapInfo[];
}

export interface UserOfNode {
  readonly node: string;
  readonly jobs: string[];
  readonly parents: string[];
}

interface Added {
  readonly owner: number;
}

export class HeldNodes {
  readonly #graph: Graph;
  readonly #policy: OpenPolicy;
  readonly #groups: Groups;
  readonly #tell: (change: NodeChange) => void;
  readonly #owners = new Map<HeldNode, Added>();
  readonly #reopener: Reopener;
  /** Changes of the graph are made one after another. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(policy: OpenPolicy, groups: readonly UserObject[], tell: (change: NodeChange) => void) {
    this.#policy = policy;
    this.#groups = new Groups(groups);
    this.#tell = tell;
    this.#graph = new Graph({ removed: (node) => this.#owners.delete(node) });
    this.#reopener = new Reopener(this.#graph);
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work, work);
    this.#last = result.catch(() => {});
    return result;
  }

  /** What changes the graph does I/O that all others wait for: no limit holds it up. */
  #changing<T>(work: () => Promise<T>): Promise<T> {
    return this.#inTurn(work).finally(this.liftLimits());
  }

  /** Until what this returns is called. */
  liftLimits(): () => void {
    return this.#groups.lift();
  }

  addGroup(object: UserObject): Promise<void> {
    return this.#inTurn(async () => this.#groups.add(object));
  }

  removeGroup(id: string): Promise<void> {
    return this.#inTurn(async () => this.#groups.remove(id, this.#graph.nodes.values()));
  }

  get size(): number {
    return this.#owners.size;
  }

  /** @param owner marks the descriptors of the files that are opened. */
  add(options: unknown, cwd: string, owner: number): Promise<void> {
    return this.#changing(() => this.#add(options, cwd, owner));
  }

  async #add(raw: unknown, cwd: string, owner: number): Promise<void> {
    const options = await checkOptions(raw);
    if (options['node-name'] === undefined) {
      throw new ImageError('invalid', "'node-name' must be specified for the root node");
    }
    const writable = options['read-only'] !== true;
    const open = (forWriting: boolean) => this.#openTree(options, forWriting, cwd, owner);
    let root: HeldNode;
    try {
      root = await open(writable);
    } catch (error) {
      const refused = error instanceof ImageError && error.kind === 'access';
      if (options['auto-read-only'] !== true || !writable || !refused) throw error;
      root = await open(false);
    }
    root.options = options;
    this.#owners.set(root, { owner });
    this.#change('added', root);
  }

  async #openTree(options: Tree, writable: boolean, cwd: string, owner: number): Promise<HeldNode> {
    const builder = this.#graph.builder();
    const nodes: NodeScope = { ...this.#scope(undefined), builder };
    const from = flat(options);
    if (!writable) from.set('read-only', true);
    try {
      await openTree(
        from,
        { writable },
        {
          ...contextFor(cwd, this.#policy, owner, nodes),
          throttleGroups: this.#groups.byId,
        },
      );
      const root = builder.root!;
      const { share } = options as { readonly share?: readonly BlockPermission[] };
      root.holder = root.users.add({
        description: `its holder (blockdev-add of node '${root.name}' with 'share')`,
        uses: 0,
        shares: share === undefined ? ALL_PERMISSIONS : permissionSet(share),
      });
      return root;
    } catch (error) {
      await this.#graph.forget(builder.begun);
      throw error;
    }
  }

  del(name: string): Promise<void> {
    return this.#changing(async () => {
      const node = this.#graph.nodes.get(name);
      const added = node && this.#owners.get(node);
      try {
        await this.#graph.remove(name);
      } finally {
        // Closed, though its last flush may have failed.
        if (node !== undefined && node.holder === undefined && added !== undefined) {
          this.#owners.delete(node);
          this.#change('removed', node, added);
        }
      }
    });
  }

  reopen(options: readonly unknown[]): Promise<void> {
    return this.#changing(async () => {
      const changed = await this.#reopener.reopen(options, (name, parent) => this.#backing(name, parent));
      for (const node of changed) if (this.#owners.has(node)) this.#change('reopened', node);
    });
  }

  query(flatly: boolean): Promise<BlockDeviceInfo[]> {
    return this.#inTurn(() => describe(this.#graph.list(), flatly));
  }

  /** The bitmaps of a node, without counts; undefined where there is no such node. */
  bitmaps(name: string): Promise<NodeBitmaps | undefined> {
    return this.#inTurn(async () => {
      const node = this.#graph.nodes.get(name);
      if (node === undefined) return undefined;
      const stores = node.image?.format.bitmapStore !== undefined;
      return { stores, readOnly: !node.writable, bitmaps: await listBitmaps(node, false) };
    });
  }

  changeBitmap(change: BitmapChange): Promise<void> {
    return this.#inTurn(() => changeBitmap(change, (node) => this.#graph.find(node)));
  }

  /** Who uses each node that blockdev-add has made. */
  users(): (UserOfNode & { readonly owner: number })[] {
    return [...this.#owners].map(([node, { owner }]) => {
      const jobs = new Set<string>();
      const parents = new Set<string>();
      for (const below of treeOf(node)) {
        for (const { job } of below.users.list) if (job !== undefined) jobs.add(job.id);
      }
      for (const { description, job } of node.users.list) {
        const name = /^node '([^']*)'/.exec(description)?.[1];
        if (job === undefined && name !== undefined) parents.add(name);
      }
      return { node: node.name, owner, jobs: [...jobs], parents: [...parents] };
    });
  }

  /** Closes all; every node is closed even where one fails. */
  close(): Promise<void> {
    return this.#changing(async () => {
      for (let left = [...this.#owners.keys()]; left.length > 0; ) {
        const free = left.filter((node) => node.users.list.length <= 1);
        // Users that are no nodes are jobs: those were ended before.
        for (const node of free.length > 0 ? free : left) {
          const added = this.#owners.get(node)!;
          const { holder } = node;
          node.holder = undefined;
          holder?.remove();
          await this.#graph.drop(node).catch(() => {});
          this.#owners.delete(node);
          this.#change('removed', node, added);
        }
        left = [...this.#owners.keys()];
      }
    });
  }

  /** What names of nodes mean to a job. */
  scopeFor(job: JobUser): NodeScope {
    return this.#scope(job);
  }

  #scope(job: JobUser | undefined): NodeScope {
    const graph = this.#graph;
    return {
      image: (name, options) => this.#image(name, options, job!),
      storage: async (name, { child, writable, parent }) => {
        const node = graph.find(name);
        if (writable && !node.writable) throw new ImageError('read-only', 'Block node is read-only');
        if (node.layer === undefined) return graph.storageEdge(node, child, parent, job);
        const view = graph.viewEdge(node, child, parent, job);
        const { NodeStorage } = await import('../../engine/node/node-storage.js');
        const { path, name: called } = view;
        return { storage: new NodeStorage(view), path, name: called, lockables: graph.lockablesOf(view) };
      },
      backing: (name, parent) => this.#backing(name, parent as HeldNode | undefined, job),
      lockables: (view) => graph.lockablesOf(view),
    };
  }

  /** A node as the backing file of another: a file node's bytes as they are. */
  async #backing(name: string, parent: HeldNode | undefined, job?: JobUser): Promise<ImageNode> {
    const node = this.#graph.find(name);
    for (const below of treeOf(node)) {
      if (below === parent) {
        throw new ImageError(
          'invalid',
          `Making '${name}' a backing child of '${parent.name}' would create a cycle`,
        );
      }
    }
    if (node.layer !== undefined) return this.#graph.viewEdge(node, 'backing', parent, job);
    const { storage, path, name: called, lockables } = this.#graph.storageEdge(node, 'backing', parent, job);
    if (parent !== undefined) node.backingOf.add(parent.name);
    const close = storage.close.bind(storage);
    storage.close = async () => {
      if (parent !== undefined) node.backingOf.delete(parent.name);
      parent?.children.delete('backing');
      await close();
    };
    if (parent === undefined) lockables[0]!.locks!.setPermissions(permissionsFor({ role: 'raw-data' }));
    return overRaw(storage, false, path, called);
  }

  async #image(name: string, options: OpenOptions, job: JobUser): Promise<ImageNode> {
    const node = this.#graph.find(name);
    const { writable = false, resize = false, guestOnly = false, forceShare = false } = options;
    if (writable && forceShare) {
      throw new ImageError('invalid', 'force-share=on can only be used with read-only images');
    }
    if (writable && !node.writable) {
      throw new ImageError('read-only', 'Block node is read-only', { path: node.name });
    }
    const { metadataOnly = false, forCheck = false } = options;
    const stable = options.stable === true || forCheck;
    const mode = !writable ? 'read' : guestOnly ? 'write' : 'exclusive';
    const permissions = permissionsFor({
      role: 'raw-data',
      writable,
      resize: resize || mode === 'exclusive',
      forceShare,
      metadataOnly,
      stable,
    });
    // The format will be opened anew after: nobody may be reading through it, not even from above.
    const alone = mode === 'exclusive' && node.layer?.passes === false;
    const handle = node.users.add({
      description: `${job.operation} job '${job.id}' (uses node '${name}' as 'root' child)`,
      job,
      mode,
      uses: permissions.uses,
      shares: alone ? 0 : permissions.shares,
    });
    const image = node.layer?.image;
    const { rehearsal } = writable ? options : {};
    if (image === undefined) return await this.#overFile(node, handle.remove, rehearsal);
    try {
      // What a check, or another way to look at the file, is to find there.
      if (image.writable && (mode === 'exclusive' || forCheck || rehearsal !== undefined))
        await image.flush();
    } catch (error) {
      handle.remove();
      throw error;
    }
    if (rehearsal !== undefined) {
      const release = async () => {
        handle.remove();
        await this.#graph.drop(node);
      };
      return await rehearsedView(node.layer!, release, rehearsal);
    }
    const recorded = image.format.backing?.filename;
    const view = image.view({
      close: async () => {
        node.views.delete(view);
        try {
          if (mode === 'exclusive') await this.#changing(() => this.#settle(node, recorded));
          else if (mode === 'write') await image.flush();
        } finally {
          handle.remove();
          await this.#graph.drop(node);
        }
      },
    });
    node.views.add(view);
    if (options.noBacking === true) view.backing = undefined;
    return view;
  }

  /** A file node as an image of its own. */
  #overFile(node: HeldNode, remove: () => void, rehearsal?: Rehearsal): Promise<ImageNode> {
    const { storage, path, name } = this.#graph.storageEdge(node, 'root', undefined);
    const close = storage.close.bind(storage);
    storage.close = async () => {
      if (storage.writable) await storage.flush().catch(() => {});
      remove();
      await close();
    };
    if (rehearsal !== undefined) {
      return overRaw(rehearsal.over(storage, path), storage.writable, path, name);
    }
    return overRaw(storage, storage.writable, path, name, node.file!.dirtyBitmaps);
  }

  /** After a job that may have changed anything: what is in memory becomes what is on the disk. */
  async #settle(node: HeldNode, recorded: string | undefined): Promise<void> {
    const { image } = node.layer!;
    try {
      await image.flush();
      await this.#graph.demote(node);
      await this.#graph.reload(node, {});
      image.dirtyBitmaps?.resized();
      const explicit = node.options !== undefined && 'backing' in node.options;
      if (image.format.backing?.filename !== recorded && !explicit) {
        await this.#graph.reload(node, { backing: 'open' });
      }
    } catch (error) {
      this.#lose(node, error);
      throw error;
    }
  }

  /** A node whose image cannot be opened any more. Those above it fail from now on. */
  #lose(node: HeldNode, error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    const added = this.#owners.get(node);
    if (added === undefined) return;
    this.#owners.delete(node);
    const { holder } = node;
    node.holder = undefined;
    holder?.remove();
    this.#change('lost', node, added, reason);
  }

  #change(
    change: NodeChange['change'],
    node: HeldNode,
    added = this.#owners.get(node),
    reason?: string,
  ): void {
    this.#tell({
      change,
      node: node.name,
      driver: node.settings.driver,
      filename: node.image?.filename ?? node.file?.storage.filename ?? '',
      readOnly: !node.writable,
      owner: added?.owner ?? 0,
      ...(reason === undefined ? {} : { reason }),
    });
  }
}

/** The node and all below it. */
function treeOf(top: HeldNode, found = new Set<HeldNode>()): Set<HeldNode> {
  if (found.has(top)) return found;
  found.add(top);
  for (const { to } of top.children.values()) treeOf(to, found);
  return found;
}

function contextFor(cwd: string, policy: OpenPolicy, owner: number, nodes: NodeScope): OperationContext {
  return {
    cwd,
    policy,
    owner,
    nodes,
    signal: new AbortController().signal,
    progress: () => {},
    // Warnings have nobody to read them: what matters is an error.
    output: () => {},
    pace: () => undefined,
    setRate: () => {},
  };
}

/** A file's bytes as an image. */
async function overRaw(
  file: Storage,
  writable: boolean,
  path: string | undefined,
  name: NodeName,
  bitmaps?: DirtyBitmaps,
): Promise<ImageNode> {
  const driver = (await loadDriver('raw'))!;
  const format = await driver.open({
    file,
    writable,
    options: {},
    forCheck: false,
    metadataOnly: false,
    openChild: async () => undefined,
    warn: () => {},
  });
  const { filename } = file;
  const image = new ImageNode({ filename, path, driver, format, file, backing: undefined, writable, name });
  image.dirtyBitmaps = bitmaps;
  return image;
}
