/** Whose the descriptors of this process are: jobs and held nodes, by numbers that mark them for all threads. */
import { OWNED_DESCRIPTORS } from '../../engine/storage/owners.js';
import type { Failure } from '../workers/messages.js';

export type Owner =
  | { readonly kind: 'job'; readonly job: string; readonly operation: string }
  | { readonly kind: 'node'; readonly node: string };

/** Numbers wrap around here: marks of an owner long gone are not taken for another's before. */
const MAX_OWNER = 2 ** 31 - 1;

export class Owners {
  readonly table = new Int32Array(new SharedArrayBuffer(OWNED_DESCRIPTORS * 4));
  readonly #owners = new Map<number, Owner>();
  #next = 1;

  add(owner: Owner): number {
    while (this.#owners.has(this.#next)) this.#next = (this.#next % MAX_OWNER) + 1;
    const number = this.#next;
    this.#next = (number % MAX_OWNER) + 1;
    this.#owners.set(number, owner);
    return number;
  }

  remove(number: number): void {
    this.#owners.delete(number);
  }

  of(descriptor: number): Owner | undefined {
    return this.#owners.get(this.table[descriptor] ?? 0);
  }

  /** All descriptors that somebody has, and whose they are. */
  *descriptors(): Iterable<readonly [number, number, Owner]> {
    for (let fd = 0; fd < this.table.length; fd++) {
      const number = this.table[fd]!;
      if (number === 0) continue;
      const owner = this.#owners.get(number);
      if (owner !== undefined) yield [fd, number, owner];
    }
  }

  /** A failure to get a lock, with the job or the node that has it named where it is of this daemon. */
  named(failure: Failure): Failure {
    const { holder } = failure.context;
    if (holder?.descriptor === undefined) return failure;
    const { descriptor, ...rest } = holder;
    const owner = this.of(descriptor);
    const named =
      owner === undefined ? {} : owner.kind === 'node' ? { node: owner.node } : { job: owner.job };
    return { ...failure, context: { ...failure.context, holder: { ...rest, command: 'imgd', ...named } } };
  }
}
