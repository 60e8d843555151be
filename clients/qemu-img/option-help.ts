/** `-o help`: which options a format takes. */
import type { RequestResult, Shell } from './declare.js';

const TYPES = { string: '<str>', bool: '<bool (on/off)>', number: '<num>', size: '<size>' } as const;

/** The column at which the explanations begin. */
const COLUMN = 24;

/** The whole text. Without a file's name, what its protocol would add is not known, and the text says so. */
export async function optionHelp(
  shell: Shell,
  format: string,
  filename: string | undefined,
): Promise<string> {
  const { options } = await shell.request('format-options', {
    format,
    ...(filename === undefined ? {} : { filename }),
  });
  const lines = optionLines(options);
  if (filename !== undefined) return `Supported options:\n${lines.join('')}`;
  const more =
    '\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n';
  return `Supported ${format} options:\n${lines.join('')}${more}`;
}

type Options = RequestResult<'format-options'>['options'];

/** A line for each option. */
export function optionLines(options: Options): string[] {
  return options.map((option) => {
    const text = `  ${option.name}=${TYPES[option.type]}`.padEnd(COLUMN);
    const value = typeof option.default === 'boolean' ? (option.default ? 'on' : 'off') : option.default;
    return `${text} - ${option.help}${value === undefined ? '' : ` (default: ${value})`}\n`;
  });
}
