/** Help texts, made from the declarations. Loaded only where somebody asks. */
import type { Command, OptionDeclaration } from './declare.js';

const WIDTH = 79;

export function commandHelp(command: Command): string {
  const [first, ...more] = command.usage;
  const lines = [
    `Usage:`,
    `${command.doc}.  Usage:`,
    '',
    `  qemu-img ${command.name} ${first ?? ''}`.trimEnd(),
  ];
  for (const line of more) lines.push(`        ${line}`);
  lines.push('', 'Arguments:');
  for (const option of Object.values(command.options)) lines.push(...item(optionNames(option), option.doc));
  for (const { name, doc } of command.positional) lines.push(...item(name, doc));
  return `${lines.join('\n')}\n\n`;
}

/** `-f, --format FMT`. */
function optionNames(option: OptionDeclaration): string {
  const [long] = option.long ?? option.spelled ?? [];
  const names = [option.short && `-${option.short}`, long && `--${long}`].filter(Boolean).join(', ');
  return option.argument === undefined ? names : `${names} ${option.argument}`;
}

function item(title: string, doc: string): string[] {
  return [`  ${title}`, ...wrapped(doc, '     ')];
}

/** Lines of whole words, each behind `indent`. */
function wrapped(text: string, indent: string): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = '';
    }
    line += line === '' ? indent + word : ` ${word}`;
  }
  lines.push(line);
  return lines;
}

export interface CommandSummary {
  readonly name: string;
  readonly doc: string;
}

/** Formats and protocols that can be opened; a test compares them with the engine's. */
export const FORMATS = [
  'blkdebug',
  'blkverify',
  'bochs',
  'cloop',
  'compress',
  'copy-on-read',
  'dmg',
  'file',
  'host_device',
  'null-aio',
  'null-co',
  'parallels',
  'preallocate',
  'qcow',
  'qcow2',
  'qed',
  'quorum',
  'raw',
  'vdi',
  'vhdx',
  'vmdk',
  'vpc',
];

export function generalHelp(versionText: string, commands: readonly CommandSummary[]): string {
  const lines = [
    `${versionText}QEMU-compatible disk image utility.  Usage:`,
    '',
    '  qemu-img [standard options] COMMAND [--help | command options]',
    '',
    'Standard options:',
    ...item('-h, --help', 'show this help and exit'),
    ...item('-V, --version', 'show the version and exit'),
    ...item(
      '-T, --trace [[enable=]PATTERN][,events=FILE][,file=FILE]',
      "show trace events that PATTERN, or each line of a FILE, means ('help' lists them); to stderr, or to the other FILE",
    ),
    ...item('--connect PATH', "socket of the imgd daemon to use; 'none': run in this process"),
    '',
    'Recognized commands (run qemu-img COMMAND --help for command-specific help):',
    '',
    ...commands.map(({ name, doc }) => `  ${name} - ${doc}`),
    '',
    'Supported image formats:',
    '',
    ...wrapped(FORMATS.join(' '), '  '),
  ];
  return `${lines.join('\n')}\n`;
}
