/** Exclusive locks on byte ranges of one node: two writers to one allocation unit queue, others do not meet. */

interface Held {
  readonly start: number;
  readonly end: number;
  readonly waiters: (() => void)[];
}

export class RangeLock {
  readonly #held: Held[] = [];

  #conflict(start: number, end: number): Held | undefined {
    for (const held of this.#held) if (held.start < end && start < held.end) return held;
    return undefined;
  }

  /** Waits until no holder overlaps [start, end), then holds it; call what it gives to let go. */
  async acquire(start: number, end: number): Promise<() => void> {
    for (;;) {
      const release = this.tryAcquire(start, end);
      if (release !== undefined) return release;
      const conflict = this.#conflict(start, end)!;
      await new Promise<void>((resolve) => conflict.waiters.push(resolve));
    }
  }

  /** As `acquire`, at once or not at all. */
  tryAcquire(start: number, end: number): (() => void) | undefined {
    if (this.#conflict(start, end) !== undefined) return undefined;
    const held: Held = { start, end, waiters: [] };
    this.#held.push(held);
    return () => {
      const index = this.#held.indexOf(held);
      if (index < 0) return;
      this.#held.splice(index, 1);
      for (const wake of held.waiters) wake();
    };
  }
}
