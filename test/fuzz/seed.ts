/** What the mutator starts from: a valid image, and where its fields and tables are. */
import type { Struct } from '../../src/engine/codec/struct.js';

export interface Field {
  readonly name: string;
  readonly at: number;
  /** Bytes: 1, 2, 4 or 8. */
  readonly width: number;
  readonly little: boolean;
}

export interface Table {
  readonly name: string;
  readonly at: number;
  readonly count: number;
  /** Bytes of an entry. */
  readonly width: number;
  readonly little: boolean;
}

/** Text inside a file; `fixed` text has bytes after it that must stay where they are. */
export interface TextRange {
  readonly at: number;
  readonly length: number;
  readonly fixed: boolean;
}

export interface SeedFile {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly fields: readonly Field[];
  readonly tables: readonly Table[];
  readonly texts: readonly TextRange[];
  /** Where the bytes above are only the parts of a file (decoded tables): makes the file of the mutated parts. */
  readonly assemble?: (parts: Uint8Array) => Uint8Array;
}

/** The first file is the image, the others are what it names. */
export interface Seed {
  readonly name: string;
  readonly files: readonly SeedFile[];
}

type AnyStruct = Pick<Struct<never>, 'size'> & {
  decode(from: Uint8Array, at?: number): object;
  offsetOf(field: never): number;
};

/** The fields of a declared structure that stands at `at`; byte runs that are no number are left out. */
export function fieldsOf(name: string, declared: AnyStruct, at: number, little: boolean): Field[] {
  const names = Object.keys(declared.decode(new Uint8Array(declared.size)));
  const offsets = names.map((field) => declared.offsetOf(field as never));
  return names
    .map((field, i) => ({
      name: `${name}.${field}`,
      at: at + offsets[i]!,
      width: (offsets[i + 1] ?? declared.size) - offsets[i]!,
      little,
    }))
    .filter(({ width }) => width === 1 || width === 2 || width === 4 || width === 8);
}
