/** A set of whole numbers that lie in few runs. */
export class Spans {
  /** Where runs begin and end, in turns, in order: [0, 5) and [7, 8) are 0, 5, 7, 8. */
  readonly #bounds: number[] = [];

  /** The first bound that is `value` or more; with `past`, that is more. */
  #find(value: number, past: boolean): number {
    const bounds = this.#bounds;
    let low = 0;
    let high = bounds.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const bound = bounds[middle]!;
      if (bound < value || (past && bound === value)) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #replace(from: number, to: number, parity: 0 | 1): void {
    if (to <= from) return;
    const first = this.#find(from, false);
    const after = this.#find(to, true);
    const bounds = [...(first % 2 === parity ? [from] : []), ...(after % 2 === parity ? [to] : [])];
    this.#bounds.splice(first, after - first, ...bounds);
  }

  /** [from, to) is in it after. */
  add(from: number, to: number): void {
    this.#replace(from, to, 0);
  }

  /** [from, to) is not in it after. */
  remove(from: number, to: number): void {
    this.#replace(from, to, 1);
  }

  /** Whether `at` is in it, and where that changes next. */
  run(at: number): { readonly inside: boolean; readonly end: number } {
    const next = this.#find(at, true);
    return { inside: next % 2 === 1, end: this.#bounds[next] ?? Number.POSITIVE_INFINITY };
  }

  *runs(): Generator<readonly [number, number]> {
    for (let i = 0; i < this.#bounds.length; i += 2) yield [this.#bounds[i]!, this.#bounds[i + 1]!];
  }
}
