/**
 * A node's options as QEMU has them: `driver=qcow2,file.filename=x`, `json:{"driver": ...}` or a plain filename, all
 * brought to one flat table with dotted keys. Each layer takes its own keys out; what is left at the end is an error.
 */
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
    return typeof value === 'boolean' ? value : (parse(key, 'bool', value) as boolean);
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

function parse(name: string, type: OptionDeclaration['type'], value: OptionValue): OptionValue {
  return parseOption({ name, type, help: '' }, String(value));
}

/** A value that came typed (JSON, RPC) or as text, as its declaration has it. */
export function typeOf(declaration: OptionDeclaration, value: OptionValue): OptionValue {
  if (declaration.type === 'string') return String(value);
  if (typeof value === 'boolean') return parse(declaration.name, declaration.type, value ? 'on' : 'off');
  return parse(declaration.name, declaration.type, value);
}

/** The key that stands for a bare first word: the name of a node that is there already. */
const REFERENCE = '(reference)';

/** `driver=qcow2,file.filename=x` (the --image-opts form). */
export function fromOptionString(text: string): FlatOptions {
  const flat = new FlatOptions();
  for (const [key, value] of splitOptions(text, REFERENCE)) {
    if (key === REFERENCE) {
      throw new ImageError('invalid', `Cannot find device='${value}' nor node-name='${value}'`);
    }
    flat.set(key, value);
  }
  return flat;
}

function flatten(value: unknown, prefix: string, into: FlatOptions, depth: number): void {
  if (depth > MAX_DEPTH) throw new ImageError('limit', 'JSON options are nested too deeply');
  const entries: [string, unknown][] = Array.isArray(value)
    ? value.map((item, index) => [String(index), item])
    : Object.entries(value as Record<string, unknown>);
  for (const [name, item] of entries) {
    const key = prefix === '' ? name : `${prefix}.${name}`;
    if (item !== null && typeof item === 'object') flatten(item, key, into, depth + 1);
    else into.set(key, item as FlatValue);
  }
}

/** QEMU's JSON takes single-quoted strings too; rewritten here to what JSON.parse takes. */
function doubleQuoted(text: string): string {
  let out = '';
  for (let i = 0; i < text.length; i++) {
    const quote = text[i]!;
    if (quote !== '"' && quote !== "'") {
      out += quote;
      continue;
    }
    out += '"';
    for (i++; i < text.length && text[i] !== quote; i++) {
      const c = text[i]!;
      if (c === '\\' && i + 1 < text.length) {
        i++;
        out += text[i] === "'" ? "'" : `\\${text[i]}`;
      } else if (c === '"') out += '\\"';
      else out += c;
    }
    out += '"';
  }
  return out;
}

/** What stands outside of the strings of a text; one that does not end reaches to the end. In linear time. */
function withoutStrings(text: string): string {
  let out = '';
  let from = 0;
  for (let at = 0; at < text.length; at++) {
    const quote = text[at];
    if (quote !== '"' && quote !== "'") continue;
    out += text.slice(from, at);
    for (at++; at < text.length && text[at] !== quote; at++) if (text[at] === '\\') at++;
    from = at + 1;
  }
  return out + text.slice(from);
}

/** What is wrong with a JSON text, in QEMU's words for the common faults. */
function jsonFault(text: string, error: unknown): string {
  const message = error instanceof Error ? error.message : '';
  if (/end of JSON|Unterminated|end of data/i.test(message)) return 'premature EOI';
  // Strings taken out, what is left of letters should be JSON's three words.
  const keyword = [...withoutStrings(text).matchAll(/[A-Za-z_]+/g)].find(
    ([word]) => !['true', 'false', 'null'].includes(word),
  );
  return keyword === undefined ? 'invalid syntax' : `invalid keyword '${keyword[0]}'`;
}

/** The object of a `json:{...}` filename, without the prefix. */
export function fromJson(text: string): FlatOptions {
  let value: unknown;
  try {
    value = JSON.parse(doubleQuoted(text));
  } catch (error) {
    throw new ImageError(
      'invalid',
      `Could not parse the JSON options: JSON parse error, ${jsonFault(text, error)}`,
    );
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
  const match = /^([A-Za-z0-9+.-]*):/.exec(filename.split('/', 1)[0]!);
  return match?.[1];
}
