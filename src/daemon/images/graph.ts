/** The nodes that are held, and the edges between them: QEMU's graph, of one engine thread. */
import { randomInt } from 'node:crypto';
import { ImageError } from '../../engine/error.js';
import type { ImageNode, NodeName } from '../../engine/node/image.js';
import type {
  FileReopen,
  GraphBuilder,
  GraphNode,
  LayerParts,
  NodeSettings,
} from '../../engine/node/node-scope.js';
import type { Lockable, OpenedFile } from '../../engine/node/opened-file.js';
import {
  ALL_PERMISSIONS,
  CONSISTENT_READ,
  type Permissions,
  RESIZE,
  WRITE,
} from '../../engine/storage/permissions.js';
import type { Storage } from '../../engine/storage/storage.js';
import { type Held, HeldStorage } from './held-storage.js';
import { busyText, NOTHING, NodeUsers, type UserHandle } from './users.js';

export type JobUser = { readonly id: string; readonly operation: string };

interface Edge {
  readonly to: HeldNode;
  readonly handle: UserHandle;
}

export interface HeldFile extends Held {
  readonly path: string | undefined;
  readonly name: NodeName;
  /** Of the storage that is there now. */
  lockables: readonly Lockable[];
  readonly reopen: ((to: FileReopen, locks: Permissions, from: Storage) => Promise<Storage>) | undefined;
}

export class HeldNode implements GraphNode {
  readonly name: string;
  settings: NodeSettings;
  readonly users: NodeUsers;
  /** Position in the order in which nodes came to be there. */
  order = 0;
  /** One of the two, once it is opened. */
  file: HeldFile | undefined;
  layer: LayerParts | undefined;
  readonly children = new Map<string, Edge>();
  readonly views = new Set<ImageNode>();
  /** Children with guest data and nothing else: locked for what the users need. */
  readonly data = new Map<string, readonly Lockable[]>();
  /** Set where blockdev-add made it by itself, not as a child. */
  holder: UserHandle | undefined;
  /** The options of blockdev-add or blockdev-reopen. */
  options: Readonly<Record<string, unknown>> | undefined;
  /** The names of those whose backing file it is. */
  readonly backingOf = new Set<string>();
  /** Bitmaps by name, in the order in which they came: those in the image as far as they were seen. */
  bitmapNames: string[] = [];
  /** Written by a job for as long as that lasts, though read-only otherwise. */
  promoted = false;

  constructor(name: string, settings: NodeSettings) {
    this.name = name;
    this.settings = settings;
    this.users = new NodeUsers(name, (all) => this.#forward(all));
  }

  get image(): ImageNode | undefined {
    return this.layer?.image;
  }

  get writable(): boolean {
    return this.layer?.image.writable ?? this.file?.storage.writable ?? false;
  }

  /** All users' needs, to the locks below. */
  #forward(all: Permissions): void {
    const shares = this.settings.forceShare ? ALL_PERMISSIONS : all.shares;
    if (this.file !== undefined) {
      for (const { locks } of this.file.lockables) locks?.setPermissions(all);
    }
    if (this.layer === undefined) return;
    if (this.layer.passes) this.layer.lockFile({ uses: all.uses, shares: shares & ~this.#layout });
    const growing = (all.uses & WRITE) === 0 ? 0 : RESIZE;
    for (const lockables of this.data.values()) {
      for (const { locks } of lockables) {
        locks?.setPermissions({ uses: all.uses | growing, shares: shares & ~RESIZE });
      }
    }
    const backing = this.children.get('backing');
    if (backing === undefined) return;
    const writers = backing.to.promoted ? WRITE | RESIZE : 0;
    backing.handle.set({
      uses: (all.uses & CONSISTENT_READ) | writers,
      shares: (all.shares & WRITE) === 0 ? ALL_PERMISSIONS & ~(WRITE | RESIZE) : ALL_PERMISSIONS,
    });
  }

  /** A window of a raw file: its end must stay where it is. */
  get #layout(): number {
    const { options } = this.layer!.image.name;
    return 'offset' in options || 'size' in options ? RESIZE : 0;
  }

  /** After it was opened, and after a change that its users did not make. */
  refreshLocks(): void {
    this.#forward(this.users.all);
  }
}

/** Filters that open their children themselves: QEMU lists them as older than these. */
const NAMED_FIRST: ReadonlySet<string> = new Set(['blkdebug', 'blkverify', 'quorum']);

export interface GraphEvents {
  removed(node: HeldNode): void;
}

export class Graph {
  readonly nodes = new Map<string, HeldNode>();
  readonly #events: GraphEvents;
  readonly #lockables = new WeakMap<ImageNode, readonly Lockable[]>();
  #order = 0;
  #unnamed = 0;
  /** The newest use of each node as a backing file. */
  readonly #handles = new WeakMap<HeldNode, UserHandle>();

