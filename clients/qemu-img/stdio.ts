/** Writing to the descriptors themselves: all of it is out when the call returns, so that the program may exit at once. */
import { writeSync } from 'node:fs';

/** SIGPIPE's number and 128: what a shell shows for a program whose reader went away. */
const EXIT_SIGPIPE = 141;

/** Writes all of `text`; waits where the descriptor is a pipe that was set not to block. */
export function write(descriptor: 1 | 2, text: string): void {
  let rest: Uint8Array = Buffer.from(text);
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(descriptor, rest));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EAGAIN') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2);
      else if (code === 'EPIPE') process.exit(EXIT_SIGPIPE);
      else return;
    }
  }
}
