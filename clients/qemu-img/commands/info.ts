import { forceShare, help, imageOpts, imageRef, objectParams, objects, output } from '../common-options.js';
import { command } from '../declare.js';
import { usage } from '../errors.js';

export default command({
  name: 'info',
  doc: 'Show what an image is',
  usage: ['[-f FMT | --image-opts] [-b] [-U] [--object OBJDEF]', '[--output human|json] FILENAME'],
  options: {
    help,
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    output: output('info'),
    backingChain: { short: 'b', long: ['backing-chain'], doc: 'show every image of the backing chain' },
    objects: objects(),
    imageOpts,
    forceShare,
  },
  positional: [{ name: 'FILENAME', doc: 'the image' }],
  async run(values, [name, ...more], shell) {
    if (name === undefined || more.length > 0) throw usage('info', 'Expecting one image file name');
    const image = imageRef(name, values);
    const { images } = await shell.request('image-info', {
      ...objectParams(values.objects),
      image,
      ...(values.backingChain ? { 'backing-chain': true } : {}),
    });
    if (values.output) {
      const { prettyJson } = await import('../json.js');
      shell.out(`${prettyJson(values.backingChain ? images : images[0])}\n`);
    } else {
      const { imageText } = await import('../info-text.js');
      shell.out(images.map((each) => imageText(each)).join('\n'));
    }
    return 0;
  },
});
