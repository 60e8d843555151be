/** docs/qemu-img.1: the command line, from the declarations of its subcommands and of the formats. */
import { load, names } from '../../clients/qemu-img/commands/index.js';
import type { OptionDeclaration } from '../../clients/qemu-img/declare.js';
import { VERSION } from '../../src/daemon/version.js';
import { formats } from '../../src/engine/formats/index.js';
import { bold, italic, Page, usageLine } from './man.js';

function term({ short, long = [], spelled = [], argument }: OptionDeclaration): string {
  const all = [
    ...(short === undefined ? [] : [`-${short}`]),
    ...[...long, ...spelled].map((name) => `--${name}`),
  ];
  return `${all.map(bold).join(', ')}${argument === undefined ? '' : ` ${italic(argument)}`}`;
}

/** A declaration's words as a sentence. */
const sentence = (words: string): string => `${words[0]!.toUpperCase()}${words.slice(1)}.`;

export async function qemuImgPage(): Promise<string> {
  const page = new Page('qemu-img', 1, VERSION, 'User commands');
  page.section('Name').raw('qemu\\-img \\- disk image utility, by imgd');
  page
    .section('Synopsis')
    .raw(`.B qemu\\-img\n[${italic('STANDARD OPTION')}]... ${italic('COMMAND')} [${italic('OPTION')}]...`);
  page
    .section('Description')
    .paragraph(
      'Creates, converts, checks and changes disk images. Its command lines, outputs and exit codes are those of the qemu-img of QEMU. Where a daemon listens, see imgd(8), it does the work; else this program does it by itself.',
    );
  page.section('Standard options');
  page.item(`${bold('-h')}, ${bold('--help')}`, 'Show a summary and exit.');
  page.item(`${bold('-V')}, ${bold('--version')}`, 'Show the version and exit.');
  page.item(
    `${bold('-T')}, ${bold('--trace')} [[${bold('enable=')}]${italic('PATTERN')}][,${bold('events=')}${italic('FILE')}][,${bold('file=')}${italic('FILE')}]`,
    'Shows trace events: those that the pattern means (* stands for any characters, a - in front takes back), or each line of the events file; one line each, on stderr or in the other file, whose %d becomes the process id. May be given more than once; the last one says which file. -T help lists the events.',
  );
  page.item(
    `${bold('--connect')} ${italic('PATH')}`,
    "The socket of the daemon to use, which must be there; 'none': work in this process.",
  );
  page.section('Commands').paragraph('Long options may be abbreviated where that is not ambiguous.');
  const ends: [string, Readonly<Record<number, string>>][] = [];
  for (const name of names) {
    const command = (await load(name))!;
    page.subsection(name);
    page.raw(`${bold(`qemu-img ${name}`)}`);
    for (const line of command.usage) page.raw(usageLine(line));
    page.paragraph(`${command.doc}.`);
    for (const option of Object.values(command.options)) page.item(term(option), sentence(option.doc));
    for (const { name: positional, doc } of command.positional) {
      page.item(italic(positional), sentence(doc));
    }
    if (command.exitCodes !== undefined) ends.push([name, command.exitCodes]);
  }
  page
    .section('Formats')
    .paragraph('What can be opened, with the options (-o) of those that can be created.');
  for (const { name, load: loadDriver } of formats) {
    const driver = await loadDriver();
    page.subsection(name);
    if (driver.create === undefined) page.paragraph('Read only.');
    for (const option of driver.createOptions) {
      const value = option.default === undefined ? [] : [`Default: ${String(option.default)}.`];
      page.item(
        `${bold(option.name)}=${italic(option.type.toUpperCase())}`,
        `${option.help.replace(/\.$/, '')}.`,
        ...value,
      );
    }
  }
  page.section('Exit status').paragraph('0 where all went well, 1 after an error; beyond that:');
  for (const [name, codes] of ends) {
    page.subsection(name);
    for (const [code, doc] of Object.entries(codes)) page.item(bold(code), sentence(doc));
  }
  page.section('Environment');
  page.item(bold('IMGD_SOCKET'), 'The socket of the daemon; empty: work in this process.');
  page.item(bold('XDG_RUNTIME_DIR'), 'Where the socket is looked for else.');
  page.section('See also').raw('.BR imgd (8)');
  return page.print();
}
