/** Dirty bitmaps of held nodes, and transactions of their changes: all are made, or none is left. */
import { PROTOCOLS } from '../../engine/node/open-storage.js';
import type { BlockDeviceInfo } from '../../protocol/commands/blockdev.js';
import type { ImageBitmapParams } from '../../protocol/commands/image-bitmap.js';
import { RpcError } from '../sessions/rpc-error.js';
import type { Bitmap, BitmapAdd, BitmapMerge, TransactionAction } from './declarations.js';
import { QmpError } from './reply.js';

export interface BitmapAccess {
  /** Performs image-bitmap on a held node. */
  perform(params: ImageBitmapParams): Promise<unknown>;
  nodes(): Promise<readonly BlockDeviceInfo[]>;
}

interface Stored {
  readonly name: string;
  readonly granularity: number;
  readonly flags: readonly string[];
}

type Actions = ImageBitmapParams['actions'];

/** What a transaction has done so far. */
interface Done {
  /** Last first. */
  readonly undo: (() => Promise<void>)[];
  /** In order, when all else has succeeded: what cannot be undone. */
  readonly commit: (() => Promise<void>)[];
  /** In either case, at the end. */
  readonly clean: (() => Promise<void>)[];
  /** `node/name` of bitmaps that will be gone. */
  readonly removed: Set<string>;
}

const notFound = (name: string) => new QmpError(`Dirty bitmap '${name}' not found`);

export class Bitmaps {
  readonly #access: BitmapAccess;
  #last: Promise<unknown> = Promise.resolve();
  #nextCopy = 1;

  constructor(access: BitmapAccess) {
    this.#access = access;
  }

