/** Sets of places in the image file that are asked whether a range of bytes meets one of them. */

interface Place {
  readonly at: number;
  readonly length: number;
}

/** How many of the ordered starts are below `to`. */
function countBelow(starts: Float64Array, to: number): number {
  let low = 0;
  let high = starts.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (starts[middle]! < to) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Byte ranges of any length. */
export class Ranges {
  /** In order. */
  readonly #starts: Float64Array;
  /** The highest end of the ranges up to each. */
  readonly #ends: Float64Array;

  constructor(places: readonly Place[]) {
    const used = places.filter(({ length }) => length > 0).sort((one, other) => one.at - other.at);
    this.#starts = Float64Array.from(used, ({ at }) => at);
    let end = 0;
    this.#ends = Float64Array.from(used, ({ at, length }) => {
      end = Math.max(end, at + length);
      return end;
    });
  }

  meet(from: number, to: number): boolean {
    const below = countBelow(this.#starts, to);
    return below > 0 && this.#ends[below - 1]! > from;
  }

  some(test: (from: number, to: number) => boolean): boolean {
    return this.#starts.some((from, index) => test(from, this.#ends[index]!));
  }
}

/** The offsets that the entries of a table have, those that have none left out. */
export function clusterStarts(
  table: Uint32Array,
  offset: (table: Uint32Array, index: number) => number,
): Float64Array {
  const entries = table.length / 2;
  let used = 0;
  for (let index = 0; index < entries; index++) if (offset(table, index) !== 0) used += 1;
  const starts = new Float64Array(used);
  used = 0;
  for (let index = 0; index < entries; index++) {
    const at = offset(table, index);
    if (at !== 0) starts[used++] = at;
  }
  return starts;
}

/** Tables of one cluster each, which may be very many: their starts only. */
export class Clusters {
  readonly #starts: Float64Array;
  readonly #length: number;

  /** The starts are sorted in place. */
  constructor(starts: Float64Array, length: number) {
    this.#starts = starts.sort();
    this.#length = length;
  }

  meet(from: number, to: number): boolean {
    const below = countBelow(this.#starts, to);
    return below > 0 && this.#starts[below - 1]! + this.#length > from;
  }

  some(test: (from: number, to: number) => boolean): boolean {
    return this.#starts.some((from) => test(from, from + this.#length));
  }
}