  constructor(events: GraphEvents) {
    this.#events = events;
  }

  find(name: string): HeldNode {
    const node = this.nodes.get(name);
    if (node !== undefined) return node;
    throw new ImageError('not-found', `Cannot find device='${name}' nor node-name='${name}'`);
  }

  /** Newest first, as QEMU lists them. */
  list(): HeldNode[] {
    return [...this.nodes.values()].filter(({ order }) => order > 0).sort((a, b) => b.order - a.order);
  }

  lockablesOf(view: ImageNode): readonly Lockable[] {
    return this.#lockables.get(view) ?? [];
  }

  /** Takes the nodes of one tree as they are opened. `begun`: all of them; `root`: the top one, in the end. */
  builder(): GraphBuilder & { readonly begun: HeldNode[]; readonly root: HeldNode | undefined } {
    const begun: HeldNode[] = [];
    let root: HeldNode | undefined;
    const known = (node: GraphNode): HeldNode => node as HeldNode;
    return {
      begun,
      get root() {
        return root;
      },
      begin: (settings) => {
        const node = new HeldNode(this.#nameFor(settings.nodeName), settings);
        this.nodes.set(node.name, node);
        begun.push(node);
        if (NAMED_FIRST.has(settings.driver)) node.order = ++this.#order;
        return node;
      },
      storage: (of, opened, { child, parent, reopen }) => {
        const node = known(of);
        const { storage, path, name, lockables } = opened;
        node.file = { storage, path, name, lockables, reopen };
        if (node.order === 0) node.order = ++this.#order;
        if (child !== 'root') return this.storageEdge(node, child, parent);
        root = node;
        return opened;
      },
      place: (of) => {
        known(of).order = ++this.#order;
      },
      data: (of, child, lockables) => known(of).data.set(child, lockables),
      layer: (of, parts) => {
        const node = known(of);
        node.layer = parts;
        node.settings = { ...node.settings, driver: parts.image.driver.name };
        node.refreshLocks();
      },
      view: (of, child, parent) => {
        const node = known(of);
        if (child !== 'root') return this.viewEdge(node, child, parent);
        root = node;
        return node.image!;
      },
    };
  }

  #nameFor(wanted: string | undefined): string {
    if (wanted === undefined) {
      for (;;) {
        const name = `#block${this.#unnamed++}${String(randomInt(100)).padStart(2, '0')}`;
        if (!this.nodes.has(name)) return name;
      }
    }
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(wanted)) {
      throw new ImageError('invalid', `Invalid node-name: '${wanted.slice(0, 64)}'`);
    }
    if (wanted.length > 31) throw new ImageError('invalid', 'Node name too long');
    if (this.nodes.has(wanted)) throw new ImageError('exists', `Duplicate nodes with node-name='${wanted}'`);
    return wanted;
  }

