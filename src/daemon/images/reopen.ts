/** blockdev-reopen: other options for nodes that are there, with their locks kept throughout. */
import { ImageError } from '../../engine/error.js';
import type { FlatOptions } from '../../engine/node/flat-options.js';
import type { ImageNode } from '../../engine/node/image.js';
import type { FileReopen, NodeSettings } from '../../engine/node/node-scope.js';
import { permissionsFor, WRITE } from '../../engine/storage/permissions.js';
import type { Graph, HeldNode } from './graph.js';
import { checkOptions, flat, type Tree } from './options.js';
import { busyText } from './users.js';

type LinkBacking = (name: string, parent: HeldNode) => Promise<ImageNode>;

interface Change {
  readonly node: HeldNode;
  readonly tree: Tree;
  readonly settings: NodeSettings;
  readonly writable: boolean;
  /** What becomes of the backing file: another one by its name, none, or as it is. */
  readonly backing: { readonly kind: 'keep' | 'none' } | { readonly kind: 'node'; readonly name: string };
}

const invalid = (text: string): ImageError => new ImageError('invalid', text);

export class Reopener {
  readonly #graph: Graph;

  constructor(graph: Graph) {
    this.#graph = graph;
  }

  /** All or none; gives the nodes that were changed. */
  async reopen(options: readonly unknown[], link: LinkBacking): Promise<HeldNode[]> {
    const changes: Change[] = [];
    for (const [index, raw] of options.entries()) {
      changes.push(this.#plan(await checkOptions(raw, `options[${index}].`)));
    }
    const undo: (() => Promise<void>)[] = [];
    try {
      for (const change of changes) undo.push(await this.#apply(change, link));
    } catch (error) {
      for (const back of undo.reverse()) await back().catch(() => {});
      throw error;
    }
    for (const { node, tree } of changes) node.options = tree;
    return changes.map(({ node }) => node);
  }

  #plan(tree: Tree): Change {
    const name = tree['node-name'] as string | undefined;
    if (name === undefined) throw invalid('node-name not specified');
    const node = this.#graph.nodes.get(name);
    if (node === undefined) {
      throw new ImageError('not-found', `Failed to find node with node-name='${name.slice(0, 128)}'`);
    }
    const { job } = node.users;
    if (job !== undefined) {
      const holder = { pid: process.pid, command: 'imgd', node: name, job: job.id };
      throw new ImageError('locked', busyText(name, job), { check: 'node-busy', holder });
    }
    const { settings } = node;
    if (tree.driver !== settings.driver) throw invalid("Cannot change the option 'driver'");
    if (settings.forceShare && tree['force-share'] === undefined) {
      throw invalid("Option 'force-share' cannot be reset to its default value");
    }
    if ((tree['force-share'] === true) !== settings.forceShare) {
      throw invalid("Cannot change the option 'force-share'");
    }
    const writable = tree['read-only'] !== true;
    if (!writable && node.users.list.some(({ uses }) => (uses & WRITE) !== 0)) {
      throw new ImageError('read-only', 'Block node is read-only');
    }
    const cache = (tree.cache ?? {}) as { readonly direct?: boolean; readonly 'no-flush'?: boolean };
    const wanted: NodeSettings = {
      ...settings,
      readOnly: !writable,
      direct: cache.direct ?? false,
      noFlush: cache['no-flush'] ?? false,
      discard: tree.discard as NodeSettings['discard'],
      detectZeroes: (tree['detect-zeroes'] as NodeSettings['detectZeroes'] | undefined) ?? 'off',
    };
    if (node.layer === undefined) {
      if (node.file!.storage.filename !== tree.filename && tree.filename !== undefined) {
        throw invalid("Cannot change the option 'filename'");
      }
      return { node, tree, settings: wanted, writable, backing: { kind: 'keep' } };
    }
    this.#checkFile(node, tree, writable);
    return { node, tree, settings: wanted, writable, backing: this.#planBacking(node, tree) };
  }

  #checkFile(node: HeldNode, tree: Tree, writable: boolean): void {
    const child = node.children.get('file')!.to;
    const { file } = tree;
    if (typeof file === 'string') {
      if (file !== child.name) {
        this.#graph.find(file);
        throw new ImageError('unsupported', `Cannot change the child 'file' of node '${node.name}'`);
      }
    } else {
      const { driver, filename, 'node-name': name } = file as Tree;
      if (driver !== child.settings.driver) throw invalid("Cannot change the option 'driver'");
      if (name !== undefined && name !== child.name) throw invalid("Cannot change the option 'node-name'");
      if (filename !== undefined && filename !== child.file?.storage.filename) {
        throw invalid("Cannot change the option 'filename'");
      }
    }
    const own = typeof file === 'string' ? undefined : (file as Tree)['read-only'];
    if (writable && !child.writable && (child.holder !== undefined || own === true)) {
      throw new ImageError('read-only', 'Block node is read-only');
    }
  }

  #planBacking(node: HeldNode, tree: Tree): Change['backing'] {
    const present = node.children.get('backing')?.to;
    const { backing } = tree;
    if (backing === undefined) {
      if (present !== undefined) throw invalid(`backing is missing for '${node.name}'`);
      return { kind: 'keep' };
    }
    if (backing === null || backing === '') return { kind: present === undefined ? 'keep' : 'none' };
    if (typeof backing === 'string') {
      if (backing === present?.name) return { kind: 'keep' };
      this.#graph.find(backing);
      return { kind: 'node', name: backing };
    }
    const name = (backing as Tree)['node-name'];
    if (present !== undefined && (name === undefined || name === present.name)) return { kind: 'keep' };
    throw new ImageError(
      'unsupported',
      `A new backing file of node '${node.name}' must be named by its node: add it with blockdev-add first`,
    );
  }

