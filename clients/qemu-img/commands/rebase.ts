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
import { usage } from '../errors.js';
import { progressLine } from '../progress.js';

export default command({
  name: 'rebase',
  doc: 'Give an image another backing file, or none',
  usage: [
    '[-f FMT | --image-opts] [-t CACHE] [-q] [-U] [-p]',
    '[-b BACKING_FILENAME [-F BACKING_FMT] [-T BACKING_CACHE]] [-u]',
    '[--object OBJDEF] [-c] FILENAME',
  ],
  options: {
    help,
    quiet,
    progress: { short: 'p', long: ['progress'], doc: 'show a progress line' },
    objects: objects(),
    imageOpts,
    forceShare: { ...forceShare, doc: 'open BACKING_FILENAME although another process is writing it' },
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    cache: {
      short: 't',
      long: ['cache'],
      argument: 'CACHE',
      doc: 'cache mode of FILENAME (default writeback)',
    },
    compress: { short: 'c', long: ['compress'], doc: 'compress what is copied' },
    backing: {
      short: 'b',
      long: ['backing'],
      argument: 'BACKING_FILENAME',
      doc: 'the new backing file, relative to the folder of FILENAME; "": none',
    },
    backingFormat: {
      short: 'F',
      long: ['backing-format'],
      argument: 'BACKING_FMT',
      doc: 'the format of BACKING_FILENAME',
    },
    backingCache: {
      short: 'T',
      long: ['backing-cache'],
      argument: 'CACHE',
      doc: 'cache mode of BACKING_FILENAME (default writeback)',
    },
    unsafe: {
      short: 'u',
      long: ['backing-unsafe'],
      doc: 'only change the name: nothing is copied, and no backing file opened',
    },
  },
  positional: [{ name: 'FILENAME', doc: 'the image that gets another backing file' }],
  async run(values, [name, ...more], shell) {
    if (name === undefined || more.length > 0) throw usage('rebase', 'Expecting one image file name');
    const { backing, backingFormat } = values;
    if (!values.unsafe && backing === undefined) {
      throw usage('rebase', 'Must specify backing file (-b) or use unsafe mode (-u)');
    }
    const progress = progressLine(shell, values.progress === true && !values.quiet, 1);
    try {
      progress.start();
      const cache = cacheMode('cache', values.cache);
      const backingCache = cacheMode('source cache', values.backingCache);
      const { format, imageOpts } = values;
      const image = imageRef(name, { format, imageOpts, cache });
      await shell.request(
        'image-rebase',
        {
          ...objectParams(values.objects),
          image,
          ...(backing === undefined ? {} : { backing }),
          ...(backingFormat === undefined ? {} : { 'backing-format': backingFormat }),
          ...(backingCache === undefined ? {} : { 'backing-cache': backingCache }),
          ...(values.forceShare ? { 'backing-force-share': true } : {}),
          ...(values.unsafe ? { unsafe: true } : {}),
          ...(values.compress ? { compress: true } : {}),
        },
        { onProgress: progress.report },
      );
      progress.complete();
      return 0;
    } finally {
      progress.end();
    }
  },
});