  /** A file node, or an image, as the bytes below `parent`, or of a job. */
  storageEdge(node: HeldNode, child: string, parent: GraphNode | undefined, job?: JobUser): OpenedFile {
    if (node.layer !== undefined) throw new ImageError('internal', 'an image is no file');
    const handle = this.#use(node, child, parent, job);
    const storage = new HeldStorage(node.file!, async () => {
      handle.remove();
      await this.drop(node);
    });
    const { path, name } = node.file!;
    return { storage, path, name, lockables: [{ locks: { setPermissions: (all) => handle.set(all) } }] };
  }

  /** An image for the node above it. */
  viewEdge(node: HeldNode, child: string, parent: GraphNode | undefined, job?: JobUser): ImageNode {
    const handle = this.#use(node, child, parent, job);
    if (child === 'backing' && parent !== undefined) node.backingOf.add(parent.name);
    if (child === 'backing' && parent === undefined) {
      handle.set({ uses: CONSISTENT_READ, shares: ALL_PERMISSIONS & ~(WRITE | RESIZE) });
    }
    const view = node.image!.view({
      close: async (closed) => {
        node.views.delete(closed);
        if (child === 'backing' && parent !== undefined) node.backingOf.delete(parent.name);
        (parent as HeldNode | undefined)?.children.delete(child);
        handle.remove();
        await this.drop(node);
      },
      reopenWritable: () => this.promote(node, handle),
    });
    node.views.add(view);
    this.#lockables.set(view, [{ locks: { setPermissions: (all) => handle.set(all) } }]);
    return view;
  }

