/**
 * Locks on byte ranges of one node. Exclusive: two writers to one allocation unit queue, others do not meet. Shared, for
 * reading: what a reader was told of the place of its bytes holds until it has them, since a writer that moves them waits.
 */

interface Held {
  readonly start: number;
  readonly end: number;
  readonly shared: boolean;
  readonly waiters: (() => void)[];
}

export class RangeLock {
  readonly #held: Held[] = [];
  /** Exclusive locks that are waited for: later readers let them go first. */
  readonly #wanted: { readonly start: number; readonly end: number }[] = [];

  #conflict(start: number, end: number, shared: boolean): Held | undefined {
    for (const held of this.#held) {
      if (held.start < end && start < held.end && !(shared && held.shared)) return held;
    }
    return undefined;
  }

  /** Waits until no holder overlaps [start, end), then holds it; call what it gives to let go. */
  async acquire(start: number, end: number): Promise<() => void> {
    const wanted = { start, end };
    this.#wanted.push(wanted);
    try {
      for (;;) {
        const release = this.tryAcquire(start, end);
        if (release !== undefined) return release;
        const conflict = this.#conflict(start, end, false)!;
        await new Promise<void>((resolve) => conflict.waiters.push(resolve));
      }
    } finally {
      this.#wanted.splice(this.#wanted.indexOf(wanted), 1);
    }
  }

  /** As `acquire`, at once or not at all. */
  tryAcquire(start: number, end: number): (() => void) | undefined {
    if (this.#held.length > 0 && this.#conflict(start, end, false) !== undefined) return undefined;
    return this.#hold(start, end, false);
  }

  /** Waits for writers alone. */
  async acquireShared(start: number, end: number): Promise<() => void> {
    for (;;) {
      const release = this.tryAcquireShared(start, end);
      if (release !== undefined) return release;
      // A writer that waits has something to wait for: there is a holder to wake both.
      const conflict = this.#conflict(start, end, true) ?? this.#before(start, end);
      await (conflict === undefined
        ? new Promise<void>((resolve) => setImmediate(resolve))
        : new Promise<void>((resolve) => conflict.waiters.push(resolve)));
    }
  }

  tryAcquireShared(start: number, end: number): (() => void) | undefined {
    if (this.#held.length > 0 || this.#wanted.length > 0) {
      for (const wanted of this.#wanted) if (wanted.start < end && start < wanted.end) return undefined;
      if (this.#conflict(start, end, true) !== undefined) return undefined;
    }
    return this.#hold(start, end, true);
  }

  /** A holder that a waiting writer, for whom [start, end) waits, waits for itself. */
  #before(start: number, end: number): Held | undefined {
    for (const wanted of this.#wanted) {
      if (wanted.start < end && start < wanted.end) return this.#conflict(wanted.start, wanted.end, false);
    }
    return undefined;
  }

  #hold(start: number, end: number, shared: boolean): () => void {
    const held: Held = { start, end, shared, waiters: [] };
    this.#held.push(held);
    return () => {
      const index = this.#held.indexOf(held);
      if (index < 0) return;
      this.#held.splice(index, 1);
      for (const wake of held.waiters) wake();
    };
  }
}
