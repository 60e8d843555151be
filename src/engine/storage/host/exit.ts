/**
 * The end of the process. Node's own way joins V8's threads, whatever they are compiling, though nobody will run it; and
 * one that waits for a garbage collection of the main thread is waited for without end (nodejs/node#54918, #64274).
 */

let atOnce: ((code: number) => void) | undefined;

/** The C library's _exit(2), from whoever has loaded it. */
export function offerExit(call: (code: number) => void): void {
  atOnce = call;
}

/** Ends the process at once, with nothing run any more. All output must be written. */
export function exitNow(code: number): never {
  atOnce?.(code);
  process.exit(code);
}
