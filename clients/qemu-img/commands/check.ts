import type { ImageCheck } from '../../../src/protocol/commands/image-check.js';
import {
  cacheMode,
  forceShare,
  help,
  imageOpts,
  imageRef,
  objectParams,
  objects,
  output,
  quiet,
} from '../common-options.js';
import { command } from '../declare.js';
import { Exit, RequestError, usage } from '../errors.js';
import { twoPlaces } from '../numbers.js';

const EXIT = { failed: 1, corrupt: 2, leaks: 3, unsupported: 63 } as const;

/** The engine's words for a format that has no checker, as opposed to an image that cannot be opened. */
const NO_CHECKER = 'This image format does not support checks';

export default command({
  name: 'check',
  doc: 'Check the consistency of an image',
  usage: [
    '[-f FMT | --image-opts] [-T CACHE] [-r leaks|all] [-U]',
    '[--output human|json] [--object OBJDEF] [-q] FILENAME',
  ],
  options: {
    help,
    quiet,
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    cache: { short: 'T', long: ['cache'], argument: 'CACHE', doc: 'cache mode (default writeback)' },
    repair: {
      short: 'r',
      long: ['repair'],
      argument: 'leaks|all',
      doc: 'repair leaked clusters, or everything that can be repaired; not together with --force-share',
      parse(text: string): 'leaks' | 'all' {
        if (text === 'leaks' || text === 'all') return text;
        throw usage('check', `--repair (-r) expects 'leaks' or 'all' not '${text}'`);
      },
    },
    output: output('check'),
    objects: objects(),
    imageOpts,
    forceShare,
  },
  exitCodes: {
    0: 'the image is sound, or is now that it was repaired',
    1: 'the check could not be completed',
    [EXIT.corrupt]: 'the image is corrupted',
    [EXIT.leaks]: 'clusters are leaked, but nothing is corrupted',
    [EXIT.unsupported]: 'the format cannot be checked',
  },
  positional: [{ name: 'FILENAME', doc: 'the image' }],
  async run(values, [name, ...more], shell) {
    if (name === undefined || more.length > 0) throw usage('check', 'Expecting one image file name');
    const cache = cacheMode('source cache', values.cache);
    const image = imageRef(name, { ...values, cache });
    const say = values.quiet ? () => {} : shell.out;
    let result: { check: ImageCheck; repaired?: ImageCheck | undefined };
    try {
      result = await shell.request('image-check', {
        ...objectParams(values.objects),
        image,
        ...(values.repair === undefined ? {} : { repair: values.repair }),
      });
    } catch (error) {
      if (error instanceof RequestError && error.message === NO_CHECKER) {
        throw new Exit(EXIT.unsupported, error.message, error.hint);
      }
      throw error;
    }
    const { check, repaired } = result;
    if (values.output) {
      const { prettyJson } = await import('../json.js');
      say(`${prettyJson(check)}\n`);
    } else {
      if (repaired !== undefined) say(repairText(repaired));
      say(checkText(check));
    }
    if (check['check-errors'] > 0) throw new Exit(EXIT.failed, 'Check failed');
    if (check.corruptions) return EXIT.corrupt;
    return check.leaks ? EXIT.leaks : 0;
  },
});

function repairText(repaired: ImageCheck): string {
  return `The following inconsistencies were found and repaired:

    ${repaired['leaks-fixed'] ?? 0} leaked clusters
    ${repaired['corruptions-fixed'] ?? 0} corruptions

Double checking the fixed image now...
`;
}

function checkText(check: ImageCheck): string {
  const { corruptions = 0, leaks = 0, 'check-errors': errors } = check;
  let text = '';
  if (corruptions === 0 && leaks === 0 && errors === 0) text += 'No errors were found on the image.\n';
  if (corruptions > 0) {
    text += `\n${corruptions} errors were found on the image.\n`;
    text += 'Data may be corrupted, or further writes to the image may corrupt it.\n';
  }
  if (leaks > 0) {
    text += `\n${leaks} leaked clusters were found on the image.\n`;
    text += 'This means waste of disk space, but no harm to data.\n';
  }
  if (errors > 0) text += `\n${errors} internal errors have occurred during the check.\n`;
  const { 'total-clusters': total = 0, 'allocated-clusters': allocated = 0 } = check;
  if (total > 0 && allocated > 0) {
    const percent = (part: number, whole: number) => `${twoPlaces((part * 100) / whole)}%`;
    const fragmented = percent(check['fragmented-clusters'] ?? 0, allocated);
    const compressed = percent(check['compressed-clusters'] ?? 0, allocated);
    text += `${allocated}/${total} = ${percent(allocated, total)} allocated, `;
    text += `${fragmented} fragmented, ${compressed} compressed clusters\n`;
  }
  if (check['image-end-offset']) text += `Image end offset: ${check['image-end-offset']}\n`;
  return text;
}
