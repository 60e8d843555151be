import type { MapEntry } from '../../../src/protocol/commands/image-map.js';
import { forceShare, help, imageOpts, imageRef, objectParams, objects, output } from '../common-options.js';
import { command } from '../declare.js';
import { Exit, usage } from '../errors.js';
import { parseNumber } from '../numbers.js';
import { hexColumn } from '../text.js';

export default command({
  name: 'map',
  doc: 'Show where the guest data of an image is',
  usage: [
    '[-f FMT | --image-opts] [--object OBJDEF] [--output human|json]',
    '[--start-offset OFFSET] [--max-length LENGTH] [-U] FILENAME',
  ],
  options: {
    help,
    format: {
      short: 'f',
      long: ['format'],
      argument: 'FMT',
      doc: 'the format of FILENAME; probed where not given',
    },
    output: output('map'),
    objects: objects(),
    imageOpts,
    forceShare,
    start: {
      short: 's',
      long: ['start-offset'],
      argument: 'OFFSET',
      doc: 'begin at this offset of the guest disk',
      parse: (text: string) => parseNumber('start offset', text, 0),
    },
    length: {
      short: 'l',
      long: ['max-length'],
      argument: 'LENGTH',
      doc: 'look at so many bytes at most',
      parse: (text: string) => parseNumber('max length', text, 0),
    },
  },
  positional: [{ name: 'FILENAME', doc: 'the image' }],
  async run(values, [name, ...more], shell) {
    if (name === undefined || more.length > 0) throw usage('map', 'Expecting one image file name');
    const image = imageRef(name, values);
    const { start, length } = values;
    const print = values.output ? jsonEntries(shell.out) : humanEntries(shell.out);
    const asked = shell.request(
      'image-map',
      {
        ...objectParams(values.objects),
        image,
        stream: true,
        ...(start === undefined ? {} : { 'start-offset': Math.min(start, Number.MAX_SAFE_INTEGER) }),
        ...(length === undefined || length > Number.MAX_SAFE_INTEGER ? {} : { 'max-length': length }),
      },
      { onEntries: print.entries },
    );
    await asked.catch((error: unknown) => {
      print.broken();
      throw error;
    });
    print.end();
    return 0;
  },
});

/** The first batch, which may be empty, comes with the heading. */
interface EntryPrinter {
  entries(entries: readonly MapEntry[]): void;
  end(): void;
  /** An error follows: not all entries are there. */
  broken(): void;
}

/** One line an entry, inside one array; text is handed over a batch at a time. */
function jsonEntries(out: (text: string) => void): EntryPrinter {
  let head = '[';
  let before = '';
  return {
    entries(entries) {
      let text = head;
      head = '';
      for (const entry of entries) {
        const { start, length, depth, present, zero, data, compressed, offset } = entry;
        text += `${before}{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}`;
        text += `, "zero": ${zero}, "data": ${data}, "compressed": ${compressed}`;
        if (offset !== undefined) text += `, "offset": ${offset}`;
        text += '}';
        before = ',\n';
      }
      out(text);
    },
    end() {
      out(`${head}]\n`);
    },
    broken() {
      if (before !== '') out(before);
    },
  };
}

/** A table of what holds data and is not zeros. Data that has no offset in a file cannot be shown: the program ends. */
function humanEntries(out: (text: string) => void): EntryPrinter {
  const column = (text: string) => text.padEnd(16);
  let head = `${column('Offset')}${column('Length')}${column('Mapped to')}File\n`;
  return {
    entries(entries) {
      let text = head;
      head = '';
      for (const { start, length, offset, data, zero, filename } of entries) {
        if (data && offset === undefined) {
          out(text);
          throw new Exit(1, 'File contains external, encrypted or compressed clusters.');
        }
        if (data && !zero) {
          text += `${hexColumn(start)}${hexColumn(length)}${hexColumn(offset ?? 0)}${filename ?? ''}\n`;
        }
      }
      out(text);
    },
    end() {
      if (head !== '') out(head);
    },
    broken() {},
  };
}