  #use(node: HeldNode, child: string, parent: GraphNode | undefined, job: JobUser | undefined): UserHandle {
    const who = parent === undefined ? `${job?.operation} job '${job?.id}'` : `node '${parent.name}'`;
    const handle = node.users.add({
      description: `${who} (uses node '${node.name}' as '${child}' child)`,
      ...NOTHING,
      job: parent === undefined ? job : undefined,
      ...(parent === undefined ? { mode: 'read' } : {}),
    });
    (parent as HeldNode | undefined)?.children.set(child, { to: node, handle });
    if (child === 'backing') this.#handles.set(node, handle);
    return handle;
  }

  /** After a backing file was changed: the edge to the old one may have taken the new one's place when it went. */
  relink(parent: HeldNode, name: string): void {
    const node = this.find(name);
    node.backingOf.add(parent.name);
    const handle = this.#handles.get(node);
    if (handle !== undefined) parent.children.set('backing', { to: node, handle });
    parent.refreshLocks();
  }

  /** Opens the file below a layer, or a file node itself, with other access. */
  async reopenFile(node: HeldNode, to: FileReopen): Promise<void> {
    const { file } = node;
    if (file === undefined) return;
    if (file.reopen === undefined) {
      if (to.writable === file.storage.writable) return;
      throw new ImageError('unsupported', `Block protocol '${node.settings.driver}' cannot be reopened`);
    }
    const opened = await file.reopen(to, node.users.all, file.storage);
    // All that stand on the node have it through this one object.
    file.storage = opened;
    file.lockables = [opened as Storage & Lockable];
    node.settings = {
      ...node.settings,
      readOnly: !to.writable,
      direct: to.direct,
      noFlush: to.noFlush,
      discard: to.discard,
    };
  }

  /** A read-only image that a job writes after all: the base of a commit. */
  async promote(node: HeldNode, handle: UserHandle): Promise<void> {
    if (node.promoted || node.writable) return;
    const below = node.children.get('file')?.to;
    if (node.settings.forceShare || below?.file?.reopen === undefined || below.holder !== undefined) {
      throw new ImageError('read-only', `Node '${node.name}' is read-only`, { errno: 'EACCES' });
    }
    handle.set({ uses: CONSISTENT_READ | WRITE | RESIZE, shares: handle.user.shares });
    node.promoted = true;
    try {
      await this.#access(node, below, true);
    } catch (error) {
      node.promoted = false;
      handle.set({ uses: CONSISTENT_READ, shares: handle.user.shares });
      throw error;
    }
  }

  /** Undoes `promote` for all images below. */
  async demote(top: HeldNode): Promise<void> {
    for (const { to: node, handle } of top.children.values()) {
      if (node.promoted) {
        await this.#access(node, node.children.get('file')!.to, false);
        node.promoted = false;
        handle.set({ uses: handle.user.uses & ~(WRITE | RESIZE), shares: handle.user.shares });
      }
      await this.demote(node);
    }
  }

  /** Has a layer, and the file below it, opened for writing or no longer so. */
  async #access(node: HeldNode, below: HeldNode, writable: boolean): Promise<void> {
    const edge = node.children.get('file')!;
    const { uses, shares } = edge.handle.user;
    const writers = node.layer!.passes ? 0 : WRITE | RESIZE;
    const { direct, noFlush, discard } = below.settings;
    if (writable) {
      edge.handle.set({ uses: uses | writers, shares });
      await this.reopenFile(below, { writable, direct, noFlush, discard });
      await this.reload(node, { writable });
    } else {
      await this.reload(node, { writable });
      await this.reopenFile(below, { writable, direct, noFlush, discard });
      edge.handle.set({ uses: uses & ~writers, shares });
    }
  }

  /** Opens the format of a layer anew; views of it follow. */
  async reload(
    node: HeldNode,
    change: { readonly writable?: boolean; readonly backing?: 'keep' | 'open' } & Pick<
      Parameters<LayerParts['reload']>[0],
      'options'
    >,
  ): Promise<void> {
    const { image } = node.layer!;
    const { writable = image.writable, backing = 'keep', ...rest } = change;
    try {
      await node.layer!.reload({ writable, backing, ...rest });
    } finally {
      const { format, backing: below } = image;
      for (const view of node.views) view.replace({ format, backing: below, writable: image.writable });
    }
    // Files that the format opened itself are others now.
    node.refreshLocks();
  }

  /** Lets go of a node that nobody uses. */
  async drop(node: HeldNode): Promise<void> {
    if (node.holder !== undefined || node.users.list.length > 0) return;
    if (!this.nodes.delete(node.name)) return;
    await this.#close(node);
    this.#events.removed(node);
  }

  async #close(node: HeldNode): Promise<void> {
    if (node.layer !== undefined) await node.layer.image.close();
    else await node.file?.storage.close();
  }

  /** Takes back what a failed attempt has begun; what it had opened was closed on the way, but for whole nodes. */
  async forget(begun: readonly HeldNode[]): Promise<void> {
    for (const node of [...begun].reverse()) {
      if (this.nodes.get(node.name) !== node) continue;
      this.nodes.delete(node.name);
      await this.#close(node).catch(() => {});
    }
  }

  /** Removes the holder's use of a node. Throws in QEMU's words where it cannot go. */
  async remove(name: string): Promise<void> {
    const node = this.nodes.get(name);
    if (node === undefined) {
      throw new ImageError('not-found', `Failed to find node with node-name='${name.slice(0, 128)}'`);
    }
    const busy = (text: string, job?: JobUser): ImageError =>
      new ImageError('locked', text, {
        check: 'node-busy',
        holder: { pid: process.pid, command: 'imgd', node: name, ...(job && { job: job.id }) },
      });
    const above = [...node.backingOf].at(-1);
    if (above !== undefined) {
      throw busy(`Node '${name}' is busy: node is used as backing hd of '${above}'`);
    }
    const { job } = node.users;
    if (job !== undefined) throw busy(busyText(name, job), job);
    if (node.holder === undefined)
      throw new ImageError('invalid', `Node ${name} is not owned by the monitor`);
    if (node.users.list.length > 1) throw busy(`Block device ${name} is in use`);
    const { holder } = node;
    node.holder = undefined;
    holder.remove();
    await this.drop(node);
  }
}
