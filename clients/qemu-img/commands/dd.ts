import { forceShare, help, imageRef, objectParams, objects } from '../common-options.js';
import { command } from '../declare.js';
import { Exit } from '../errors.js';
import { parseNumber, parsePlainNumber } from '../numbers.js';

/** The reference keeps the size of a block in an int. */
const MAX_BLOCK = 2147483647;

interface Operands {
  if?: string;
  of?: string;
  bs?: number;
  count?: number;
  skip?: number;
}

const OPERANDS: Readonly<Record<string, (into: Operands, text: string) => void>> = {
  if(into, text) {
    into.if = text;
  },
  of(into, text) {
    into.of = text;
  },
  bs(into, text) {
    into.bs = parseNumber('bs', text, 1, MAX_BLOCK);
  },
  count(into, text) {
    into.count = parsePlainNumber('count', text, 0);
  },
  skip(into, text) {
    into.skip = parsePlainNumber('skip', text, 0);
  },
};

export default command({
  name: 'dd',
  doc: 'Copy blocks of an image into a new one, in the same or another format',
  usage: [
    '[-f FMT | --image-opts] [-O OUTPUT_FMT] [-U] [--object OBJDEF]',
    '[bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT',
  ],
  options: {
    help,
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of INPUT; probed where not given',
    },
    targetFormat: {
      short: 'O',
      long: ['output-format'],
      argument: 'OUTPUT_FMT',
      doc: 'the format of OUTPUT (default raw)',
    },
    forceShare,
    imageOpts: {
      long: ['image-opts'],
      doc: "take INPUT for a string of options ('driver=...,file.filename=...'); not together with --format",
    },
    objects: objects(),
  },
  positional: [
    { name: 'if=INPUT', doc: 'the image to copy from' },
    { name: 'of=OUTPUT', doc: 'the file to create; it is overwritten if it exists' },
    { name: 'bs=BLOCK_SIZE', doc: 'bytes of a block, with a suffix b, k, M, G (default 512)' },
    { name: 'count=BLOCKS', doc: 'stop after so many blocks of INPUT' },
    { name: 'skip=BLOCKS', doc: 'leave out so many blocks at the start of INPUT' },
  ],
  async run(values, words, shell) {
    const operands: Operands = {};
    for (const word of words) {
      const equals = word.indexOf('=');
      const name = equals < 0 ? word : word.slice(0, equals);
      if (equals < 0 || !Object.hasOwn(OPERANDS, name)) throw new Exit(1, `unrecognized operand ${name}`);
      OPERANDS[name]!(operands, word.slice(equals + 1));
    }
    if (operands.if === undefined || operands.of === undefined) {
      throw new Exit(1, 'Must specify both input and output files');
    }
    const { bs, count, skip } = operands;
    // Counts that no number holds exactly lie beyond every image all the same.
    const blocks = (value: number) => Math.min(value, Number.MAX_SAFE_INTEGER);
    await shell.request('image-dd', {
      ...objectParams(values.objects),
      image: imageRef(operands.if, values),
      target: { filename: operands.of, format: values.targetFormat ?? 'raw' },
      ...(bs === undefined ? {} : { 'block-size': bs }),
      ...(count === undefined ? {} : { count: blocks(count) }),
      ...(skip === undefined ? {} : { skip: blocks(skip) }),
    });
    return 0;
  },
});
