/**
 * A queue before libuv's thread pool for codec calls. koffi refuses more than 256 calls in flight, each call in flight holds
 * a codec state (256 KiB for deflate), and a pool that is full of codec work would keep file requests waiting.
 */
const IN_FLIGHT = 16;

/** Up to this many bytes of output, inflating takes about as long as handing the work to another thread (60 us). */
const SMALL = 256 * 1024;
let turn = false;

/**
 * Whether a unit that inflates to `bytes` is done in the caller's thread: of small ones every second, so that this thread
 * and the pool share them.
 */
export function inflatesHere(bytes: number): boolean {
  if (bytes > SMALL) return false;
  turn = !turn;
  return turn || running >= IN_FLIGHT;
}

let running = 0;
const waiting: (() => void)[] = [];

/** Runs `work`, which makes one call on the thread pool, when it is its turn. */
export async function onThreadPool<T>(work: () => Promise<T>): Promise<T> {
  if (running >= IN_FLIGHT) await new Promise<void>((resolve) => waiting.push(resolve));
  else running++;
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    // The place is handed over, so that nobody slips in between.
    if (next === undefined) running--;
    else next();
  }
}
