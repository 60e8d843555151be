import { cacheMode, forceShare, help, imageOpts, imageRef, quiet } from '../common-options.js';
import { command } from '../declare.js';
import { Exit, usage } from '../errors.js';
import { parseNumber, parsePlainNumber } from '../numbers.js';

const MAX_INT = 2147483647;

/** A count, which takes no suffix. */
function count(what: string, min: number, max = MAX_INT) {
  return (text: string) => parsePlainNumber(what, text, min, max);
}
/** A number of bytes. */
function bytes(what: string, min: number, max = Number.POSITIVE_INFINITY) {
  return (text: string) => parseNumber(what, text, min, max);
}

export default command({
  name: 'bench',
  doc: 'Time requests to an image',
  usage: [
    '[-f FMT | --image-opts] [-t CACHE] [-c COUNT] [-d DEPTH] [-o OFFSET]',
    '[-s BUFFER_SIZE] [-S STEP_SIZE] [-i AIO] [-n] [-U] [-q]',
    '[-w [--pattern PATTERN] [--flush-interval INTERVAL [--no-drain]]] FILENAME',
  ],
  options: {
    help,
    quiet: { ...quiet, doc: 'accepted; the result is shown all the same' },
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    imageOpts,
    cache: { short: 't', long: ['cache'], argument: 'CACHE', doc: 'cache mode (default writeback)' },
    count: {
      short: 'c',
      long: ['count'],
      argument: 'COUNT',
      doc: 'requests in all (default 75000)',
      parse: count('request count', 1),
    },
    depth: {
      short: 'd',
      long: ['depth'],
      argument: 'DEPTH',
      doc: 'requests at a time (default 64)',
      parse: count('queue depth', 1),
    },
    offset: {
      short: 'o',
      long: ['offset'],
      argument: 'OFFSET',
      doc: 'where the first request begins (default 0)',
      parse: bytes('offset', 0),
    },
    bufferSize: {
      short: 's',
      long: ['buffer-size'],
      argument: 'BUFFER_SIZE',
      doc: 'bytes of a request (default 4k)',
      parse: bytes('buffer size', 1, MAX_INT),
    },
    step: {
      short: 'S',
      long: ['step-size'],
      argument: 'STEP_SIZE',
      doc: 'from the start of a request to that of the next (default BUFFER_SIZE)',
      parse: bytes('step size', 0, MAX_INT),
    },
    write: { short: 'w', long: ['write'], doc: 'write, where it would read: the content is overwritten' },
    pattern: {
      long: ['pattern'],
      argument: 'PATTERN',
      doc: 'the byte that is written (default 0)',
      parse: count('pattern byte', 0, 255),
    },
    flushInterval: {
      long: ['flush-interval'],
      argument: 'FLUSH_INTERVAL',
      doc: 'flush after so many writes; not smaller than DEPTH',
      parse: count('flush interval', 0),
    },
    noDrain: { long: ['no-drain'], doc: 'do not wait for the requests under way before a flush' },
    aio: {
      short: 'i',
      long: ['aio'],
      argument: 'AIO',
      doc: "'threads', 'native' or 'io_uring'; checked, and without effect",
      parse(text: string): 'threads' | 'native' | 'io_uring' {
        if (text === 'threads' || text === 'native' || text === 'io_uring') return text;
        throw new Exit(1, `Invalid aio option: ${text}`);
      },
    },
    native: {
      short: 'n',
      long: ['native'],
      doc: 'as --aio=native: needs a cache mode without the page cache',
    },
    forceShare,
  },
  positional: [{ name: 'FILENAME', doc: 'the image' }],
  async run(values, [name, ...more], shell) {
    if (name === undefined || more.length > 0) throw usage('bench', 'Expecting one image file name');
    const interval = values.flushInterval;
    if (!values.write && interval) throw new Exit(1, '--flush-interval is only available in write tests');
    if (interval && interval < (values.depth ?? 64)) {
      throw new Exit(1, "Flush interval can't be smaller than depth");
    }
    const offset = values.offset;
    const { seconds } = await shell.request('image-bench', {
      image: imageRef(name, { ...values, cache: benchCache(values.cache) }),
      ...(values.count === undefined ? {} : { count: values.count }),
      ...(values.depth === undefined ? {} : { depth: values.depth }),
      ...(values.bufferSize === undefined ? {} : { 'buffer-size': values.bufferSize }),
      ...(offset === undefined ? {} : { offset: Math.min(offset, Number.MAX_SAFE_INTEGER) }),
      ...(values.step === undefined ? {} : { step: values.step }),
      ...(values.write ? { write: true } : {}),
      ...(values.pattern === undefined ? {} : { pattern: values.pattern }),
      ...(interval === undefined ? {} : { 'flush-interval': interval }),
      ...(values.noDrain ? { 'no-drain': true } : {}),
      ...(values.native ? { aio: 'native' as const } : values.aio === undefined ? {} : { aio: values.aio }),
    });
    shell.out(`Run completed in ${seconds.toFixed(3)} seconds.\n`);
    return 0;
  },
});

function benchCache(text: string | undefined) {
  try {
    return cacheMode('cache', text);
  } catch {
    throw new Exit(1, 'Invalid cache mode');
  }
}
