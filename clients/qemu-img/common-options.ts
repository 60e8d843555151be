/** Options and checks that several subcommands share. */
import type { CacheMode, FormatOptions, ImageRef, UserObject } from '../../src/protocol/commands/common.js';
import { splitOptions } from '../../src/protocol/options.js';
import { Exit, HelpRequested, usage } from './errors.js';
import { parseObject } from './objects.js';

export const help = {
  short: 'h',
  long: ['help'],
  doc: 'show this help and exit',
  parse(): never {
    throw new HelpRequested();
  },
} as const;

export const quiet = { short: 'q', long: ['quiet'], doc: 'print nothing but errors' } as const;

export const forceShare = {
  short: 'U',
  long: ['force-share'],
  doc: 'open the image although another process is writing it',
} as const;

export const imageOpts = {
  long: ['image-opts'],
  doc: "take FILENAME for a string of options ('driver=...,file.filename=...'); not together with --format",
} as const;

/** `--object`; bad ones end the program with `code`. */
export function objects(code = 1) {
  return {
    long: ['object'],
    argument: 'OBJDEF',
    doc: "define an object that images refer to ('secret,id=ID,file=PATH')",
    list: true,
    parse: (text: string): UserObject => parseObject(text, code),
  } as const;
}

/** `--output human|json`: true for JSON. */
export function output(command: string) {
  return {
    long: ['output'],
    argument: 'human|json',
    doc: 'the form of the output (default human)',
    parse(text: string): boolean {
      if (text === 'json') return true;
      if (text === 'human') return false;
      throw usage(command, `--output expects 'human' or 'json' not '${text}'`);
    },
  } as const;
}

/** `-o`, which adds up over several times. Values are checked for their form only. */
export function parseOptionList(text: string): string {
  const trailing = /,*$/.exec(text)![0].length;
  if (text === '' || text.startsWith(',') || trailing % 2 === 1) {
    throw new Exit(1, `Invalid option list: ${text}`);
  }
  return text;
}

/** What all `-o` together ask for: undefined where the list of options is asked for (`help` or `?`). */
export function formatOptions(lists: readonly string[] | undefined): FormatOptions | 'help' | undefined {
  if (lists === undefined) return undefined;
  const text = lists.join(',');
  if (/(^|[^,](,,)*,)(help|\?)(?=,(?!,)|$)/.test(text)) return 'help';
  return Object.fromEntries(splitOptions(text));
}

/** The request's `objects` member, if there are any. An id can be there only once. */
export function objectParams(list: UserObject[] | undefined, code = 1): { objects?: UserObject[] } {
  if (list === undefined) return {};
  const seen = new Set<string>();
  for (const { id } of list) {
    if (seen.has(id)) {
      throw new Exit(code, `attempt to add duplicate property '${id}' to object (type 'container')`);
    }
    seen.add(id);
  }
  return { objects: list };
}

const CACHE_MODES: Readonly<Record<string, CacheMode>> = {
  none: 'none',
  off: 'none',
  writeback: 'writeback',
  unsafe: 'unsafe',
  writethrough: 'writethrough',
  directsync: 'directsync',
};

/** `what` names the option in the error: `source cache`, `cache`. */
export function cacheMode(what: string, text: string | undefined, code = 1): CacheMode | undefined {
  if (text === undefined) return undefined;
  const mode = CACHE_MODES[text];
  if (mode === undefined) throw new Exit(code, `Invalid ${what} option: ${text}`);
  return mode;
}

export interface SourceOptions {
  readonly format?: string | undefined;
  readonly imageOpts?: true | undefined;
  readonly forceShare?: true | undefined;
  readonly cache?: CacheMode | undefined;
}

/** The image that `name` stands for; `-f` together with `--image-opts` ends the program with `code`. */
export function imageRef(name: string, options: SourceOptions, code = 1): ImageRef {
  if (options.imageOpts && options.format !== undefined) {
    throw new Exit(code, '--image-opts and --format are mutually exclusive');
  }
  return {
    ...(options.imageOpts ? { 'image-opts': name } : { filename: name }),
    ...(options.format === undefined ? {} : { format: options.format }),
    ...(options.forceShare ? { 'force-share': true } : {}),
    ...(options.cache === undefined ? {} : { cache: options.cache }),
  };
}
