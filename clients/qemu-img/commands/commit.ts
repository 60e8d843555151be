import { cacheMode, help, imageOpts, imageRef, objectParams, objects, quiet } from '../common-options.js';
import { command } from '../declare.js';
import { usage } from '../errors.js';
import { parseNumber } from '../numbers.js';
import { type ProgressLine, progressLine } from '../progress.js';

export default command({
  name: 'commit',
  doc: 'Write the changes in an image into its backing file',
  usage: [
    '[-f FMT | --image-opts] [-t CACHE_MODE] [-b BASE_IMG] [-d]',
    '[-r RATE] [-p] [-q] [--object OBJDEF] FILENAME',
  ],
  options: {
    help,
    quiet,
    objects: objects(),
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    imageOpts,
    cache: {
      short: 't',
      long: ['cache'],
      argument: 'CACHE_MODE',
      doc: 'cache mode of the images (default writeback)',
    },
    drop: { short: 'd', long: ['drop'], doc: 'do not empty FILENAME afterwards' },
    base: {
      short: 'b',
      long: ['base'],
      argument: 'BASE_IMG',
      doc: 'the image in the backing chain to write into, instead of the first below FILENAME; implies --drop',
    },
    progress: { short: 'p', long: ['progress'], doc: 'show a progress line' },
    rate: {
      short: 'r',
      long: ['rate'],
      argument: 'RATE',
      doc: 'bytes a second at most',
      parse: (text: string) => parseNumber('rate limit', text, 0),
    },
  },
  positional: [{ name: 'FILENAME', doc: 'the image whose changes are written' }],
  async run(values, [name, ...more], shell) {
    if (name === undefined || more.length > 0) throw usage('commit', 'Expecting one image file name');
    const cache = cacheMode('cache', values.cache);
    const image = imageRef(name, { ...values, cache });
    const shown = values.progress === true && !values.quiet;
    // The line begins when the image is open.
    let progress: ProgressLine | undefined;
    const line = () => {
      progress ??= progressLine(shell, shown, 1);
      return progress;
    };
    try {
      await shell.request(
        'image-commit',
        {
          ...objectParams(values.objects),
          image,
          ...(values.base === undefined ? {} : { base: values.base }),
          ...(values.drop ? { drop: true } : {}),
          ...(values.rate && values.rate < Number.MAX_SAFE_INTEGER ? { 'rate-limit': values.rate } : {}),
        },
        { onProgress: (report) => line().report(report) },
      );
      line().start();
      line().complete();
    } finally {
      progress?.end();
    }
    if (!values.quiet) shell.out('Image committed.\n');
    return 0;
  },
});
