/**
 * Converts an image and shows how far it is: `node convert.js SOURCE TARGET [SOCKET]`. The target is qcow2.
 * In a program of your own: `import { connect, isImgdError } from 'imgd/sdk'`.
 */
import { connect, isImgdError } from '../index.js';

const [source, target, socket] = process.argv.slice(2);
if (source === undefined || target === undefined) throw new Error('usage: convert.js SOURCE TARGET [SOCKET]');

const client = await connect(socket === undefined ? {} : { socket });
try {
  const job = await client.start('image-convert', {
    // Relative names are the daemon's, unless it is told where this program stands.
    cwd: process.cwd(),
    sources: [{ filename: source }],
    target: { filename: target, format: 'qcow2' },
  });
  for await (const { phase, percent, eta } of job.progress()) {
    console.log(`${phase}: ${percent.toFixed(1)} %${eta === undefined ? '' : `, ${Math.ceil(eta)} s left`}`);
  }
  const { size, written, zeros } = await job.result();
  console.log(`done: ${size} bytes, ${written} copied, ${zeros} zeros`);
} catch (error) {
  if (!isImgdError(error)) throw error;
  // `kind` is for programs, the message for people.
  if (isImgdError(error, 'locked') && error.holder !== undefined) {
    console.error(`in use by ${error.holder.command} (${error.holder.pid})`);
  }
  console.error(`${error.kind}: ${error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
