import {
  cacheMode,
  forceShare,
  formatOptions,
  help,
  imageRef,
  objectParams,
  objects,
  parseOptionList,
  quiet,
} from '../common-options.js';
import { command } from '../declare.js';
import { Exit } from '../errors.js';
import { parseNumber } from '../numbers.js';
import { progressLine } from '../progress.js';
import { parseSnapshot } from '../snapshots.js';

/** The longest run of zeros that the reference's `-S` takes. */
const LONGEST_SPARSE = 16 * 2 ** 20;

export default command({
  name: 'convert',
  doc: 'Copy an image into another, in the same or another format',
  usage: [
    '[-f SRC_FMT | --image-opts] [-T SRC_CACHE] [-l SNAPSHOT] [-U]',
    '[-O TGT_FMT] [-o TGT_OPTS | --target-image-opts] [-t TGT_CACHE] [-n] [-c]',
    '[-B BACKING_FILENAME [-F BACKING_FMT]] [-S SPARSE_SIZE] [-p] [-q]',
    '[-m REQUESTS] [-W] [-C] [-r RATE] [--salvage] [--target-is-zero]',
    '[--object OBJDEF] SRC_FILENAME [SRC_FILENAME2 ...] TGT_FILENAME',
  ],
  options: {
    help,
    quiet,
    objects: objects(),
    imageOpts: {
      long: ['image-opts', 'source-image-opts'],
      doc: "take every SRC_FILENAME for a string of options ('driver=...,file.filename=...'); not together with -f",
    },
    format: {
      short: 'f',
      long: ['source-format'],
      argument: 'SRC_FMT',
      doc: 'the format of SRC_FILENAME; probed where not given',
    },
    sourceCache: {
      short: 'T',
      long: ['source-cache'],
      argument: 'SRC_CACHE',
      doc: 'cache mode of the sources (default writeback)',
    },
    snapshot: {
      short: 'l',
      long: ['snapshot'],
      spelled: ['source-snapshot'],
      argument: 'SNAPSHOT',
      doc: "copy this snapshot of the source: an id or a name, or 'snapshot.id=ID,snapshot.name=NAME'",
      parse: parseSnapshot,
    },
    sparse: {
      short: 'S',
      long: ['sparse-size'],
      argument: 'SPARSE_SIZE',
      doc: 'leave runs of zeros of at least this size unallocated (default 4k); 0: allocate everything',
      parse: parseSparse,
    },
    targetFormat: {
      short: 'O',
      long: ['output-format'],
      spelled: ['target-format'],
      argument: 'TGT_FMT',
      doc: 'the format of TGT_FILENAME (default raw)',
    },
    options: {
      short: 'o',
      long: ['options'],
      spelled: ['target-options'],
      argument: 'TGT_OPTS',
      doc: "options of TGT_FMT ('-o help' lists them)",
      list: true,
      parse: parseOptionList,
    },
    targetCache: {
      short: 't',
      long: ['output-cache'],
      spelled: ['target-cache'],
      argument: 'TGT_CACHE',
      doc: 'cache mode of the target (default unsafe)',
    },
    backing: {
      short: 'B',
      long: ['backing'],
      argument: 'BACKING_FILENAME',
      doc: 'the target holds only what differs from this image',
    },
    backingFormat: {
      short: 'F',
      long: ['backing-format'],
      argument: 'BACKING_FMT',
      doc: 'the format of BACKING_FILENAME',
    },
    forceShare,
    targetImageOpts: {
      long: ['target-image-opts'],
      doc: 'take TGT_FILENAME for a string of options; needs -n, and not together with -O',
    },
    salvage: { long: ['salvage'], doc: 'what cannot be read becomes zeros' },
    targetIsZero: { long: ['target-is-zero'], doc: 'the existing target (-n) is known to read as zeros' },
    bitmaps: { long: ['bitmaps'], doc: 'copy the persistent bitmaps of the source too' },
    skipBroken: { long: ['skip-broken-bitmaps'], doc: 'leave out bitmaps that are marked inconsistent' },
    rate: {
      short: 'r',
      long: ['rate'],
      argument: 'RATE',
      doc: 'bytes a second at most',
      parse: (text: string) => parseNumber('rate limit', text, 0),
    },
    parallel: {
      short: 'm',
      long: ['parallel'],
      argument: 'REQUESTS',
      doc: 'requests in flight, 1 to 16 (default 8)',
      parse: (text: string) => parseNumber('number of coroutines', text, 1, 16),
    },
    outOfOrder: { short: 'W', long: ['oob-writes'], doc: 'the target may be written out of order' },
    offload: { short: 'C', long: ['copy-range-offloading'], doc: 'let the host copy where it can' },
    compress: { short: 'c', spelled: ['compress'], doc: 'compress what is written' },
    noCreate: { short: 'n', spelled: ['no-create'], doc: 'the target exists already' },
    progress: { short: 'p', spelled: ['progress'], doc: 'show a progress line' },
  },
  positional: [
    { name: 'SRC_FILENAME', doc: 'the image to copy; of several, one after the other' },
    { name: 'TGT_FILENAME', doc: 'the image to write' },
  ],
  async run(values, names, shell) {
    // The checks stand in the reference's order: the first that fails is the one that is reported.
    if (values.skipBroken && !values.bitmaps) {
      throw new Exit(1, 'Use of --skip-broken-bitmaps requires --bitmaps');
    }
    if (values.offload) {
      if (values.compress) throw new Exit(1, 'Cannot enable copy offloading when -c is used');
      if (values.sparse !== undefined) throw new Exit(1, 'Cannot enable copy offloading when -S is used');
      if (values.salvage) throw new Exit(1, 'Cannot use copy offloading in salvaging mode');
    }
    const options = formatOptions(values.options);
    if (values.targetImageOpts && !values.noCreate) {
      throw new Exit(1, '--target-image-opts requires use of -n flag');
    }
    if (values.noCreate && options !== undefined) {
      throw new Exit(1, '-o has no effect when skipping image creation');
    }
    if (values.targetIsZero && !values.noCreate) {
      throw new Exit(1, '--target-is-zero requires use of -n flag');
    }
    const sourceNames = names.slice(0, -1);
    const targetName = sourceNames.length > 0 ? names.at(-1) : undefined;
    const targetFormat = values.targetFormat ?? (values.targetImageOpts ? undefined : 'raw');
    if (options === 'help') {
      const { optionHelp } = await import('../option-help.js');
      shell.out(await optionHelp(shell, targetFormat ?? 'raw', targetName));
      return 0;
    }
    if (targetName === undefined) throw new Exit(1, 'Must specify image file name');
    const cache = cacheMode('source cache', values.sourceCache);

    const shown = values.progress === true && !values.quiet;
    const progress = progressLine(shell, shown, 1, true);
    try {
      progress.start();
      const sources = sourceNames.map((name) => imageRef(name, { ...values, cache }));
      // From here on the reference has opened the sources, and would report what is wrong with them first.
      if (values.targetIsZero && values.backing !== undefined) {
        throw new Exit(1, 'Cannot use --target-is-zero when the destination image has a backing file');
      }
      const targetRef = imageRef(targetName, { imageOpts: values.targetImageOpts, format: targetFormat });
      const targetCache = cacheMode('cache', values.targetCache);
      await shell.request(
        'image-convert',
        {
          ...objectParams(values.objects),
          sources,
          // The daemon's own default is safer: the reference's command line does not wait for the disk.
          target: { ...targetRef, cache: targetCache ?? 'unsafe' },
          create: !values.noCreate,
          ...(options === undefined ? {} : { options }),
          ...(values.backing === undefined ? {} : { backing: values.backing }),
          ...(values.backingFormat === undefined ? {} : { 'backing-format': values.backingFormat }),
          ...(values.compress ? { compress: true } : {}),
          ...(values.sparse === undefined ? {} : { 'sparse-size': values.sparse }),
          ...(values.snapshot === undefined ? {} : { snapshot: values.snapshot }),
          ...(values.targetIsZero ? { 'target-is-zero': true } : {}),
          ...(values.bitmaps ? { bitmaps: true } : {}),
          ...(values.skipBroken ? { 'skip-broken-bitmaps': true } : {}),
          ...(values.salvage ? { salvage: true } : {}),
          ...(values.rate && values.rate < Number.MAX_SAFE_INTEGER ? { 'rate-limit': values.rate } : {}),
          ...(values.parallel === undefined ? {} : { parallel: values.parallel }),
          ...(values.outOfOrder ? { 'out-of-order': true } : {}),
          ...(values.offload ? { 'copy-offloading': true } : {}),
          ...(shown ? { 'count-data': true } : {}),
        },
        {
          onProgress: (report) => {
            if (report.phase === 'copy' && report.done > 0) progress.report(report);
          },
        },
      );
      progress.complete();
      return 0;
    } finally {
      progress.end();
    }
  },
});

/** `-S`: 0, or whole sectors up to the reference's limit. */
function parseSparse(text: string): number {
  const size = parseNumber('buffer size for sparse output', text, 0);
  if (size !== 0 && (size % 512 !== 0 || size > LONGEST_SPARSE)) {
    throw new Exit(
      1,
      `Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to ${LONGEST_SPARSE}. Select 0 to disable sparse detection (fully allocates output).`,
    );
  }
  return size;
}
