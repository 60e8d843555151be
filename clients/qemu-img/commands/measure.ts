import type { ImageMeasureResult } from '../../../src/protocol/commands/image-measure.js';
import { splitOptions } from '../../../src/protocol/options.js';
import {
  forceShare,
  help,
  imageOpts,
  imageRef,
  objectParams,
  objects,
  output,
  parseOptionList,
} from '../common-options.js';
import { command } from '../declare.js';
import { Exit } from '../errors.js';
import { exactSize, parseNumber } from '../numbers.js';
import { parseSnapshot } from '../snapshots.js';

export default command({
  name: 'measure',
  doc: 'Tell how large the file of a new image will be',
  usage: [
    '[-f FMT | --image-opts] [-O OUTPUT_FMT] [-o OPTIONS] [-l SNAPSHOT] [-U]',
    '[--output human|json] [--object OBJDEF] (--size SIZE | FILENAME)',
  ],
  options: {
    help,
    targetFormat: {
      short: 'O',
      long: ['target-format'],
      argument: 'OUTPUT_FMT',
      doc: 'the format of the new image (default raw)',
    },
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
      doc: "options that the new image is created with ('qemu-img create -f OUTPUT_FMT -o help' lists them)",
      list: true,
      parse: parseOptionList,
    },
    snapshot: {
      short: 'l',
      long: ['snapshot'],
      argument: 'SNAPSHOT',
      doc: "measure this snapshot of FILENAME: an id or a name, or 'snapshot.id=ID,snapshot.name=NAME'",
      parse: parseSnapshot,
    },
    size: {
      long: ['size'],
      argument: 'SIZE',
      doc: 'measure an empty image of this size',
      parse(text: string): number | string {
        const size = parseNumber('image size', text, 0);
        return Number.isFinite(size) ? size : exactSize(text).toString();
      },
    },
    output: output('measure'),
    objects: objects(),
    imageOpts,
    forceShare,
  },
  positional: [{ name: 'FILENAME', doc: 'measure an image with the content of this one' }],
  async run(values, [name, ...more], shell) {
    if (more.length > 0) throw new Exit(1, 'At most one filename argument is allowed.');
    if (
      name === undefined &&
      (values.imageOpts || values.format !== undefined || values.snapshot !== undefined)
    ) {
      throw new Exit(1, '--image-opts, -f, and -l require a filename argument.');
    }
    if (name === undefined && values.size === undefined) {
      throw new Exit(1, 'Either --size N or one filename must be specified.');
    }
    if (name !== undefined && values.size !== undefined) {
      throw new Exit(1, '--size N cannot be used together with a filename.');
    }
    const measured = await shell.request('image-measure', {
      ...objectParams(values.objects),
      ...(name === undefined ? { size: values.size! } : { image: imageRef(name, values) }),
      format: values.targetFormat ?? 'raw',
      ...(values.options === undefined
        ? {}
        : { options: Object.fromEntries(splitOptions(values.options.join(','))) }),
      ...(values.snapshot === undefined ? {} : { snapshot: values.snapshot }),
    });
    if (values.output) {
      const { prettyJson } = await import('../json.js');
      const exact = Object.entries(measured).flatMap(([key, value]) =>
        value === undefined ? [] : [[key, BigInt(value)]],
      );
      shell.out(`${prettyJson(Object.fromEntries(exact))}\n`);
    } else shell.out(text(measured));
    return 0;
  },
});

function text(measured: ImageMeasureResult): string {
  const { required, 'fully-allocated': full, bitmaps } = measured;
  const lines = `required size: ${required}\nfully allocated size: ${full}\n`;
  return bitmaps === undefined ? lines : `${lines}bitmaps size: ${bitmaps}\n`;
}