  /** One command or transaction after another: each sees what those before it have left. */
  run(actions: readonly TransactionAction[]): Promise<void> {
    const result = this.#last.then(() =>
      actions.length === 1 ? this.#single(actions[0]!) : this.#all(actions),
    );
    this.#last = result.catch(() => undefined);
    return result;
  }

  /** Resolves when nothing is under way. */
  async quiet(): Promise<void> {
    await this.#last;
  }

  async #single(action: TransactionAction): Promise<void> {
    switch (action.type) {
      case 'abort':
        throw new QmpError('Transaction aborted using Abort action');
      case 'block-dirty-bitmap-add':
        return this.#add(action.data);
      case 'block-dirty-bitmap-merge':
        return this.#merge(action.data);
      default: {
        const { node, name } = action.data;
        const kind = action.type.slice('block-dirty-bitmap-'.length) as
          | 'remove'
          | 'clear'
          | 'enable'
          | 'disable';
        await this.#stored(action.data, kind === 'remove');
        return this.#perform(node, name, [{ action: kind }]);
      }
    }
  }

  async #all(actions: readonly TransactionAction[]): Promise<void> {
    const done: Done = { undo: [], commit: [], clean: [], removed: new Set() };
    try {
      for (const action of actions) await this.#step(action, done);
      for (const step of done.commit) await step();
    } catch (error) {
      for (const undo of done.undo.reverse()) await undo();
      for (const clean of done.clean) await clean();
      throw error;
    }
    for (const clean of done.clean) await clean();
  }

  async #step(action: TransactionAction, done: Done): Promise<void> {
    if (action.type === 'abort') return this.#single(action);
    const { node } = action.data;
    const name = 'target' in action.data ? action.data.target : action.data.name;
    if (done.removed.has(`${node}/${name}`)) throw notFound(name);
    switch (action.type) {
      case 'block-dirty-bitmap-add':
        await this.#single(action);
        done.undo.push(() => this.#perform(node, name, [{ action: 'remove' }]));
        return;
      case 'block-dirty-bitmap-enable':
      case 'block-dirty-bitmap-disable': {
        const { flags } = await this.#stored({ node, name });
        const before = flags.includes('auto') ? 'enable' : 'disable';
        await this.#single(action);
        done.undo.push(() => this.#perform(node, name, [{ action: before }]));
        return;
      }
      case 'block-dirty-bitmap-remove':
        await this.#stored({ node, name }, true);
        done.removed.add(`${node}/${name}`);
        done.commit.push(() => this.#single(action));
        return;
      default: {
        const copy = await this.#copy(node, name);
        done.clean.push(() => this.#perform(node, copy, [{ action: 'remove' }]));
        done.undo.push(() =>
          this.#perform(node, name, [{ action: 'clear' }, { action: 'merge', source: copy }]),
        );
        await this.#single(action);
      }
    }
  }

  /** Keeps what a bitmap says in another one, which does not record. */
  async #copy(node: string, name: string): Promise<string> {
    const { granularity } = await this.#stored({ node, name });
    const copy = `imgd-undo-${process.pid}-${this.#nextCopy++}`;
    await this.#perform(node, copy, [{ action: 'add' }, { action: 'disable' }], { granularity });
    await this.#perform(node, copy, [{ action: 'merge', source: name }]);
    return copy;
  }

  async #add({ node, name, granularity, persistent = false, disabled = false }: BitmapAdd): Promise<void> {
    const { drv } = await this.#node(node);
    if (name === '') throw new QmpError('Bitmap name cannot be empty');
    const power =
      granularity === undefined || (granularity >= 512 && Number.isInteger(Math.log2(granularity)));
    if (!power) throw new QmpError('Granularity must be power of 2 and at least 512');
    if (!persistent) {
      throw new QmpError(
        "Only bitmaps that are stored in the image are supported: 'persistent' must be true",
      );
    }
    if (PROTOCOLS.has(drv)) {
      throw new QmpError(`Can't store persistent bitmaps to ${node}: Operation not supported`);
    }
    const actions: Actions = [{ action: 'add' }, ...(disabled ? [{ action: 'disable' } as const] : [])];
    await this.#perform(node, name, actions, granularity === undefined ? {} : { granularity });
  }

  async #merge({ node, target, bitmaps }: BitmapMerge): Promise<void> {
    await this.#stored({ node, name: target });
    const sources = bitmaps.map((each) => (typeof each === 'string' ? { node, name: each } : each));
    // All are looked for first: with one that does not exist, nothing is merged.
    for (const source of sources) await this.#stored(source);
    for (const source of sources) {
      const from = source.node === node ? {} : { source: { node: source.node } };
      await this.#perform(node, target, [{ action: 'merge', source: source.name }], from);
    }
  }

  async #node(node: string, removing = false): Promise<BlockDeviceInfo> {
    const found = (await this.#access.nodes()).find((each) => each['node-name'] === node);
    if (found !== undefined) return found;
    const shown = node.slice(0, 128);
    throw new QmpError(
      removing ? `Node '${shown}' not found` : `Cannot find device='${shown}' nor node-name='${shown}'`,
    );
  }

  async #stored({ node, name }: Bitmap, removing = false): Promise<Stored> {
    const { image } = await this.#node(node, removing);
    const specific = image['format-specific'] as { data?: { bitmaps?: readonly Stored[] } } | undefined;
    const found = specific?.data?.bitmaps?.find((each) => each.name === name);
    if (found === undefined) throw notFound(name.slice(0, 128));
    return found;
  }

  async #perform(
    node: string,
    bitmap: string,
    actions: Actions,
    more: Partial<ImageBitmapParams> = {},
  ): Promise<void> {
    try {
      await this.#access.perform({ image: { node }, bitmap, actions, ...more });
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
      const { message } = error.wire;
      const prefix = actions.map(({ action }) => `Operation ${action} on bitmap ${bitmap} failed: `);
      const found = prefix.find((each) => message.startsWith(each));
      const reason = found === undefined ? message : message.slice(found.length);
      // The engine knows the image by an anonymous name.
      throw new QmpError(reason.replace(/ to #block\d+: /, ` to ${node}: `));
    }
  }
}
