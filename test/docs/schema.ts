/** valibot's schemas as people read them: a type in a few words, and the members of objects. */
import type { GenericSchema } from 'valibot';

export interface Parts {
  readonly type: string;
  readonly pipe?: readonly (Parts & { readonly requirement?: unknown })[];
  readonly entries?: Readonly<Record<string, Parts>>;
  readonly wrapped?: Parts;
  readonly default?: unknown;
  readonly item?: Parts;
  readonly options?: readonly unknown[];
  readonly literal?: unknown;
  readonly value?: Parts;
  readonly key?: Parts;
}

export const parts = (schema: GenericSchema): Parts => schema as unknown as Parts;

/** Schemas that have a section of their own, by what they are. */
export type Named = ReadonlyMap<unknown, string>;

export interface Member {
  readonly name: string;
  readonly type: string;
  readonly required: boolean;
  readonly default?: unknown;
  /** Where the member's own members are told of below it. */
  readonly inner?: Parts;
}

const isObject = ({ type }: Parts): boolean => /^(strict_|loose_)?object$/.test(type);

function bounds(schema: Parts): string {
  let [least, most]: [unknown, unknown] = [undefined, undefined];
  let whole = false;
  for (const { type, requirement } of schema.pipe?.slice(1) ?? []) {
    if (type === 'min_value') least = requirement;
    else if (type === 'max_value') most = requirement;
    else if (type === 'integer' || type === 'safe_integer') whole = true;
    else if (type === 'min_length' && schema.type === 'array') return ', not empty';
  }
  if (schema.type !== 'number') return '';
  const range =
    least === undefined
      ? ''
      : most === undefined || Number(most) > Number.MAX_SAFE_INTEGER
        ? ` >= ${least}`
        : ` ${least} to ${most}`;
  return whole ? `integer${range}` : `number${range}`;
}

/** `array of ImageRef`, `'leaks' | 'all'`. */
export function typeOf(schema: Parts, named: Named): string {
  const name = named.get(schema);
  if (name !== undefined) return `[${name}](#${name.toLowerCase()})`;
  switch (schema.type) {
    case 'number':
      return bounds(schema) || 'number';
    case 'optional':
      return typeOf(schema.wrapped!, named);
    case 'nullable':
      return `${typeOf(schema.wrapped!, named)} or null`;
    case 'picklist':
      return schema.options!.map((option) => `\`"${String(option)}"\``).join(', ');
    case 'literal':
      return `\`${JSON.stringify(schema.literal)}\``;
    case 'array':
      return `array of ${typeOf(schema.item!, named)}${bounds(schema)}`;
    case 'record':
      return `object, each member ${typeOf(schema.value!, named)}`;
    case 'union':
    case 'variant':
      return schema.options!.map((option) => typeOf(option as Parts, named)).join(' or ');
    case 'unknown':
    case 'any':
      return 'anything';
    default:
      return isObject(schema) ? 'object' : schema.type;
  }
}

/** What a member's type comes down to below `optional`, `array` and so on, where it has members and no section of its own. */
function innerOf(schema: Parts, named: Named): Parts | undefined {
  if (named.has(schema)) return undefined;
  const next = schema.wrapped ?? schema.item ?? schema.value;
  if (next !== undefined) return innerOf(next, named);
  if (isObject(schema)) return Object.keys(schema.entries!).length > 0 ? schema : undefined;
  return schema.options?.some((option) => isObject(option as Parts)) ? schema : undefined;
}

/** The members of an object; of a choice between objects, those of all. */
export function membersOf(schema: Parts, named: Named): Member[] {
  if (!isObject(schema)) {
    const all = (schema.options as Parts[]).filter(isObject).flatMap((option) => membersOf(option, named));
    const names = [...new Set(all.map(({ name }) => name))];
    return names.map((name) => {
      const same = all.filter((member) => member.name === name);
      const type = [...new Set(same.map((member) => member.type))].join(' or ');
      const everywhere = same.length === schema.options!.length && same.every(({ required }) => required);
      return { ...same[0]!, type, required: everywhere };
    });
  }
  return Object.entries(schema.entries!).map(([name, entry]) => {
    const inner = innerOf(entry, named);
    const value = typeof entry.default === 'function' ? undefined : entry.default;
    return {
      name,
      type: typeOf(entry, named),
      required: entry.type !== 'optional',
      ...(value === undefined ? {} : { default: value }),
      ...(inner === undefined ? {} : { inner }),
    };
  });
}
