/** Dirty bitmaps of held nodes, and transactions of their changes: all are made, or none is left. */
import type { DirtyBitmapInfo } from '../../protocol/commands/blockdev.js';
import type { ImageBitmapParams } from '../../protocol/commands/image-bitmap.js';
import type { NodeBitmapAccess } from '../handlers/images.js';
import type { NodeBitmaps } from '../images/nodes.js';
import { RpcError } from '../sessions/rpc-error.js';
import type { Bitmap, BitmapAdd, BitmapMerge, TransactionAction } from './declarations.js';
import { QmpError } from './reply.js';

export interface BitmapAccess extends NodeBitmapAccess {
  /** Performs image-bitmap on a held node: changes of what is in the image. */
  perform(params: ImageBitmapParams): Promise<unknown>;
}

type Actions = ImageBitmapParams['actions'];
type Change = 'remove' | 'clear' | 'enable' | 'disable';

const MAX_NAME = 1023;

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

const inUse = (name: string) =>
  new QmpError(`Bitmap '${name}' is currently in use by another operation and cannot be used`);

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
        const kind = action.type.slice('block-dirty-bitmap-'.length) as Change;
        return this.#change(await this.#changeable(action.data), action.data, kind);
      }
    }
  }

  async #all(actions: readonly TransactionAction[]): Promise<void> {
    const done: Done = { undo: [], commit: [], clean: [], removed: new Set() };
    try {
      for (const action of actions) await this.#step(action, done);
      for (const step of done.commit) await step();
    } catch (error) {
      // Where one cannot be undone (its node is lost) the others are; the error told is the first.
      for (const step of [...done.undo.reverse(), ...done.clean]) await step().catch(() => undefined);
      throw error;
    }
    for (const clean of done.clean) await clean();
  }

  async #step(action: TransactionAction, done: Done): Promise<void> {
    if (action.type === 'abort') return this.#single(action);
    const { node } = action.data;
    const name = 'target' in action.data ? action.data.target : action.data.name;
    const place = { node, name };
    if (action.type === 'block-dirty-bitmap-add') {
      await this.#add(action.data);
      const added = await this.#find(place);
      done.undo.push(() => this.#change(added, place, 'remove'));
      return;
    }
    for (const used of [place, ...('target' in action.data ? sourcesOf(action.data) : [])]) {
      if (done.removed.has(`${used.node}/${used.name}`)) throw inUse(used.name);
    }
    const found = await this.#changeable(place);
    switch (action.type) {
      case 'block-dirty-bitmap-enable':
      case 'block-dirty-bitmap-disable':
        await this.#single(action);
        done.undo.push(() => this.#change(found, place, found.recording ? 'enable' : 'disable'));
        return;
      case 'block-dirty-bitmap-remove':
        done.removed.add(`${node}/${name}`);
        done.commit.push(() => this.#single(action));
        return;
      default: {
        const copy = await this.#copy(found, place);
        done.clean.push(() => this.#access.change({ ...copy, action: 'remove' }));
        done.undo.push(() => this.#restore(found, place, copy.name));
        await this.#single(action);
      }
    }
  }

  /** Keeps what a bitmap says in another one, in memory, which records what the bitmap does. */
  async #copy({ granularity, recording }: DirtyBitmapInfo, { node, name }: Bitmap): Promise<Bitmap> {
    const copy = { node, name: `imgd-undo-${process.pid}-${this.#nextCopy++}` };
    await this.#access.change({ ...copy, action: 'add', granularity, recording });
    try {
      await this.#access.change({ ...copy, action: 'merge', source: { node, name } });
    } catch (error) {
      await this.#access.change({ ...copy, action: 'remove' });
      throw error;
    }
    return copy;
  }

  async #restore({ persistent }: DirtyBitmapInfo, { node, name }: Bitmap, copy: string): Promise<void> {
    if (persistent)
      return this.#perform(node, name, [{ action: 'clear' }, { action: 'merge', source: copy }]);
    await this.#access.change({ node, name, action: 'clear' });
    await this.#access.change({ node, name, action: 'merge', source: { node, name: copy } });
  }

  async #change({ persistent }: DirtyBitmapInfo, { node, name }: Bitmap, action: Change): Promise<void> {
    if (persistent) await this.#perform(node, name, [{ action }]);
    else await this.#access.change({ node, name, action });
  }

  async #add({ node, name, granularity, persistent = false, disabled = false }: BitmapAdd): Promise<void> {
    const found = await this.#access.of(node);
    if (found === undefined) {
      const shown = node.slice(0, 128);
      throw new QmpError(`Cannot find device='${shown}' nor node-name='${shown}'`);
    }
    if (name === '') throw new QmpError('Bitmap name cannot be empty');
    const power =
      granularity === undefined || (granularity >= 512 && Number.isInteger(Math.log2(granularity)));
    if (!power) throw new QmpError('Granularity must be power of 2 and at least 512');
    if (!persistent) {
      return this.#access.change({ node, name, action: 'add', granularity, recording: !disabled });
    }
    if (found.bitmaps.some((each) => each.name === name)) {
      throw new QmpError(`Bitmap already exists: ${name}`);
    }
    const refused = (why: string) => new QmpError(`Can't store persistent bitmaps to ${node}: ${why}`);
    if (!found.stores) throw refused('Operation not supported');
    // The reference takes it, and loses it when the node is closed.
    if (found.readOnly) throw refused('Block node is read-only');
    const actions: Actions = [{ action: 'add' }, ...(disabled ? [{ action: 'disable' } as const] : [])];
    await this.#perform(node, name, actions, granularity === undefined ? {} : { granularity });
  }

  async #merge(merge: BitmapMerge): Promise<void> {
    const { node, target: name } = merge;
    const target = await this.#changeable({ node, name });
    const sources = sourcesOf(merge);
    // All are looked for first: with one that does not exist, nothing is merged.
    for (const source of sources) await this.#find(source);
    for (const source of sources) {
      if (target.persistent) {
        const from = source.node === node ? {} : { source: { node: source.node } };
        await this.#perform(node, name, [{ action: 'merge', source: source.name }], from);
      } else await this.#access.change({ node, name, action: 'merge', source });
    }
  }

  #changeable(place: Bitmap): Promise<DirtyBitmapInfo> {
    return this.#find(place, true);
  }

  async #find({ node, name }: Bitmap, toChange = false): Promise<DirtyBitmapInfo> {
    const there: NodeBitmaps | undefined = await this.#access.of(node);
    if (there === undefined) throw new QmpError(`Node '${node.slice(0, 128)}' not found`);
    const found = there.bitmaps.find((each) => each.name === name);
    if (found === undefined) throw new QmpError(`Dirty bitmap '${name.slice(0, MAX_NAME)}' not found`);
    if (toChange && found.persistent && there.readOnly) {
      throw new QmpError(`Bitmap '${name}' is readonly and cannot be modified`);
    }
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

function sourcesOf({ node, bitmaps }: BitmapMerge): readonly Bitmap[] {
  return bitmaps.map((each) => (typeof each === 'string' ? { node, name: each } : each));
}
