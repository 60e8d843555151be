/** throttle: requests wait for the limits of a group. */
import { ImageError } from '../../error.js';
import type { Range, Storage } from '../../storage/storage.js';
import type { OptionDeclaration } from '../option-table.js';
import type { ThrottleGroup } from '../throttle-group.js';
import type { FilterDriver } from './filter.js';
import { ForwardStorage } from './forward.js';
import { passThrough } from './simple.js';

const OPTIONS: readonly OptionDeclaration[] = [{ name: 'throttle-group', type: 'string', help: '' }];

class ThrottleStorage extends ForwardStorage {
  readonly #group: ThrottleGroup;

  constructor(filename: string, below: Storage, group: ThrottleGroup) {
    super('throttle', filename, 'file', below);
    this.#group = group;
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    await this.#group.pass('read', into.byteLength);
    return this.below.read(at, into);
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    await this.#group.pass('write', from.byteLength);
    return this.below.write(at, from);
  }

  override async zero(range: Range, options?: { readonly unmap?: boolean }): Promise<void> {
    await this.#group.pass('write', range.length);
    return this.below.zero(range, options);
  }

  override async discard(range: Range): Promise<void> {
    await this.#group.pass('write', range.length);
    return this.below.discard(range);
  }
}

export const throttle: FilterDriver = {
  name: 'throttle',
  async open(context) {
    const id = context.flat.takeDeclared(OPTIONS)['throttle-group'];
    if (id === undefined) throw new ImageError('invalid', 'Please specify a throttle group');
    const group = context.throttleGroup(String(id));
    if (group === undefined) throw new ImageError('invalid', `Throttle group '${id}' does not exist`);
    const own = { 'throttle-group': id };
    return passThrough(
      'throttle',
      context,
      own,
      (below, filename) => new ThrottleStorage(filename, below, group),
    );
  },
};
