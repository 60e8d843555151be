/**
 * A node's options as QEMU has them: `driver=qcow2,file.filename=x`, `json:{"driver": ...}` or a plain filename, all
 * brought to one flat table with dotted keys. Each layer takes its own keys out; what is left at the end is an error.
 */
import { parseJson } from '../../protocol/json-stream.js';
import { type Json, SyntaxFault } from '../../protocol/json-tokens.js';
import { splitOptions } from '../../protocol/options.js';
import { ImageError } from '../error.js';
import { type OptionDeclaration, type OptionValue, type OptionValues, parseOption } from './option-table.js';

export type FlatValue = OptionValue | null;

/** JSON nested deeper than this is no set of options. */
const MAX_DEPTH = 64;

export class FlatOptions {
  readonly #values: Map<string, FlatValue>;

  constructor(values: Iterable<readonly [string, FlatValue]> = []) {
    this.#values = new Map(values);
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  /** True where the key or anything below it is there: `file` with `file.filename`. */
  hasChild(key: string): boolean {
    if (this.#values.has(key)) return true;
    for (const name of this.#values.keys()) if (name.startsWith(`${key}.`)) return true;
    return false;
  }

  set(key: string, value: FlatValue): void {
    this.#values.set(key, value);
  }

  peek(key: string): FlatValue | undefined {
    return this.#values.get(key);
  }

  /** Takes a value out. */
  take(key: string): FlatValue | undefined {
    const value = this.#values.get(key);
    this.#values.delete(key);
    return value;
  }

  /** Takes a value out as text; `what` errors are QEMU's for a wrong type. */
  takeString(key: string): string | undefined {
    const value = this.take(key);
    if (value === undefined || value === null) return undefined;
    if (typeof value !== 'string') {
      throw new ImageError('invalid', `Invalid parameter type for '${key}', expected: string`);
    }
    return value;
  }

  /** As `takeString`, of an option that QEMU keeps as text whatever it came as: `true` is `on`. */
  takeText(key: string): string | undefined {
    const value = this.take(key);
    if (value === undefined || value === null) return undefined;
    return typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value);
  }

  takeBool(key: string): boolean | undefined {
    const value = this.take(key);
    if (value === undefined || value === null) return undefined;
    return typeof value === 'boolean'
      ? value
      : (typeOf({ name: key, type: 'bool', help: '' }, value) as boolean);
  }

  /** Takes all keys below `prefix.` out, without the prefix. */
  takeChild(prefix: string): FlatOptions {
    const child = new FlatOptions();
    for (const [key, value] of this.#values) {
      if (key.startsWith(`${prefix}.`)) {
        child.set(key.slice(prefix.length + 1), value);
        this.#values.delete(key);
      }
    }
    return child;
  }

  /** Takes out what a table of options declares, typed. */
  takeDeclared(table: readonly OptionDeclaration[]): OptionValues {
    const out: Record<string, OptionValue> = {};
    for (const declaration of table) {
      const value = this.take(declaration.name);
      if (value === undefined || value === null) continue;
      out[declaration.name] = typeOf(declaration, value);
    }
    return out;
  }

  get firstKey(): string | undefined {
    return this.#values.keys().next().value;
  }

  get empty(): boolean {
    return this.#values.size === 0;
  }

  entries(): IterableIterator<[string, FlatValue]> {
    return this.#values.entries();
  }
}

/** A value that came typed (JSON, RPC) or as text, as its declaration has it. */
export function typeOf(declaration: OptionDeclaration, value: OptionValue): OptionValue {
  if (declaration.type === 'string') return String(value);
  return parseOption(declaration, typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value));
}

/** The key that stands for a bare first word: the name of a node that is there already. */
const REFERENCE = '(reference)';

/** `driver=qcow2,file.filename=x` (the --image-opts form). */
export function fromOptionString(text: string, warn?: (text: string) => void): FlatOptions {
  const flat = new FlatOptions();
  for (const [key, value] of splitOptions(text, REFERENCE, warn)) {
    if (key === REFERENCE) {
      throw new ImageError('invalid', `Cannot find device='${value}' nor node-name='${value}'`);
    }
    flat.set(key, value);
  }
  return flat;
}

function flatten(
  value: Json[] | { [member: string]: Json },
  prefix: string,
  into: FlatOptions,
  depth: number,
): void {
  if (depth > MAX_DEPTH) throw new ImageError('limit', 'JSON options are nested too deeply');
  for (const [name, item] of Object.entries(value)) {
    const key = prefix === '' ? name : `${prefix}.${name}`;
    if (item !== null && typeof item === 'object') flatten(item, key, into, depth + 1);
    // As text, a number beyond 2^53 stays exact.
    else into.set(key, typeof item === 'bigint' ? String(item) : item);
  }
}

/** The object of a `json:{...}` filename, without the prefix. */
export function fromJson(text: string): FlatOptions {
  let value: Json;
  try {
    value = parseJson(text);
  } catch (error) {
    if (!(error instanceof SyntaxFault)) throw error;
    throw new ImageError('invalid', `Could not parse the JSON options: ${error.message}`);
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw new ImageError('invalid', 'Invalid JSON object given');
  }
  const flat = new FlatOptions();
  flatten(value, '', flat, 0);
  return flat;
}

/** The protocol of `proto:rest`, where a colon stands before any slash; undefined for a path. */
export function protocolOf(filename: string): string | undefined {
  const match = /^([^:/]*):/.exec(filename);
  return match?.[1];
}

/** The path in `file:PATH` and the like; one that would be taken for another protocol is made not to. */
export function withoutProtocol(filename: string): string {
  const path = filename.slice(filename.indexOf(':') + 1);
  return protocolOf(path) === undefined ? path : `./${path}`;
}