  /** Makes one change; gives what takes it back. */
  async #apply(change: Change, link: LinkBacking): Promise<() => Promise<void>> {
    const { node, settings } = change;
    const before = node.settings;
    const was = node.writable;
    if (node.layer === undefined) {
      await this.#graph.reopenFile(node, access(settings, change.writable));
      node.settings = settings;
      return async () => {
        await this.#graph.reopenFile(node, access(before, was));
        node.settings = before;
      };
    }
    const restoreBacking = await this.#changeBacking(change, link);
    const set = async (to: NodeSettings, writable: boolean, options?: FlatOptions): Promise<void> => {
      await this.#access(node, to, writable, options);
      node.settings = to;
      const { image } = node.layer!;
      for (const one of [image, ...node.views]) one.detectZeroes = to.detectZeroes;
    };
    try {
      await set(settings, change.writable, formatOptions(change.tree));
    } catch (error) {
      const old = node.options === undefined ? undefined : formatOptions(node.options);
      await set(before, was, old).catch(() => {});
      await restoreBacking();
      throw error;
    }
    const old = node.options === undefined ? undefined : formatOptions(node.options);
    return async () => {
      await set(before, was, old);
      await restoreBacking();
    };
  }

  async #access(node: HeldNode, to: NodeSettings, writable: boolean, options?: FlatOptions): Promise<void> {
    const graph = this.#graph;
    const { to: child, handle } = node.children.get('file')!;
    const role = 'format-metadata';
    const { forceShare } = to;
    const lock = (): void => {
      if (node.layer!.passes) node.refreshLocks();
      else handle.set(permissionsFor({ role, writable, forceShare }));
    };
    const reload = () => graph.reload(node, { writable, ...(options === undefined ? {} : { options }) });
    const { settings, file } = child;
    // A child that nobody else has follows its parent.
    const follows = child.holder === undefined && file !== undefined && file.reopen !== undefined;
    const same =
      child.writable === writable && settings.direct === to.direct && settings.noFlush === to.noFlush;
    const reopenChild = async () => {
      if (follows && !same)
        await graph.reopenFile(child, access({ ...to, discard: settings.discard }, writable));
    };
    if (writable) {
      lock();
      await reopenChild();
      await reload();
    } else {
      await reload();
      await reopenChild();
      lock();
    }
  }

  async #changeBacking({ node, backing }: Change, link: LinkBacking): Promise<() => Promise<void>> {
    if (backing.kind === 'keep') return async () => {};
    const { image } = node.layer!;
    const below = backing.kind === 'node' ? await link(backing.name, node) : undefined;
    const { format, writable, backing: former } = image;
    const edge = node.children.get('backing');
    const setBacking = (to: ImageNode | undefined) => {
      for (const one of [image, ...node.views]) one.replace({ format, backing: to, writable });
    };
    setBacking(below);
    try {
      node.refreshLocks();
    } catch (error) {
      setBacking(former);
      await below?.close();
      if (edge !== undefined) node.children.set('backing', edge);
      node.refreshLocks();
      throw error;
    }
    // The old one is closed for good: with a former that had a name, it can be linked again.
    const name = former === undefined ? undefined : edge?.to.name;
    const held = edge?.to.holder !== undefined;
    await former?.close();
    if (below !== undefined && backing.kind === 'node') this.#graph.relink(node, backing.name);
    return async () => {
      const again = name !== undefined && held ? await link(name, node) : undefined;
      setBacking(again);
      await below?.close();
      if (again !== undefined) this.#graph.relink(node, name!);
    };
  }
}

function access({ direct, noFlush, discard }: NodeSettings, writable: boolean): FileReopen {
  return { writable, direct, noFlush, discard };
}

/** Options of the node itself: neither those that every node has, nor its children's, but for the backing file's. */
function formatOptions(tree: Tree): FlatOptions {
  const options = flat(tree);
  for (const key of ['driver', 'node-name', 'read-only', 'auto-read-only', 'force-share', 'discard']) {
    options.take(key);
  }
  options.take('detect-zeroes');
  options.take('file');
  options.takeChild('file');
  options.takeChild('cache');
  return options;
}
