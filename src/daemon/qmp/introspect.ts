/** query-qmp-schema: QAPI's introspection, from the types that arguments are checked by. */
import { EMPTY, jsonType, type QapiMember, type QapiObject, type QapiType } from './qapi.js';

export interface SchemaMember {
  readonly name: string;
  readonly type: string;
  /** There, and null, where the member may be left out. */
  readonly default?: null;
}

export type SchemaInfo = { readonly name: string } & (
  | { readonly 'meta-type': 'builtin'; readonly 'json-type': string }
  | {
      readonly 'meta-type': 'enum';
      readonly members: readonly { readonly name: string }[];
      readonly values: readonly string[];
    }
  | { readonly 'meta-type': 'array'; readonly 'element-type': string }
  | {
      readonly 'meta-type': 'object';
      readonly members: readonly SchemaMember[];
      readonly tag?: string;
      readonly variants?: readonly { readonly case: string; readonly type: string }[];
    }
  | { readonly 'meta-type': 'alternate'; readonly members: readonly { readonly type: string }[] }
  | {
      readonly 'meta-type': 'command';
      readonly 'arg-type': string;
      readonly 'ret-type': string;
      readonly 'allow-oob'?: true;
    }
  | { readonly 'meta-type': 'event'; readonly 'arg-type': string }
);

export interface SchemaCommand {
  readonly name: string;
  readonly arguments: QapiObject;
  readonly result: QapiType;
  readonly oob: boolean;
}

/** Commands and events first, then the types that they refer to, numbered as QEMU does: their names mean nothing. */
export function introspect(
  commands: Iterable<SchemaCommand>,
  events: Readonly<Record<string, QapiObject>>,
): SchemaInfo[] {
  const infos: SchemaInfo[] = [];
  const types: SchemaInfo[] = [];
  const names = new Map<string, string>();
  const seen = new Map<QapiType, string>();
  let next = 0;

  /** The name of a type; types that look alike are one. */
  function named(type: QapiType): string {
    const before = seen.get(type);
    if (before !== undefined) return before;
    const name = define(type);
    seen.set(type, name);
    return name;
  }

  function unique(key: string, make: (name: string) => SchemaInfo, name = String(next)): string {
    const before = names.get(key);
    if (before !== undefined) return before;
    if (name === String(next)) next++;
    names.set(key, name);
    types.push(make(name));
    return name;
  }

  function define(type: QapiType): string {
    switch (type.kind) {
      case 'builtin': {
        const { name } = type;
        return unique(
          `builtin ${name}`,
          () => ({ name, 'meta-type': 'builtin', 'json-type': jsonType(type) }),
          name,
        );
      }
      case 'enum': {
        const { values } = type;
        return unique(JSON.stringify(['enum', values]), (name) => ({
          name,
          'meta-type': 'enum',
          members: values.map((value) => ({ name: value })),
          values,
        }));
      }
      case 'array': {
        const of = named(type.of);
        const name = `[${of}]`;
        return unique(name, () => ({ name, 'meta-type': 'array', 'element-type': of }), name);
      }
      case 'alternate': {
        const members = type.of.map((each) => ({ type: named(each) }));
        return unique(JSON.stringify(['alternate', members]), (name) => ({
          name,
          'meta-type': 'alternate',
          members,
        }));
      }
      case 'object':
        return object(type);
    }
  }

  function object(type: QapiObject): string {
    const { tag, variants } = type;
    const members = type.members.map(member);
    const cases = [...(variants ?? [])].map(([value, variant]) => ({ case: value, type: named(variant) }));
    return unique(JSON.stringify(['object', members, tag, cases]), (name) => ({
      name,
      'meta-type': 'object',
      members,
      ...(tag === undefined ? {} : { tag, variants: cases }),
    }));
  }

  function member({ name, type, optional }: QapiMember): SchemaMember {
    return { name, type: named(type), ...(optional ? { default: null } : {}) };
  }

  for (const [name, data] of Object.entries(events)) {
    infos.push({ name, 'meta-type': 'event', 'arg-type': named(data) });
  }
  for (const { name, arguments: given, result, oob } of commands) {
    infos.push({
      name,
      'meta-type': 'command',
      'arg-type': named(given),
      'ret-type': named(result),
      ...(oob ? { 'allow-oob': true as const } : {}),
    });
  }
  named(EMPTY);
  return [...infos, ...types];
}
