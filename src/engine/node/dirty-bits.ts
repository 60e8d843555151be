/** The bits of one bitmap in memory, in pages, where pages of zeros and of ones take no memory. */

/** Bit n of the bitmap is bit n % 8 of byte n / 8. */
export class Bits {
  readonly granularity: number;
  readonly pageBytes: number;
  /** Pages that are not all zeros. Those that are `#ones` are shared: they are copied before they are changed. */
  readonly #pages = new Map<number, Uint8Array>();
  readonly #ones: Uint8Array;

  constructor(granularity: number, pageBytes: number) {
    this.granularity = granularity;
    this.pageBytes = pageBytes;
    this.#ones = new Uint8Array(pageBytes).fill(0xff);
  }

  /** Guest bytes that one page speaks of. */
  get pageSpan(): number {
    return this.pageBytes * 8 * this.granularity;
  }

  setPage(index: number, page: Uint8Array | 'ones'): void {
    this.#pages.set(index, page === 'ones' ? this.#ones : page);
  }

  /** Undefined where all of its bits are clear. */
  page(index: number): Uint8Array | 'ones' | undefined {
    const page = this.#pages.get(index);
    return page === this.#ones ? 'ones' : page;
  }

  /** Sets the bits that are set in a page. */
  addPage(index: number, page: Uint8Array | 'ones'): void {
    if (page === 'ones') this.setPage(index, page);
    else {
      const own = this.#own(index);
      for (let byte = 0; byte < own.byteLength; byte++) own[byte]! |= page[byte]!;
    }
  }

  /** The pages that are not known to be zeros, in order. */
  pages(): [number, Uint8Array | 'ones'][] {
    const found = [...this.#pages.keys()].sort((a, b) => a - b);
    return found.map((index) => [index, this.page(index)!]);
  }

  clear(): void {
    this.#pages.clear();
  }

  /** Sets the bits of all granules that the guest bytes [at, end) touch. */
  mark(at: number, end: number): void {
    if (at >= end) return;
    const pageBits = this.pageBytes * 8;
    const first = Math.floor(at / this.granularity);
    const last = Math.floor((end - 1) / this.granularity);
    for (let index = Math.floor(first / pageBits); index <= Math.floor(last / pageBits); index++) {
      const base = index * pageBits;
      const from = Math.max(0, first - base);
      const to = Math.min(pageBits, last - base + 1);
      if (to - from === pageBits) this.#pages.set(index, this.#ones);
      else setBits(this.#own(index), from, to);
    }
  }

  /** A page that may be changed. */
  #own(index: number): Uint8Array {
    let page = this.#pages.get(index);
    if (page === undefined) page = new Uint8Array(this.pageBytes);
    else if (page === this.#ones) page = page.slice();
    else return page;
    this.#pages.set(index, page);
    return page;
  }

  /** Bytes of the granules whose bits are set. */
  dirtyBytes(): number {
    let bits = 0;
    for (const [, page] of this.pages()) bits += page === 'ones' ? this.pageBytes * 8 : bitsIn(page);
    return bits * this.granularity;
  }

  /** Forgets what lies from the guest byte `size` on. */
  truncate(size: number): void {
    const bits = Math.ceil(size / this.granularity);
    const pageBits = this.pageBytes * 8;
    for (const index of [...this.#pages.keys()]) {
      const left = bits - index * pageBits;
      if (left <= 0) this.#pages.delete(index);
      else if (left < pageBits) {
        const page = this.#own(index);
        if (left % 8 !== 0) page[left >>> 3]! &= (1 << (left % 8)) - 1;
        page.fill(0, Math.ceil(left / 8));
      }
    }
  }

  /** Runs of guest bytes whose bits are set: [at, end). */
  *runs(): Generator<readonly [number, number]> {
    const { granularity } = this;
    let start = -1;
    let end = -1;
    for (const [index, page] of this.pages()) {
      const base = index * this.pageBytes * 8;
      if (start >= 0 && end !== base) {
        yield [start * granularity, end * granularity];
        start = -1;
      }
      if (page === 'ones') {
        if (start < 0) start = base;
        end = base + this.pageBytes * 8;
        continue;
      }
      for (let byte = 0; byte < page.byteLength; byte++) {
        const value = page[byte]!;
        if (value === 0 && start < 0) continue;
        for (let bit = 0; bit < 8; bit++) {
          const at = base + byte * 8 + bit;
          if (((value >>> bit) & 1) !== 0) {
            if (start < 0) start = at;
            end = at + 1;
          } else if (start >= 0) {
            yield [start * granularity, end * granularity];
            start = -1;
          }
        }
      }
    }
    if (start >= 0) yield [start * granularity, end * granularity];
  }
}

export function bitsIn(page: Uint8Array): number {
  let count = 0;
  for (let byte of page) {
    for (; byte !== 0; byte &= byte - 1) count++;
  }
  return count;
}

function setBits(page: Uint8Array, from: number, to: number): void {
  const first = Math.ceil(from / 8) * 8;
  const last = to - (to % 8);
  if (first >= last) {
    for (let bit = from; bit < to; bit++) page[bit >>> 3]! |= 1 << (bit & 7);
    return;
  }
  for (let bit = from; bit < first; bit++) page[bit >>> 3]! |= 1 << (bit & 7);
  page.fill(0xff, first / 8, last / 8);
  for (let bit = last; bit < to; bit++) page[bit >>> 3]! |= 1 << (bit & 7);
}
