/**
 * Compares two images for at most so many seconds: `node cancel.js IMAGE IMAGE SECONDS [SOCKET]`. Aborting the signal of a call that
 * waits cancels its job; the call ends when the job has, with its locks gone.
 */
import { connect, isImgdError } from '../index.js';

const [a, b, seconds, socket] = process.argv.slice(2);
if (a === undefined || b === undefined || !(Number(seconds) >= 0)) {
  throw new Error('usage: cancel.js IMAGE IMAGE SECONDS [SOCKET]');
}
const client = await connect(socket === undefined ? {} : { socket });
try {
  const { identical, text } = await client.imageCompare(
    { cwd: process.cwd(), a: { filename: a }, b: { filename: b } },
    // A real program would not slow the job down: this one's images are small.
    { signal: AbortSignal.timeout(Number(seconds) * 1000), job: { 'rate-limit': 1024 * 1024 } },
  );
  console.log(identical ? 'the same' : text.trim());
} catch (error) {
  if (!isImgdError(error, 'cancelled')) throw error;
  console.log(`not known after ${seconds} s`);
  process.exitCode = 2;
} finally {
  client.close();
}
