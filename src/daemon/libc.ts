/** C library calls that Node lacks and the main thread needs; the engine has its own in storage/host. */
import { createRequire } from 'node:module';
import type * as Koffi from 'koffi';

/** The function with this C prototype; undefined where koffi or the function is not to be had. */
export function libcFunction<F extends (...args: number[]) => number>(prototype: string): F | undefined {
  try {
    const koffi = createRequire(import.meta.url)('koffi') as typeof Koffi;
    // Null: what the process has loaded already, the C library among it.
    return koffi.load(null).func(prototype) as unknown as F;
  } catch {
    return undefined;
  }
}

/** Ends the process at once, as the engine's function of this name does. What is buffered must be flushed. */
export function exitNow(code: number): never {
  libcFunction<(code: number) => number>('int _exit(int code)')?.(code);
  process.exit(code);
}
