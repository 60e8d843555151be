import { forceShare, help, imageOpts, imageRef, objectParams, objects, quiet } from '../common-options.js';
import { command } from '../declare.js';
import { usage } from '../errors.js';

type Action = 'list' | 'create' | 'apply' | 'delete';

/** Of the four only one can be asked for, and that once. */
const chosen = (action: Action) => (name: string) => ({ action, name });

export default command({
  name: 'snapshot',
  doc: 'List or manipulate the internal snapshots of an image',
  usage: ['[-f FMT | --image-opts] [-l | -a|-c|-d SNAPSHOT]', '[-U] [--object OBJDEF] [-q] FILENAME'],
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
    forceShare,
    list: {
      short: 'l',
      long: ['list'],
      doc: 'list the snapshots (the default)',
      list: true,
      parse: chosen('list'),
    },
    apply: {
      short: 'a',
      long: ['apply'],
      argument: 'SNAPSHOT',
      doc: 'make the guest disk what it was at this snapshot (an id or a name)',
      list: true,
      parse: chosen('apply'),
    },
    create: {
      short: 'c',
      long: ['create'],
      argument: 'SNAPSHOT',
      doc: 'keep the guest disk as it is under this name',
      list: true,
      parse: chosen('create'),
    },
    delete: {
      short: 'd',
      long: ['delete'],
      argument: 'SNAPSHOT',
      doc: 'delete this snapshot (a name)',
      list: true,
      parse: chosen('delete'),
    },
    objects: objects(),
  },
  positional: [{ name: 'FILENAME', doc: 'the image' }],
  async run(values, [name, ...more], shell) {
    const asked = [values.list, values.apply, values.create, values.delete].flatMap(
      (each) => (each as readonly { action: Action; name: string }[] | undefined) ?? [],
    );
    if (asked.length > 1) throw usage('snapshot', "Cannot mix '-l', '-a', '-c', '-d'");
    if (name === undefined || more.length > 0) throw usage('snapshot', 'Expecting one image file name');
    const [{ action, name: snapshot }] =
      asked.length > 0 ? [asked[0]!] : [{ action: 'list' as Action, name: '' }];
    const { snapshots } = await shell.request('image-snapshot', {
      ...objectParams(values.objects),
      image: imageRef(name, values),
      action,
      ...(action === 'list' ? {} : { snapshot }),
    });
    if (action === 'list' && snapshots.length > 0) {
      const { snapshotTable } = await import('../info-text.js');
      shell.out(`Snapshot list:\n${snapshotTable(snapshots).join('\n')}\n`);
    }
    return 0;
  },
});
