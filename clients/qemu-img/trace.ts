/** `-T`: which events are enabled, and where their lines go. Loaded only where somebody asks. */
import { openSync, readFileSync, writeSync } from 'node:fs';
import { shortForm, shortFormWarning } from '../../src/protocol/options.js';
import { applyPattern, type TraceEvent, traceEventNames, unknownEvent } from '../../src/protocol/trace.js';
import { Exit, Shown } from './errors.js';
import type { Surroundings } from './shell.js';

type Write = Surroundings['write'];

export interface TraceOptions {
  /** The argument of one `-T`. What is wrong with it is said at once, or ends the program. */
  add(text: string): void;
  /** All options are read: opens the file where one was asked for. */
  begin(): void;
  /** Names of the events that are enabled. */
  readonly events: readonly TraceEvent[];
  /** Whole lines, to the file or to stderr. */
  write(text: string): void;
}

const KEYS = ['enable', 'events', 'file'] as const;
type Key = (typeof KEYS)[number];

/** QEMU's option strings may have a name; it means nothing here. */
const IDENTIFIER = /^[a-z][a-z0-9._-]*$/i;
const IDENTIFIERS = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";

const SYSTEM_ERRORS: Readonly<Record<string, string>> = {
  EACCES: 'Permission denied',
  EISDIR: 'Is a directory',
  ELOOP: 'Too many levels of symbolic links',
  ENAMETOOLONG: 'File name too long',
  ENOENT: 'No such file or directory',
  ENOSPC: 'No space left on device',
  ENOTDIR: 'Not a directory',
  EROFS: 'Read-only file system',
};

function reason(error: unknown): string {
  const { code = '', message } = error as NodeJS.ErrnoException;
  return SYSTEM_ERRORS[code] ?? message;
}

export function createTrace(write: Write): TraceOptions {
  const err = (text: string) => write(2, text);
  const enabled = new Set<TraceEvent>();
  let file: string | undefined;
  let descriptor: number | undefined;
  let broken = false;

  function apply(pattern: string, where = 'qemu-img: '): void {
    if (pattern === 'help' || pattern === '?') throw new Shown(() => `${traceEventNames.join('\n')}\n`);
    const unknown = applyPattern(enabled, pattern);
    if (unknown !== undefined) err(`${where}${unknownEvent(unknown)}\n`);
  }

  function applyFile(name: string): void {
    readText(name)
      .split('\n')
      .forEach((line, index) => {
        if (line !== '' && !line.startsWith('#')) apply(line, `qemu-img:${name}:${index + 1}: `);
      });
  }

  return {
    add(text) {
      const given = parseTrace(text, write);
      if (given.enable !== undefined) apply(given.enable);
      if (given.events !== undefined) applyFile(given.events);
      // The last one alone says where the lines go.
      file = given.file;
    },
    begin() {
      if (file === undefined) return;
      const at = file.indexOf('%');
      if (at >= 0 && (file[at + 1] !== 'd' || file.includes('%', at + 1))) {
        throw new Exit(1, `Bad logfile template: ${file}`);
      }
      const name = file.replace('%d', String(process.pid));
      try {
        descriptor = openSync(name, 'w', 0o666);
      } catch (error) {
        throw new Exit(1, `Error opening logfile ${name}: ${reason(error)}`);
      }
    },
    get events() {
      return [...enabled];
    },
    write(text) {
      if (descriptor === undefined) return err(text);
      if (broken) return;
      const bytes = Buffer.from(text);
      try {
        for (let done = 0; done < bytes.length; ) done += writeSync(descriptor, bytes, done);
      } catch (error) {
        // The work is worth more than its trace.
        broken = true;
        err(`qemu-img: warning: Error writing logfile ${file}: ${reason(error)}\n`);
      }
    },
  };
}

/** The text of an events file. A folder has none, as for the reference. */
function readText(name: string): string {
  try {
    return readFileSync(name, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EISDIR') return '';
    throw new Exit(1, reason(error), undefined, `qemu-img:${name}`);
  }
}

/** `[[enable=]PATTERN][,events=FILE][,file=FILE]`, where the last of several counts. */
export function parseTrace(text: string, write: Write): { readonly [K in Key]?: string } {
  const given: { [K in Key]?: string } = {};
  const words = text.match(/(?:[^,]|,,)+|(?<=^|,)(?=,|$)/g) ?? [];
  // Before all else, and the first one alone.
  const id = words.find((word) => word.startsWith('id='));
  if (id !== undefined && !IDENTIFIER.test(id.slice('id='.length))) {
    throw new Exit(1, "Parameter 'id' expects an identifier", IDENTIFIERS);
  }
  const set = (name: string, value: string) => {
    if (name === 'id') return;
    if (!KEYS.includes(name as Key)) throw new Exit(1, `Invalid parameter '${name}'`);
    given[name as Key] = value;
  };
  words.forEach((stored, index) => {
    const word = stored.replaceAll(',,', ',');
    const equals = word.indexOf('=');
    if (equals >= 0) set(word.slice(0, equals), word.slice(equals + 1));
    else if (index === 0 && text !== '') set('enable', word);
    else if (word === 'help' || word === '?') {
      write(1, `trace options:\n${KEYS.map((key) => `  ${key}=<str>\n`).join('')}`);
      throw new Exit(1);
    } else if (word !== '') {
      const pair = shortForm(word);
      write(2, `qemu-img: warning: ${shortFormWarning(word, pair)}\n`);
      set(...pair);
    }
  });
  return given;
}
