/**
 * Asks again, once what has to be waited for is there, until the answer is no promise. Attempts are synchronous, so that
 * what they look at in memory holds until they act on it; a promise of theirs says no more than when to come again.
 */
export async function later<T>(
  pending: Promise<unknown>,
  attempt: () => T | Promise<unknown>,
): Promise<Awaited<T>> {
  for (let waiting = pending; ; ) {
    await waiting;
    const found = attempt();
    if (!(found instanceof Promise)) return found as Awaited<T>;
    waiting = found;
  }
}
