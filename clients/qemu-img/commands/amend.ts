import type { ImageRef } from '../../../src/protocol/commands/common.js';
import {
  cacheMode,
  formatOptions,
  help,
  imageOpts,
  imageRef,
  objectParams,
  objects,
  parseOptionList,
  quiet,
} from '../common-options.js';
import { command, type Shell } from '../declare.js';
import { Exit, usage } from '../errors.js';
import { optionLines } from '../option-help.js';
import { progressLine } from '../progress.js';

export default command({
  name: 'amend',
  doc: 'Change options of an image in place',
  usage: ['[-f FMT | --image-opts] [-t CACHE] [--force] [-p] [-q]', '[--object OBJDEF] -o OPTIONS FILENAME'],
  options: {
    help,
    quiet,
    progress: { short: 'p', long: ['progress'], doc: 'show a progress line' },
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    options: {
      short: 'o',
      long: ['options'],
      argument: 'OPTIONS',
      doc: "what to change ('-o help' lists it)",
      list: true,
      parse: parseOptionList,
    },
    cache: { short: 't', long: ['cache'], argument: 'CACHE', doc: 'cache mode (default writeback)' },
    force: { long: ['force'], doc: 'allow what may make data unreadable' },
    objects: objects(),
    imageOpts,
  },
  positional: [{ name: 'FILENAME', doc: 'the image' }],
  async run(values, names, shell) {
    if (values.options === undefined) throw usage('amend', 'Must specify options (-o)');
    const progress = progressLine(shell, values.progress === true && !values.quiet, 1, true);
    try {
      const options = formatOptions(values.options);
      const [name] = names;
      const single = names.length === 1 ? name : undefined;
      if (options === 'help' && values.format !== undefined) {
        shell.out(await amendHelp(shell, { format: values.format }));
        return 0;
      }
      if (single === undefined) throw new Exit(1, 'Expecting one image file name');
      const cache = cacheMode('cache', values.cache);
      const image = imageRef(single, { ...values, cache });
      if (options === 'help') {
        shell.out(await amendHelp(shell, { image }));
        return 0;
      }
      await shell.request(
        'image-amend',
        {
          ...objectParams(values.objects),
          image,
          options: options!,
          ...(values.force ? { force: true } : {}),
        },
        { onProgress: progress.report },
      );
      return 0;
    } finally {
      // Also after a failure, where it had begun.
      if (progress.started) progress.complete();
      progress.end();
    }
  },
});

async function amendHelp(
  shell: Shell,
  of: { readonly format: string } | { readonly image: ImageRef },
): Promise<string> {
  const { format, options } = await shell.request('amend-options', of);
  return `Amend options for '${format}':\n${optionLines(options).join('')}`;
}
