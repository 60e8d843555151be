/** Arguments against QAPI types, in QEMU's words. */
import type { Json } from '../../protocol/json-tokens.js';
import { type QapiObject, type QapiType, UINT32_MAX } from './qapi.js';
import { QmpError } from './reply.js';

/** What a client wrote is shown back as far as this. */
const SHOWN = 64;

function typeError(path: string, expected: string): QmpError {
  return new QmpError(`Invalid parameter type for '${path}', expected: ${expected}`);
}

export function isDict(value: Json | undefined): value is { [member: string]: Json } {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Throws the first thing that is wrong with the arguments of a command. */
export function checkArguments(type: QapiObject, value: { readonly [member: string]: Json }): void {
  checkMembers(type, value, '');
}

function checkMembers(type: QapiObject, value: { readonly [member: string]: Json }, prefix: string): void {
  const taken = new Set<string>();
  takeMembers(type, value, prefix, taken);
  let open = type.open === true;
  if (type.tag !== undefined) {
    const variant = type.variants?.get(value[type.tag] as string);
    if (variant !== undefined) {
      takeMembers(variant, value, prefix, taken);
      open ||= variant.open === true;
    }
  }
  if (open) return;
  const stranger = Object.keys(value).find((name) => !taken.has(name));
  if (stranger !== undefined) {
    throw new QmpError(`Parameter '${prefix}${stranger.slice(0, SHOWN)}' is unexpected`);
  }
}

function takeMembers(
  type: QapiObject,
  value: { readonly [member: string]: Json },
  prefix: string,
  taken: Set<string>,
): void {
  for (const { name, type: member, optional } of type.members) {
    taken.add(name);
    const given = Object.hasOwn(value, name) ? value[name] : undefined;
    if (given !== undefined) check(member, given, prefix + name, name);
    else if (!optional) throw new QmpError(`Parameter '${prefix}${name}' is missing`);
  }
}

/** @param path where the value stands; `name` the last part of it, which is all that QEMU tells of a bad word. */
function check(type: QapiType, value: Json, path: string, name: string): void {
  switch (type.kind) {
    case 'builtin':
      checkBuiltin(type, value, path);
      return;
    case 'enum':
      if (typeof value !== 'string') throw typeError(path, 'string');
      if (!type.values.includes(value)) {
        throw new QmpError(`Parameter '${name}' does not accept value '${value.slice(0, SHOWN)}'`);
      }
      return;
    case 'array':
      if (!Array.isArray(value)) throw typeError(path, 'array');
      for (const [at, item] of value.entries()) check(type.of, item, `${path}[${at}]`, `${name}[${at}]`);
      return;
    case 'object':
      if (!isDict(value)) throw typeError(path, 'object');
      checkMembers(type, value, `${path}.`);
      return;
    case 'alternate': {
      const fitting = type.of.find((each) => fits(each, value));
      if (fitting === undefined)
        throw typeError(type.name === undefined ? path : name, type.name ?? words(type));
      check(fitting, value, path, name);
    }
  }
}

function checkBuiltin(type: Extract<QapiType, { kind: 'builtin' }>, value: Json, path: string): void {
  switch (type.name) {
    case 'any':
      return;
    case 'null':
      if (value !== null) throw typeError(path, 'null');
      return;
    case 'str':
      if (typeof value !== 'string') throw typeError(path, 'string');
      return;
    case 'bool':
      if (typeof value !== 'boolean') throw typeError(path, 'boolean');
      return;
    case 'number':
      if (typeof value !== 'number' && typeof value !== 'bigint') throw typeError(path, 'number');
      return;
    case 'int': {
      const whole = typeof value === 'bigint' || Number.isSafeInteger(value);
      const { max = Number.POSITIVE_INFINITY } = type;
      if (type.unsigned === true && (!whole || (value as number) < 0 || (value as number) > max)) {
        throw new QmpError(`Parameter '${path}' expects ${max === UINT32_MAX ? 'uint32_t' : 'uint64'}`);
      }
      if (!whole) throw typeError(path, 'integer');
    }
  }
}

function fits(type: QapiType, value: Json): boolean {
  switch (type.kind) {
    case 'array':
      return Array.isArray(value);
    case 'object':
      return isDict(value);
    case 'enum':
      return typeof value === 'string';
    case 'alternate':
      return type.of.some((each) => fits(each, value));
    case 'builtin':
      switch (type.name) {
        case 'any':
          return true;
        case 'str':
          return typeof value === 'string';
        case 'bool':
          return typeof value === 'boolean';
        case 'null':
          return value === null;
        default:
          return typeof value === 'number' || typeof value === 'bigint';
      }
  }
}

function words(type: QapiType): string {
  if (type.kind === 'enum') return 'string';
  if (type.kind === 'alternate') return type.of.map(words).join(' or ');
  if (type.kind !== 'builtin') return type.kind;
  return { str: 'string', int: 'integer', number: 'number', bool: 'boolean', null: 'null', any: 'value' }[
    type.name
  ];
}
