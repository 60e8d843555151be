// Fake operations for tests of the daemon. `image-check` does what its filename says: `VERB:ARGUMENT:...`.
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ResultAsync } from 'neverthrow';

const dist = resolve(process.env.IMGD_DIST ?? 'dist');
// Not by an await of the module: V8 aborts where a thread is stopped that is at one.
const loading = import(pathToFileURL(`${dist}/src/engine/error.js`).href);
let errors;

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

const verbs = {
  /** Answers with what it was given. */
  echo: (_, context, params) => ({ params, cwd: context.cwd, policy: context.policy }),
  /** `steps:COUNT:BYTES:MS`: so many units of work, each paced, each reported. */
  async steps([count, bytes, ms], context) {
    const total = count * bytes;
    for (let done = 0; done < count; done++) {
      await context.pace(Number(bytes));
      if (Number(ms) > 0) await sleep(Number(ms));
      context.progress({
        phase: 'copy',
        done: (done + 1) * bytes,
        total,
        written: (done + 1) * bytes,
        zeros: 0,
      });
    }
    return { total };
  },
  /** `limited:COUNT:BYTES:RATE`: sets its own rate, as `convert -r` does. */
  async limited([count, bytes, rate], context) {
    context.setRate(Number(rate));
    return verbs.steps([count, bytes, 0], context);
  },
  /** `burn:MS`: uses a core without leaving the microtask queue, but for pace. */
  async burn([ms], context) {
    const end = performance.now() + Number(ms);
    let x = 0;
    while (performance.now() < end) {
      for (let i = 0; i < 200_000; i++) x = (x * 31 + i) | 0;
      await context.pace(4096);
      context.progress({
        phase: 'burn',
        done: Math.max(0, Number(ms) - (end - performance.now())) | 0,
        total: Number(ms),
      });
    }
    return { x };
  },
  /** Looks at nothing for ever. */
  spin() {
    for (;;);
  },
  /** Waits for ever, deaf to the signal. */
  deaf: () => new Promise(() => setInterval(() => undefined, 1000)),
  crash: () => {
    setTimeout(() => {
      throw new Error('crash on purpose');
    }, 1);
    return new Promise(() => undefined);
  },
  exit: () => process.exit(3),
  memory() {
    const held = [];
    for (;;) held.push(new Array(1000).fill({ some: 'thing' }).map((each, at) => ({ ...each, at })));
  },
  bug: () => {
    throw new TypeError('a bug on purpose');
  },
  fail: () => {
    throw new errors.ImageError('no-space', 'error while writing: No space left on device', {
      path: '/x/y.qcow2',
      offset: 65536,
      errno: 'ENOSPC',
      hint: 'make room',
      check: 'space',
    });
  },
  /** `lines:COUNT:LENGTH`: so many lines of text, stderr for each tenth. */
  async lines([count, length], context) {
    for (let n = 0; n < count; n++) {
      await context.pace(0);
      const text = `${String(n).padEnd(Number(length), '.')}\n`;
      context.output({ stream: n % 10 === 9 ? 'stderr' : 'stdout', text });
    }
    return { count: Number(count) };
  },
  /** `entries:COUNT`: map entries, many at once. */
  async entries([count], context) {
    const entries = [];
    for (let n = 0; n < count; n++) {
      entries.push({
        start: n * 65536,
        length: 65536,
        depth: 0,
        present: true,
        zero: false,
        data: true,
        compressed: false,
      });
    }
    context.output({ stream: 'entries', entries });
    return { count: Number(count) };
  },
  /** Success a while after all is done, as a flush takes. */
  async flush([ms], context) {
    context.progress({ phase: 'copy', done: 1000, total: 1000 });
    await sleep(Number(ms));
    return {};
  },
};

export function runOperation(name, params, context) {
  const filename = params.image?.filename ?? 'echo';
  const [verb, ...args] = filename.split(':');
  return ResultAsync.fromPromise(
    (async () => {
      errors ??= await loading;
      return (verbs[verb] ?? verbs.echo)(args, context, { name, ...params });
    })(),
    (error) => errors.toImageError(error),
  );
}
