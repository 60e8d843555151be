/** JSON Schema (draft 7) of the valibot schemas that declarations are made of. */
import type { GenericSchema } from 'valibot';

export type JsonSchema = { readonly [member: string]: unknown };

/** What is read of a schema: valibot's own fields, of whichever kind it is. */
interface Parts {
  readonly type: string;
  readonly pipe?: readonly (Parts & { readonly kind: string; readonly requirement?: unknown })[];
  readonly entries?: Readonly<Record<string, Parts>>;
  readonly wrapped?: Parts;
  readonly default?: unknown;
  readonly item?: Parts;
  readonly options?: readonly unknown[];
  readonly literal?: unknown;
  readonly value?: Parts;
}

/** Throws for a kind of schema that no declaration has used so far: a test converts them all. */
export function toJsonSchema(schema: GenericSchema): JsonSchema {
  return convert(schema as unknown as Parts);
}

function convert(schema: Parts): JsonSchema {
  const base = plain(schema);
  return schema.pipe === undefined ? base : schema.pipe.slice(1).reduce(restrict, base);
}

function plain(schema: Parts): JsonSchema {
  switch (schema.type) {
    case 'string':
    case 'number':
    case 'boolean':
    case 'null':
      return { type: schema.type };
    case 'unknown':
    case 'any':
      return {};
    case 'literal':
      return { const: schema.literal };
    case 'picklist':
      return { enum: [...schema.options!] };
    case 'array':
      return { type: 'array', items: convert(schema.item!) };
    case 'record':
      return { type: 'object', additionalProperties: convert(schema.value!) };
    case 'nullable':
      return { anyOf: [convert(schema.wrapped!), { type: 'null' }] };
    case 'optional': {
      const value = typeof schema.default === 'function' ? undefined : schema.default;
      return { ...convert(schema.wrapped!), ...(value === undefined ? {} : { default: value }) };
    }
    case 'union':
    case 'variant':
      return { anyOf: schema.options!.map((option) => convert(option as Parts)) };
    case 'object':
    case 'strict_object':
    case 'loose_object':
      return object(schema.entries!, schema.type !== 'strict_object');
    default:
      throw new Error(`no JSON Schema for valibot's ${schema.type}`);
  }
}

function object(entries: Readonly<Record<string, Parts>>, open: boolean): JsonSchema {
  const names = Object.keys(entries);
  const required = names.filter((name) => entries[name]!.type !== 'optional');
  return {
    type: 'object',
    ...(names.length === 0
      ? {}
      : { properties: Object.fromEntries(names.map((name) => [name, convert(entries[name]!)])) }),
    ...(required.length === 0 ? {} : { required }),
    ...(open ? {} : { additionalProperties: false }),
  };
}

/** A step of a pipe behind its first. */
function restrict(schema: JsonSchema, step: NonNullable<Parts['pipe']>[number]): JsonSchema {
  const { requirement } = step;
  switch (step.type) {
    case 'integer':
      return { ...schema, type: 'integer' };
    case 'safe_integer': {
      const { minimum = -Number.MAX_SAFE_INTEGER, maximum = Number.MAX_SAFE_INTEGER } = schema;
      return { ...schema, type: 'integer', minimum, maximum };
    }
    case 'min_value':
      return { ...schema, minimum: requirement };
    case 'max_value':
      return { ...schema, maximum: requirement };
    case 'min_length':
      return { ...schema, [schema.type === 'array' ? 'minItems' : 'minLength']: requirement };
    case 'max_length':
      return { ...schema, [schema.type === 'array' ? 'maxItems' : 'maxLength']: requirement };
    case 'regex':
      return { ...schema, pattern: (requirement as RegExp).source };
    default:
      // A check that JSON Schema has no words for: the schema says less than the daemon demands.
      if (step.kind === 'validation' && (step.type === 'check' || step.type === 'raw_check')) return schema;
      throw new Error(`no JSON Schema for valibot's ${step.type}`);
  }
}
