/** The ways in which a command line ends early. */

/** Ends the program: `text`, if any, goes to stderr behind the program's name and a colon, `hint` after it as it is. */
export class Exit extends Error {
  constructor(
    readonly code: number,
    readonly text?: string,
    readonly hint?: string,
    readonly program = 'qemu-img',
  ) {
    super(text ?? '');
  }
}

/** `Try 'qemu-img info --help' for more info`: what follows an error of the command line's form. */
export function tryHelp(program: string): string {
  return `Try '${program} --help' for more info`;
}

/** Bad usage of a subcommand: the message, the hint at its help, exit code 1. */
export function usage(command: string, text: string): Exit {
  return new Exit(1, text, tryHelp(`qemu-img ${command}`));
}

/** Raised by an option that only shows something: the program prints it and ends well. */
export class Shown extends Error {
  constructor(readonly print: () => string | Promise<string>) {
    super();
  }
}

/** Raised by a subcommand's `--help` where the parser meets it. */
export class HelpRequested extends Error {}

/** The answer to a request was an error. `message` is the text behind `qemu-img: `; `hint` holds further lines. */
export class RequestError extends Error {
  constructor(
    message: string,
    readonly kind: string,
    readonly hint?: string,
  ) {
    super(message);
  }
}

/** The user stopped the program by this signal, and the operation has ended. */
export class Interrupted extends Error {
  constructor(readonly signal: NodeJS.Signals) {
    super(signal);
  }
}
