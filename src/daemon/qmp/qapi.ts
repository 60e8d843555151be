/**
 * QAPI's view of a declaration: the types that query-qmp-schema tells of are the types that arguments are checked by, so that
 * the two cannot disagree.
 */
import type { GenericSchema } from 'valibot';

export const UINT32_MAX = 2 ** 32 - 1;

export type QapiType =
  | {
      readonly kind: 'builtin';
      readonly name: 'str' | 'int' | 'number' | 'bool' | 'null' | 'any';
      readonly unsigned?: boolean;
      readonly max?: number | undefined;
    }
  | { readonly kind: 'enum'; readonly values: readonly string[] }
  | { readonly kind: 'array'; readonly of: QapiType }
  /** `name` is for messages: introspection hides it. */
  | { readonly kind: 'alternate'; readonly of: readonly QapiType[]; readonly name?: string | undefined }
  | QapiObject;

export interface QapiMember {
  readonly name: string;
  readonly type: QapiType;
  readonly optional: boolean;
}

export interface QapiObject {
  readonly kind: 'object';
  readonly members: readonly QapiMember[];
  readonly tag?: string;
  /** Members beside the common ones, by the tag's value. */
  readonly variants?: ReadonlyMap<string, QapiObject>;
  /** Takes members that are not declared: whoever gets them checks them. */
  readonly open?: boolean;
}

export const EMPTY: QapiObject = { kind: 'object', members: [] };
const ANY: QapiType = { kind: 'builtin', name: 'any' };
const builtin = (name: 'str' | 'number' | 'bool' | 'null'): QapiType => ({ kind: 'builtin', name });

/** What valibot's schemas hold, as far as it is looked at. */
interface Schema {
  readonly type: string;
  readonly entries?: Readonly<Record<string, Schema>>;
  readonly options?: readonly unknown[];
  readonly literal?: unknown;
  readonly item?: Schema;
  readonly wrapped?: Schema;
  readonly key?: string;
  readonly pipe?: readonly {
    readonly type: string;
    readonly requirement?: unknown;
    readonly title?: string;
  }[];
}

const known = new WeakMap<object, QapiType>();

export function qapiType(schema: GenericSchema): QapiType {
  return typeOf(schema as unknown as Schema);
}

/** The arguments of a command: an object, also where the declaration is not one. */
export function qapiArguments(schema: GenericSchema): QapiObject {
  const type = qapiType(schema);
  return type.kind === 'object' ? type : { ...EMPTY, open: true };
}

function typeOf(schema: Schema): QapiType {
  let type = known.get(schema);
  if (type === undefined) {
    type = convert(schema);
    known.set(schema, type);
  }
  return type;
}

function convert(schema: Schema): QapiType {
  switch (schema.type) {
    case 'string':
      return builtin('str');
    case 'boolean':
      return builtin('bool');
    case 'null':
      return builtin('null');
    case 'number': {
      const has = (type: string) => schema.pipe?.find((action) => action.type === type);
      if (has('safe_integer') === undefined && has('integer') === undefined) return builtin('number');
      const max = has('max_value')?.requirement as number | undefined;
      return { kind: 'builtin', name: 'int', unsigned: has('min_value')?.requirement === 0, max };
    }
    case 'literal':
      return typeof schema.literal === 'string' ? { kind: 'enum', values: [schema.literal] } : ANY;
    case 'picklist':
      return { kind: 'enum', values: (schema.options as readonly unknown[]).map(String) };
    case 'array':
      return { kind: 'array', of: typeOf(schema.item!) };
    case 'optional':
    case 'exact_optional':
    case 'undefinedable':
      return typeOf(schema.wrapped!);
    case 'nullable':
    case 'nullish':
      return { kind: 'alternate', of: [typeOf(schema.wrapped!), builtin('null')] };
    case 'strict_object':
    case 'object':
    case 'loose_object':
      return {
        kind: 'object',
        members: membersOf(schema),
        ...(schema.type === 'loose_object' ? { open: true } : {}),
      };
    case 'record':
      return { ...EMPTY, open: true };
    case 'variant':
      return variant(schema);
    case 'union':
      return alternate((schema.options as readonly Schema[]).map(typeOf), titleOf(schema));
    default:
      return ANY;
  }
}

function membersOf(schema: Schema): QapiMember[] {
  return Object.entries(schema.entries ?? {}).map(([name, entry]) => ({
    name,
    type: typeOf(entry),
    optional: entry.type === 'optional' || entry.type === 'exact_optional' || entry.type === 'nullish',
  }));
}

/** Alternates are told apart by JSON type; what cannot be is `any`. */
function titleOf(schema: Schema): string | undefined {
  return schema.pipe?.find((action) => action.type === 'title')?.title;
}

function alternate(types: readonly QapiType[], name: string | undefined): QapiType {
  const kinds = types.map(jsonType);
  return new Set(kinds).size === kinds.length ? { kind: 'alternate', of: types, name } : ANY;
}

function variant(schema: Schema): QapiType {
  const tag = schema.key!;
  const variants = new Map<string, QapiObject>();
  for (const option of schema.options as readonly Schema[]) {
    const object = typeOf(option);
    if (object.kind !== 'object') return ANY;
    const values = object.members.find((member) => member.name === tag)?.type;
    if (values?.kind !== 'enum') return ANY;
    const members = object.members.filter((member) => member.name !== tag);
    for (const value of values.values) variants.set(value, { ...object, members });
  }
  const values = [...variants.keys()];
  const members = [{ name: tag, type: { kind: 'enum', values } as const, optional: false }];
  return { kind: 'object', members, tag, variants };
}

/** QAPI's JSONType. */
export function jsonType(type: QapiType): string {
  if (type.kind === 'enum') return 'string';
  if (type.kind === 'array' || type.kind === 'object') return type.kind;
  if (type.kind === 'alternate') return 'value';
  const names = { str: 'string', bool: 'boolean', any: 'value', int: 'int', number: 'number', null: 'null' };
  return names[type.name];
}
