/** blkdebug's rules: which requests fail, and which events switch that on. */

import { ImageError } from '../../error.js';
import type { OptionDeclaration, OptionValues } from '../option-table.js';

export const IO_TYPES = ['read', 'write', 'write-zeroes', 'discard', 'flush', 'block-status'] as const;
export type IoType = (typeof IO_TYPES)[number];

/** Events of QAPI's BlkdebugEvent. Only those that this engine has a place for are ever fired (see events.ts). */
const EVENTS: ReadonlySet<string> = new Set(
  `l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l2_load l2_update l2_update_compressed
  l2_alloc_cow_read l2_alloc_write read_aio read_backing_aio read_compressed write_aio write_compressed vmstate_load
  vmstate_save cow_read cow_write reftable_load reftable_grow reftable_update refblock_load refblock_update
  refblock_update_part refblock_alloc refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks
  refblock_alloc_write_table refblock_alloc_switch_table cluster_alloc cluster_alloc_bytes cluster_free flush_to_os
  flush_to_disk pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_zero
  pwritev_done empty_image_prepare l1_shrink_write_table l1_shrink_free_l2_clusters cor_write cluster_alloc_space
  none`.split(/\s+/),
);

const COMMON: readonly OptionDeclaration[] = [
  { name: 'event', type: 'string', help: '' },
  { name: 'state', type: 'number', help: '' },
];

/** The sections of a rule file, and prefixes of options, with their members. */
export const SECTIONS: Readonly<Record<string, readonly OptionDeclaration[]>> = {
  'inject-error': [
    ...COMMON,
    { name: 'iotype', type: 'string', help: '' },
    { name: 'errno', type: 'number', help: '' },
    { name: 'sector', type: 'number', help: '' },
    { name: 'once', type: 'bool', help: '' },
    { name: 'immediately', type: 'bool', help: '' },
  ],
  'set-state': [...COMMON, { name: 'new_state', type: 'number', help: '' }],
};

const EIO = 5;
const SECTOR = 512;
/** Every state. */
const ANY = 0;

interface InjectRule {
  readonly kind: 'inject-error';
  readonly state: number;
  /** Undefined: all but block-status. */
  readonly ioType: IoType | undefined;
  readonly errno: number;
  /** Byte offset; undefined: anywhere. */
  readonly at: number | undefined;
  readonly once: boolean;
}

interface StateRule {
  readonly kind: 'set-state';
  readonly state: number;
  readonly newState: number;
}

export class Rules {
  readonly #byEvent = new Map<string, (InjectRule | StateRule)[]>();
  #active: InjectRule[] = [];
  #state = 1;

  /** Adds a rule of a section, its values typed by the section's declaration. */
  add(section: string, values: OptionValues): void {
    const event = values.event as string | undefined;
    if (event === undefined) throw new ImageError('invalid', 'Missing event name for rule');
    if (!EVENTS.has(event)) throw new ImageError('invalid', `invalid parameter value: ${event}`);
    const state = (values.state as number | undefined) ?? ANY;
    const rule: InjectRule | StateRule =
      section === 'set-state'
        ? { kind: 'set-state', state, newState: (values.new_state as number | undefined) ?? 0 }
        : {
            kind: 'inject-error',
            state,
            ioType: ioTypeOf(values.iotype as string | undefined),
            errno: (values.errno as number | undefined) ?? EIO,
            at: values.sector === undefined ? undefined : (values.sector as number) * SECTOR,
            once: values.once === true,
          };
    const rules = this.#byEvent.get(event);
    if (rules === undefined) this.#byEvent.set(event, [rule]);
    else rules.push(rule);
  }

  /** True where any event but `none`, which comes once, at the start, switches something. */
  get hasEvents(): boolean {
    for (const event of this.#byEvent.keys()) if (event !== 'none') return true;
    return false;
  }

  /** An event happens: rules that it injects take the place of those before. */
  fire(event: string): void {
    const rules = this.#byEvent.get(event);
    if (rules === undefined) return;
    const matching = rules.filter((rule) => rule.state === ANY || rule.state === this.#state);
    const injected = matching.filter((rule) => rule.kind === 'inject-error');
    if (injected.length > 0) this.#active = injected;
    for (const rule of matching) if (rule.kind === 'set-state') this.#state = rule.newState;
  }

  /** The error number with which a request has to fail; undefined: it goes through. */
  failure(ioType: IoType, at: number, length: number): number | undefined {
    const rule = this.#active.find(
      (each) =>
        (each.ioType === undefined ? ioType !== 'block-status' : each.ioType === ioType) &&
        (each.at === undefined || (each.at >= at && each.at < at + length)),
    );
    if (rule === undefined || rule.errno === 0) return undefined;
    if (rule.once) this.#forget(rule);
    return rule.errno;
  }

  #forget(rule: InjectRule): void {
    this.#active = this.#active.filter((each) => each !== rule);
    for (const [event, rules] of this.#byEvent) {
      this.#byEvent.set(
        event,
        rules.filter((each) => each !== rule),
      );
    }
  }
}

function ioTypeOf(text: string | undefined): IoType | undefined {
  if (text === undefined) return undefined;
  const found = IO_TYPES.find((each) => each === text);
  if (found === undefined) throw new ImageError('invalid', `invalid parameter value: ${text}`);
  return found;
}
