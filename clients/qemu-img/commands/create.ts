import { formatOptions, help, objectParams, objects, parseOptionList, quiet } from '../common-options.js';
import { command } from '../declare.js';
import { Exit, RequestError, usage } from '../errors.js';
import { exactSize, parseNumber } from '../numbers.js';

export default command({
  name: 'create',
  doc: 'Create an image',
  usage: [
    '[-f FMT] [-o FMT_OPTS] [-b BACKING_FILENAME [-F BACKING_FMT]]',
    '[--object OBJDEF] [-u] [-q] FILENAME [SIZE[bkKMGTPE]]',
  ],
  options: {
    help,
    quiet,
    objects: objects(),
    format: { short: 'f', long: ['format'], argument: 'FMT', doc: 'the format of the image (default raw)' },
    backing: {
      short: 'b',
      long: ['backing'],
      argument: 'BACKING_FILENAME',
      doc: 'the image holds only what differs from this one',
    },
    backingFormat: {
      short: 'F',
      long: ['backing-format'],
      argument: 'BACKING_FMT',
      doc: 'the format of BACKING_FILENAME',
    },
    unsafe: {
      short: 'u',
      long: ['backing-unsafe'],
      doc: 'do not open BACKING_FILENAME; it need not exist, and SIZE is required',
    },
    options: {
      short: 'o',
      long: ['options'],
      argument: 'FMT_OPTS',
      doc: "options of the format ('-o help' lists them)",
      list: true,
      parse: parseOptionList,
    },
  },
  positional: [
    { name: 'FILENAME', doc: 'the file to create; it is overwritten if it exists' },
    {
      name: 'SIZE',
      doc: 'the size of the guest disk; not required with BACKING_FILENAME, whose size is the default',
    },
  ],
  async run(values, [filename, sizeWord, ...more], shell) {
    const format = values.format ?? 'raw';
    const options = formatOptions(values.options);
    if (options === 'help') {
      const { optionHelp } = await import('../option-help.js');
      shell.out(await optionHelp(shell, format, filename));
      return 0;
    }
    if (filename === undefined) throw usage('create', 'Expecting image file name');
    let size = sizeWord === undefined ? undefined : parseNumber('image size', sizeWord, 0);
    if (more.length > 0) throw usage('create', `Unexpected argument: ${more[0]}`);
    if (size === Number.POSITIVE_INFINITY) {
      const exact = exactSize(sizeWord!);
      size = BigInt(Number(exact)) === exact ? Number(exact) : undefined;
    }
    if (sizeWord !== undefined && size === undefined) {
      throw new Exit(1, `${filename}: The image size is too large for file format '${format}'`);
    }
    try {
      await shell.request(
        'image-create',
        {
          ...objectParams(values.objects),
          filename,
          format,
          ...(size === undefined ? {} : { size }),
          ...(options === undefined ? {} : { options }),
          ...(values.backing === undefined ? {} : { backing: values.backing }),
          ...(values.backingFormat === undefined ? {} : { 'backing-format': values.backingFormat }),
          ...(values.unsafe ? { 'no-backing-check': true } : {}),
        },
        {
          onText(stream, text) {
            if (stream === 'stderr') shell.err(text);
            else if (!values.quiet) shell.out(text);
          },
        },
      );
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      // Every error of creating stands behind the name of the file.
      const prefix = `${filename}: `;
      const text = error.message.startsWith(prefix) ? error.message : `${prefix}${error.message}`;
      throw new Exit(1, text, error.hint);
    }
    return 0;
  },
});
