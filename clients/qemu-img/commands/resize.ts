import { parseSize } from '../../../src/protocol/options.js';
import { help, imageOpts, imageRef, objectParams, objects, quiet } from '../common-options.js';
import { command } from '../declare.js';
import { Exit, usage } from '../errors.js';

const PREALLOCATION = ['off', 'metadata', 'falloc', 'full'] as const;
type Preallocation = (typeof PREALLOCATION)[number];

export default command({
  name: 'resize',
  doc: 'Change the guest size of an image',
  usage: [
    '[-f FMT | --image-opts] [--preallocation PREALLOC] [--shrink]',
    '[--object OBJDEF] [-q] FILENAME [+-]SIZE[bkKMGTPE]',
  ],
  negativeNumbers: true,
  options: {
    help,
    quiet,
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    imageOpts,
    shrink: {
      long: ['shrink'],
      doc: 'allow a size smaller than the present one: what is beyond it is lost',
    },
    preallocation: {
      long: ['preallocation'],
      argument: 'PREALLOC',
      doc: 'preallocate what is added: off (the default), metadata, falloc, full',
      parse(text: string): Preallocation {
        const mode = PREALLOCATION.find((each) => each === text);
        if (mode === undefined) throw new Exit(1, `Invalid preallocation mode '${text}'`);
        return mode;
      },
    },
    objects: objects(),
  },
  positional: [
    { name: 'FILENAME', doc: 'the image' },
    { name: '[+-]SIZE[bkKMGTPE]', doc: 'the new size, or what to add to it or take from it' },
  ],
  async run(values, [name, sizeText, ...more], shell) {
    if (name === undefined || sizeText === undefined) {
      throw usage('resize', 'Expecting image file name and size');
    }
    if (more.length > 0) throw usage('resize', 'Extra argument(s) in command line');
    const sign = /^[+-]/.exec(sizeText)?.[0] ?? '';
    const amount = wholeSize(sizeText.slice(sign.length));
    await shell.request('image-resize', {
      ...objectParams(values.objects),
      image: imageRef(name, values),
      size: sign === '-' ? -amount : amount,
      ...(sign === '' ? {} : { relative: true }),
      ...(values.shrink ? { shrink: true } : {}),
      ...(values.preallocation === undefined ? {} : { preallocation: values.preallocation }),
    });
    if (!values.quiet) shell.out('Image resized.\n');
    return 0;
  },
});

/** Bytes. What 63 bits hold and a double does not comes out as the largest exact number: no image is so large. */
function wholeSize(text: string): number {
  const value = parseSize(text);
  const negative = /^\s*-/.test(text);
  if (value === undefined || negative) {
    throw new Exit(
      1,
      "Parameter 'size' expects a non-negative number below 2^64",
      'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.',
    );
  }
  if (!Number.isNaN(value)) return value;
  if (beyondInt64(text)) throw new Exit(1, 'New image size must be positive');
  return Number.MAX_SAFE_INTEGER;
}

/** Whether a number that is too large for a double is too large for a signed 64-bit one as well. */
function beyondInt64(text: string): boolean {
  const [, hex, whole, suffix] = /^\s*\+?(?:0x([0-9a-f]+)|(\d*)(?:\.\d*)?([bkmgtpe])?)$/i.exec(text) ?? [];
  if (hex !== undefined) return BigInt(`0x${hex}`) >= 2n ** 63n;
  return (
    BigInt(whole || '0') * 1024n ** BigInt('bkmgtpe'.indexOf((suffix ?? 'b').toLowerCase())) >= 2n ** 63n
  );
}
