/**
 * Options as data: one declaration gives the type, the parser, the help text and the JSON schema.
 */
import { parseSize } from '../../protocol/options.js';
import { ImageError } from '../error.js';

export type OptionType = 'string' | 'bool' | 'number' | 'size';

export interface OptionDeclaration {
  readonly name: string;
  readonly type: OptionType;
  /** qemu-img's words after the name in `-o help`. */
  readonly help: string;
  /** A size of up to 2^64 - 1 is taken, which need not be exact. */
  readonly inexact?: boolean;
  /** The value that is shown and used where the user gives none. */
  readonly default?: string | number | boolean;
}

/** Numbers are of 64 bits; what is beyond 2^53 is not exact, and too large for any option there is. */
const TWO_64 = 1n << 64n;
/** The largest double below 2^64. */
const LARGEST_64 = 2 ** 64 - 2048;

export type OptionValue = string | number | boolean;
export type OptionValues = Readonly<Record<string, OptionValue | undefined>>;

/** One value by its declaration; errors are in QEMU's words. */
export function parseOption(declaration: OptionDeclaration, text: string): OptionValue {
  const { name, type } = declaration;
  switch (type) {
    case 'string':
      return text;
    case 'bool':
      if (text === 'on' || text === 'yes' || text === 'true' || text === 'y') return true;
      if (text === 'off' || text === 'no' || text === 'false' || text === 'n') return false;
      throw new ImageError('invalid', `Parameter '${name}' expects 'on' or 'off'`);
    case 'number': {
      if (!/^\s*[+-]?(0x[0-9a-f]+|\d+)$/i.test(text)) {
        throw new ImageError('invalid', `Parameter '${name}' expects a number`);
      }
      const negative = /^\s*-/.test(text);
      const magnitude = BigInt(text.trim().replace(/^[+-]/, ''));
      if (magnitude >= TWO_64) {
        throw new ImageError('invalid', `Value '${text}' is too large for parameter '${name}'`);
      }
      // As strtoull has it, and with it the reference: -1 is the largest number there is.
      return Number(negative ? BigInt.asUintN(64, -magnitude) : magnitude);
    }
    case 'size': {
      const value = parseSize(text, declaration.inexact === true ? LARGEST_64 : undefined);
      if (value === undefined) {
        throw new ImageError('invalid', `Parameter '${name}' expects a non-negative number below 2^64`, {
          hint: 'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.',
        });
      }
      if (Number.isNaN(value)) {
        throw new ImageError('invalid', `Value '${text}' is out of range for parameter '${name}'`);
      }
      return value;
    }
  }
}
