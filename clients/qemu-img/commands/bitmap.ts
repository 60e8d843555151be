import type { BitmapAction } from '../../../src/protocol/commands/image-bitmap.js';
import { help, imageOpts, imageRef, objectParams, objects } from '../common-options.js';
import { command } from '../declare.js';
import { Exit } from '../errors.js';
import { parseNumber } from '../numbers.js';

/** Counts the actions of a command line, which are performed in its order. */
let given = 0;

interface Asked {
  readonly place: number;
  readonly action: BitmapAction;
}

const plain = (action: Exclude<BitmapAction['action'], 'merge'>) => (): Asked => ({
  place: given++,
  action: { action },
});

export default command({
  name: 'bitmap',
  doc: 'Modify a persistent bitmap of an image',
  usage: [
    '( --merge SOURCE | --add | --remove | --clear | --enable | --disable ).. [-f FMT | --image-opts]',
    '[-b SRC_FILENAME [-F SOURCE_FMT]] [-g SIZE[KMGTPE]] [--object OBJDEF] FILENAME BITMAP',
  ],
  options: {
    help,
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    imageOpts,
    add: {
      long: ['add'],
      doc: "create BITMAP, which records the guest's writes from now on",
      list: true,
      parse: plain('add'),
    },
    granularity: {
      short: 'g',
      long: ['granularity'],
      argument: 'SIZE',
      doc: 'of --add: how many bytes of the guest disk one bit stands for, a power of 2',
      parse: (text: string) => parseNumber('granularity', text, 0),
    },
    remove: { long: ['remove'], doc: 'remove BITMAP', list: true, parse: plain('remove') },
    clear: { long: ['clear'], doc: 'clear all bits of BITMAP', list: true, parse: plain('clear') },
    enable: {
      long: ['enable'],
      doc: "have BITMAP record the guest's writes",
      list: true,
      parse: plain('enable'),
    },
    disable: {
      long: ['disable'],
      doc: "have BITMAP record the guest's writes no more",
      list: true,
      parse: plain('disable'),
    },
    merge: {
      long: ['merge'],
      argument: 'SOURCE',
      doc: 'add the set bits of the bitmap SOURCE to BITMAP',
      list: true,
      parse: (source: string): Asked => ({ place: given++, action: { action: 'merge', source } }),
    },
    sourceFile: {
      short: 'b',
      long: ['source-file'],
      argument: 'SRC_FILENAME',
      doc: 'the image with the bitmaps of --merge, if it is not FILENAME',
    },
    sourceFormat: {
      short: 'F',
      long: ['source-format'],
      argument: 'SOURCE_FMT',
      doc: 'the format of SRC_FILENAME',
    },
    objects: objects(),
  },
  positional: [
    { name: 'FILENAME', doc: 'the image' },
    { name: 'BITMAP', doc: 'the name of the bitmap' },
  ],
  async run(values, [name, bitmap, ...more], shell) {
    const { add, remove, clear, enable, disable, merge, granularity } = values;
    const asked = [add, remove, clear, enable, disable, merge]
      .flatMap((each) => (each as readonly Asked[] | undefined) ?? [])
      .sort((a, b) => a.place - b.place);
    if (name === undefined || bitmap === undefined || more.length > 0) {
      if (asked.length > 0) throw new Exit(1, 'Expecting filename and bitmap name');
    }
    if (asked.length === 0) {
      throw new Exit(1, 'Need at least one of --add, --remove, --clear, --enable, --disable, or --merge');
    }
    // Zero is how the default one is asked for.
    if (granularity !== undefined && granularity !== 0 && add === undefined) {
      throw new Exit(1, 'granularity only supported with --add');
    }
    if (values.sourceFormat !== undefined && values.sourceFile === undefined) {
      throw new Exit(1, '-F only supported with -b');
    }
    if (values.sourceFile !== undefined && merge === undefined) {
      throw new Exit(1, 'Merge bitmap source file only supported with --merge');
    }
    const source =
      values.sourceFile === undefined
        ? undefined
        : imageRef(values.sourceFile, { format: values.sourceFormat });
    await shell.request('image-bitmap', {
      ...objectParams(values.objects),
      image: imageRef(name!, values),
      bitmap: bitmap!,
      actions: asked.map(({ action }) => action),
      ...(granularity === undefined ? {} : { granularity: Math.min(granularity, Number.MAX_SAFE_INTEGER) }),
      ...(source === undefined ? {} : { source }),
    });
    return 0;
  },
});
