/** What a subcommand declares about itself. The parser, the help texts and the types of the parsed values come from it. */

import type { ParamsOf, ResultOf } from '../../src/protocol/command.js';
import type { MapEntry } from '../../src/protocol/commands/image-map.js';
import type { OperationName, operations } from '../../src/protocol/commands/index.js';

/**
 * One option. The key under which a command lists it names its value; the order in which it lists them is the one in
 * which the parser names candidates for an ambiguous abbreviation.
 */
export interface OptionDeclaration {
  /** One letter. */
  readonly short?: string;
  /** Long names, which may be abbreviated; the first is the one that help shows. */
  readonly long?: readonly string[];
  /** Long names that count only when spelled out: documented ones that the reference's own parser lacks. */
  readonly spelled?: readonly string[];
  /** What help calls the argument; absent: the option takes none. */
  readonly argument?: string;
  readonly doc: string;
  /** The argument's text to its value, while the command line is read: the first bad argument is the one reported. */
  readonly parse?: (text: string) => unknown;
  /** May be given more than once: the value is an array. */
  readonly list?: true;
}

export type OptionTable = Readonly<Record<string, OptionDeclaration>>;

type ValueOf<D> = D extends { argument: string }
  ? D extends { parse: (text: string) => infer T }
    ? D extends { list: true }
      ? T[]
      : T
    : D extends { list: true }
      ? string[]
      : string
  : true;

/** The parsed values: absent where an option was not given. */
export type Values<O extends OptionTable> = { [K in keyof O]?: ValueOf<O[K]> };

export interface Positional {
  readonly name: string;
  readonly doc: string;
}

export interface Command<O extends OptionTable = OptionTable> {
  readonly name: string;
  /** One sentence. */
  readonly doc: string;
  /** The lines of the synopsis after `qemu-img NAME `. */
  readonly usage: readonly string[];
  readonly options: O;
  readonly positional: readonly Positional[];
  /** `-1M` after the first word that is no option is no option either. */
  readonly negativeNumbers?: boolean;
  /** What other exit codes than 0 and 1 mean, or what these mean here: for the manual. */
  readonly exitCodes?: Readonly<Record<number, string>>;
  /** Returns the exit code. */
  run(values: Values<O>, positional: readonly string[], shell: Shell): Promise<number>;
}

/** Keeps the option table's own type, so that `run` sees each value's type. */
export function command<const O extends OptionTable>(declaration: Command<O>): Command<O> {
  return declaration;
}

/** The client makes no other requests than operations. */
export type RequestName = OperationName;
export type RequestParams<N extends RequestName> = ParamsOf<(typeof operations)[N]>;
export type RequestResult<N extends RequestName> = ResultOf<(typeof operations)[N]>;

export interface ProgressReport {
  readonly phase: string;
  readonly done: number;
  readonly total: number;
}

export interface Listeners {
  onProgress?(progress: ProgressReport): void;
  /** Map entries of a streaming request. */
  onEntries?(entries: readonly MapEntry[]): void;
  /** Text for a person; where absent it goes to stdout or stderr as it is. */
  onText?(stream: 'stdout' | 'stderr', text: string): void;
  /** Lines of trace events; subcommands leave these to the shell. */
  onTrace?(text: string): void;
}

/** What a subcommand may do: say something, and make a request. */
export interface Shell {
  readonly cwd: string;
  out(text: string): void;
  err(text: string): void;
  /** Runs one operation; throws RequestError when it fails, Interrupted when the user stopped it. */
  request<N extends RequestName>(
    name: N,
    params: Omit<RequestParams<N>, 'cwd'>,
    listeners?: Listeners,
  ): Promise<RequestResult<N>>;
}
