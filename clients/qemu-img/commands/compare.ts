import { isatty } from 'node:tty';
import {
  cacheMode,
  forceShare,
  help,
  imageOpts,
  imageRef,
  objectParams,
  objects,
  quiet,
} from '../common-options.js';
import { command } from '../declare.js';
import { Exit, RequestError, usage } from '../errors.js';
import { progressLine } from '../progress.js';

/** 1: they differ. Anything that went wrong is 2 or more. */
const EXIT = { differ: 1, failed: 2, status: 3, read: 4 } as const;

export default command({
  name: 'compare',
  doc: 'Tell whether two images have the same guest content',
  usage: [
    '[--image-opts | [-f FMT] [-F FMT]] [-s] [-T CACHE]',
    '[-U] [-p] [-q] [--object OBJDEF] FILENAME1 FILENAME2',
  ],
  options: {
    help,
    quiet,
    objects: objects(EXIT.failed),
    cache: { short: 'T', long: ['cache'], argument: 'CACHE', doc: 'cache mode (default writeback)' },
    imageOpts,
    formatA: {
      short: 'f',
      long: ['a-format', 'left-format'],
      argument: 'FMT',
      doc: 'the format of FILENAME1; probed where not given',
    },
    formatB: {
      short: 'F',
      long: ['b-format', 'right-format'],
      argument: 'FMT',
      doc: 'the format of FILENAME2; probed where not given',
    },
    forceShare,
    strict: {
      short: 's',
      long: ['strict'],
      doc: 'different sizes or a different allocation are differences',
    },
    progress: { short: 'p', long: ['progress'], doc: 'show a progress line' },
  },
  exitCodes: {
    0: 'the images are the same',
    [EXIT.differ]: 'they differ',
    [EXIT.failed]: 'an image could not be opened, or the command line is wrong',
    [EXIT.status]: 'what is allocated in an image could not be found out',
    [EXIT.read]: 'an image could not be read',
  },
  positional: [{ name: 'FILENAME1, FILENAME2', doc: 'the images' }],
  async run(values, [nameA, nameB, ...more], shell) {
    if (nameA === undefined || nameB === undefined || more.length > 0) {
      throw usage('compare', 'Expecting two image file names');
    }
    const progress = progressLine(shell, values.progress === true && !values.quiet, 2);
    const say = values.quiet ? () => {} : shell.out;
    // As the reference's buffered output has it: in a common pipe, an error comes before what was said on the way.
    let held = '';
    try {
      const cache = cacheMode('source cache', values.cache, EXIT.failed);
      const a = imageRef(nameA, { ...values, cache, format: values.formatA }, EXIT.failed);
      const b = imageRef(nameB, { ...values, cache, format: values.formatB }, EXIT.failed);
      const { identical, text } = await shell.request(
        'image-compare',
        { ...objectParams(values.objects, EXIT.failed), a, b, ...(values.strict ? { strict: true } : {}) },
        {
          onProgress: progress.report,
          onText(stream, line) {
            if (stream === 'stderr') shell.err(line);
            else if (isatty(1)) say(line);
            else held += line;
          },
        },
      );
      progress.start();
      if (identical) progress.complete();
      say(`${held}${text.replace(/\n$/, '')}\n`);
      return identical ? 0 : EXIT.differ;
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      if (held === '') throw new Exit(exitCode(error), error.message, error.hint);
      shell.err(`qemu-img: ${error.message}\n${error.hint === undefined ? '' : `${error.hint}\n`}`);
      say(held);
      throw new Exit(exitCode(error));
    } finally {
      progress.end();
    }
  },
});

function exitCode(error: RequestError): number {
  if (error.message.startsWith('Sector allocation test failed')) return EXIT.status;
  return error.message.startsWith('Error while reading offset') ? EXIT.read : EXIT.failed;
}
