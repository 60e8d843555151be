/** The OpenRPC document, the JSON Schemas that it is made of, and the table of roles: over all commands. */
import * as v from 'valibot';
import { describe, expect, it } from 'vitest';
import { commands } from '../../src/protocol/commands/index.js';
import { codeOfKind } from '../../src/protocol/errors.js';
import { type JsonSchema, toJsonSchema } from '../../src/protocol/json-schema.js';
import { openRpc } from '../../src/protocol/openrpc.js';
import { covers, roleNeeded, roles } from '../../src/protocol/roles.js';

describe('JSON Schema', () => {
  it('says what the declaration does', () => {
    const schema = v.strictObject({
      name: v.pipe(v.string(), v.regex(/^[a-z]+$/)),
      size: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0))),
      mode: v.optional(v.picklist(['a', 'b']), 'a'),
      more: v.array(v.union([v.string(), v.literal(7)])),
      rest: v.looseObject({ x: v.unknown() }),
      words: v.pipe(v.record(v.string(), v.boolean())),
      some: v.pipe(v.array(v.number()), v.minLength(1)),
      one: v.variant('kind', [v.strictObject({ kind: v.literal('k') })]),
    });
    expect(toJsonSchema(schema)).toEqual({
      type: 'object',
      properties: {
        name: { type: 'string', pattern: '^[a-z]+$' },
        size: { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER },
        mode: { enum: ['a', 'b'], default: 'a' },
        more: { type: 'array', items: { anyOf: [{ type: 'string' }, { const: 7 }] } },
        rest: { type: 'object', properties: { x: {} }, required: ['x'] },
        words: { type: 'object', additionalProperties: { type: 'boolean' } },
        some: { type: 'array', items: { type: 'number' }, minItems: 1 },
        one: {
          anyOf: [
            {
              type: 'object',
              properties: { kind: { const: 'k' } },
              required: ['kind'],
              additionalProperties: false,
            },
          ],
        },
      },
      required: ['name', 'more', 'rest', 'words', 'some', 'one'],
      additionalProperties: false,
    });
  });

  it('is not made up for what it cannot say', () => {
    expect(() => toJsonSchema(v.date())).toThrow(/no JSON Schema for valibot's date/);
    expect(() => toJsonSchema(v.pipe(v.string(), v.email()))).toThrow(/email/);
  });

  it('is there for the params and the result of every command', () => {
    for (const { params, result } of Object.values(commands)) {
      expect(toJsonSchema(params).type).toBe('object');
      expect(toJsonSchema(result)).toBeTypeOf('object');
    }
  });
});

describe('rpc.discover', () => {
  const document = openRpc('1.2.3');

  it('tells of every command, with the errors and the role that it has', () => {
    expect(document).toMatchObject({ openrpc: '1.3.2', info: { title: 'imgd', version: '1.2.3' } });
    expect(document.methods.map(({ name }) => name)).toEqual([...Object.keys(commands), 'rpc.discover']);
    for (const method of document.methods) {
      expect(roles).toContain(method['x-imgd-role']);
      for (const { code, message } of method.errors) {
        expect(code, `${method.name}: ${message}`).toBe(codeOfKind[message as keyof typeof codeOfKind]);
        expect(code).toBeTypeOf('number');
      }
      const names = method.params.map(({ name }) => name);
      expect(new Set(names).size).toBe(names.length);
      const required = method.params.map((each) => each.required === true);
      expect(required, method.name).toEqual([...required].sort((a, b) => Number(b) - Number(a)));
      expect(names.includes('job')).toBe(method['x-imgd-job']);
    }
  });

  it('refers to nothing that it does not have, and is JSON', () => {
    const refs = new Set<string>();
    const walk = (value: unknown): void => {
      if (typeof value !== 'object' || value === null) return;
      for (const [key, inner] of Object.entries(value)) {
        if (key === '$ref') refs.add(inner as string);
        walk(inner);
      }
    };
    walk(document);
    expect(refs.size).toBeGreaterThan(1);
    for (const ref of refs) {
      const name = ref.replace('#/components/schemas/', '');
      expect((document.components.schemas as Record<string, JsonSchema>)[name], ref).toBeDefined();
    }
    expect(JSON.parse(JSON.stringify(document))).toEqual(document);
  });
});

describe('roles', () => {
  it('cover each other upwards, and nobody unknown', () => {
    expect(covers('admin', 'watch')).toBe(true);
    expect(covers('operate', 'operate')).toBe(true);
    expect(covers('watch', 'operate')).toBe(false);
    expect(covers(undefined, 'watch')).toBe(false);
    expect(covers('king' as never, 'watch')).toBe(false);
  });

  it('are an admin where the table names none', () => {
    expect(roleNeeded('no-such-command')).toBe('admin');
    expect(roleNeeded('constructor')).toBe('admin');
    expect(roleNeeded('shutdown')).toBe('admin');
    // What writes is never a watcher's.
    for (const [name, { job }] of Object.entries(commands)) {
      const readsNoImage = name === 'format-options' || name === 'amend-options';
      if (job && !readsNoImage) expect(roleNeeded(name), name).not.toBe('watch');
    }
  });
});
