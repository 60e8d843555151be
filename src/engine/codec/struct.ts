/**
 * On-disk structures as data. A structure is declared once, in file order; the declaration gives the TypeScript type,
 * decode, encode, the size and each field's offset.
 */
import { ImageError } from '../error.js';

interface Field<T> {
  readonly bytes: number;
  get(view: DataView, at: number, little: boolean): T;
  set(view: DataView, at: number, value: T, little: boolean): void;
}

export const u8: Field<number> = {
  bytes: 1,
  get: (view, at) => view.getUint8(at),
  set: (view, at, value) => view.setUint8(at, value),
};
export const u16: Field<number> = {
  bytes: 2,
  get: (view, at, little) => view.getUint16(at, little),
  set: (view, at, value, little) => view.setUint16(at, value, little),
};
export const u32: Field<number> = {
  bytes: 4,
  get: (view, at, little) => view.getUint32(at, little),
  set: (view, at, value, little) => view.setUint32(at, value, little),
};
export const i32: Field<number> = {
  bytes: 4,
  get: (view, at, little) => view.getInt32(at, little),
  set: (view, at, value, little) => view.setInt32(at, value, little),
};
export const u64: Field<bigint> = {
  bytes: 8,
  get: (view, at, little) => view.getBigUint64(at, little),
  set: (view, at, value, little) => view.setBigUint64(at, value, little),
};
/** A fixed run of bytes: padding, UUIDs, names. Decoded as a copy. */
export function bytes(length: number): Field<Uint8Array> {
  return {
    bytes: length,
    get: (view, at) => new Uint8Array(view.buffer, view.byteOffset + at, length).slice(),
    set: (view, at, value) => {
      const into = new Uint8Array(view.buffer, view.byteOffset + at, length);
      into.fill(0);
      into.set(value.subarray(0, length));
    },
  };
}

type Fields = Readonly<Record<string, Field<never> | Field<number> | Field<bigint> | Field<Uint8Array>>>;
export type Decoded<F extends Fields> = { -readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never };

export interface Struct<F extends Fields> {
  readonly size: number;
  /** Byte offset of a field from the structure's start. */
  offsetOf(field: keyof F): number;
  /** The caller has made sure that `size` bytes are there. */
  decode(from: Uint8Array, at?: number): Decoded<F>;
  /** Fields that are not given become zeros. */
  encode(values: Partial<Decoded<F>>): Uint8Array;
  /** Encodes into an existing buffer, all fields. */
  encodeInto(values: Partial<Decoded<F>>, into: Uint8Array, at?: number): void;
}

/** Declares a packed structure (no alignment padding but what is declared). */
export function struct<F extends Fields>(endian: 'big' | 'little', fields: F): Struct<F> {
  const little = endian === 'little';
  const names = Object.keys(fields) as (keyof F & string)[];
  const offsets = new Map<keyof F, number>();
  let size = 0;
  for (const name of names) {
    offsets.set(name, size);
    size += fields[name]!.bytes;
  }
  const self: Struct<F> = {
    size,
    offsetOf: (field) => offsets.get(field)!,
    decode(from, at = 0) {
      const view = new DataView(from.buffer, from.byteOffset + at, size);
      const out: Record<string, unknown> = {};
      for (const name of names) out[name] = fields[name]!.get(view, offsets.get(name)!, little);
      return out as Decoded<F>;
    },
    encode(values) {
      const out = new Uint8Array(size);
      self.encodeInto(values, out);
      return out;
    },
    encodeInto(values, into, at = 0) {
      const view = new DataView(into.buffer, into.byteOffset + at, size);
      into.fill(0, at, at + size);
      for (const name of names) {
        const value = values[name];
        if (value !== undefined) {
          (fields[name] as Field<unknown>).set(view, offsets.get(name)!, value, little);
        }
      }
    },
  };
  return self;
}

/** Narrows a 64-bit value from disk to a number; `what` names it in the error. */
export function toSafe(value: bigint, what: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new ImageError('limit', `${what} is too large: ${value}`);
  }
  return Number(value);
}
