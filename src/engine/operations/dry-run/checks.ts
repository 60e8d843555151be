/** The checks of a dry run: one after another, each by its name, and what came of it. */
import type { DryRunCheck, DryRunPlan } from '../../../protocol/commands/dry-run.js';
import { ImageError, toImageError } from '../../error.js';
import type { Rehearsal } from '../../node/rehearsal.js';
import type { OperationContext } from '../context.js';
import { checkSpace, Skipped, type Space, spaceOf } from './space.js';

export class Checks {
  readonly #list: DryRunCheck[] = [];
  readonly #context: OperationContext;
  readonly #rehearsal: Rehearsal | undefined;

  constructor(context: OperationContext, rehearsal?: Rehearsal) {
    this.#context = context;
    this.#rehearsal = rehearsal;
  }

  /** Looks, unless a check is not well that it `needs`; gives what was found, undefined where it failed or was skipped. */
  async check<T>(name: string, needs: readonly string[], look: () => T | Promise<T>): Promise<T | undefined> {
    try {
      if (this.#context.signal.aborted) throw new ImageError('cancelled', 'The job was cancelled');
      const missing = needs.find((each) => this.#unwell(each));
      if (missing !== undefined) throw new Skipped(`'${missing}' is not well`);
      const found = await look();
      if (needs.length > 0) this.#checkTold();
      this.#list.push({ name, status: 'ok' });
      return found;
    } catch (error) {
      this.#note(name, error);
      return undefined;
    }
  }

  #note(name: string, error: unknown): void {
    const { kind, message } = toImageError(error);
    if (kind === 'cancelled') throw error;
    const skipped = error instanceof Skipped ? error.message : this.#rehearsal?.unknown;
    if (skipped !== undefined) this.#list.push({ name, status: 'skipped', text: skipped });
    else this.#list.push({ name, status: 'failed', kind, text: message });
  }

  #unwell(name: string): boolean {
    return this.#list.some((each) => each.name === name && each.status !== 'ok');
  }

  #checkTold(): void {
    const unknown = this.#rehearsal?.unknown;
    if (unknown !== undefined) throw new Skipped(unknown);
  }

  /** The last check, `space`: of what was rehearsed, or what is given. */
  async plan(needs: readonly string[], given?: Space): Promise<DryRunPlan> {
    let space = given;
    await this.check('space', needs, async () => {
      space ??= await spaceOf(this.#rehearsal!);
      checkSpace(space);
    });
    const { required, free, 'fully-allocated': full } = space ?? {};
    return {
      ok: !this.#list.some(({ status }) => status === 'failed'),
      checks: this.#list,
      ...(required === undefined ? {} : { required }),
      ...(full === undefined ? {} : { 'fully-allocated': full }),
      ...(free === undefined ? {} : { free }),
    };
  }
}
