/** The command line: standard options, then one subcommand. What is imported here is paid for by every call. */
import { load, names } from './commands/index.js';
import type { Command, Shell } from './declare.js';
import { Exit, HelpRequested, Interrupted, RequestError, Shown, tryHelp } from './errors.js';
import { getopt } from './getopt.js';
import { createShell, type Surroundings } from './shell.js';
import { write } from './stdio.js';

const standard = {
  help: {
    short: 'h',
    long: ['help'],
    doc: '',
    parse(): never {
      throw new Shown(helpText);
    },
  },
  version: {
    short: 'V',
    long: ['version'],
    doc: '',
    parse(): never {
      throw new Shown(async () => (await import('./version.js')).versionText);
    },
  },
  trace: { short: 'T', long: ['trace'], argument: 'TRACE', doc: '' },
  connect: { spelled: ['connect'], argument: 'PATH', doc: '' },
} as const;

/** Words that may be the option, in one of its spellings. */
const TRACE = /^(?:-T|--t(?:r|ra|rac|race)?(?:$|=))/;

async function helpText(): Promise<string> {
  const [{ generalHelp }, { versionText }] = await Promise.all([import('./help.js'), import('./version.js')]);
  const commands = await Promise.all(names.map(load));
  return generalHelp(versionText, commands as Command[]);
}

/** Runs one command line (without the program's own name) and returns its exit code. Tests give other surroundings. */
export async function run(args: readonly string[], around: Surroundings = { write }): Promise<number> {
  try {
    const trace = args.some((word) => TRACE.test(word))
      ? (await import('./trace.js')).createTrace(around.write)
      : undefined;
    const options = trace ? { ...standard, trace: { ...standard.trace, parse: trace.add } } : standard;
    const { values, positional } = getopt('qemu-img', args, options, true);
    const [name, ...rest] = positional;
    if (name === undefined) throw new Exit(1, 'Not enough arguments', tryHelp('qemu-img'));
    trace?.begin();
    const command = await load(name);
    if (command === undefined) throw new Exit(1, `Command not found: ${name}`, tryHelp('qemu-img'));
    return await runCommand(command, rest, createShell(values.connect, around, trace), around);
  } catch (error) {
    return await ended(error, around);
  }
}

async function runCommand(
  command: Command,
  args: readonly string[],
  shell: Shell,
  around: Surroundings,
): Promise<number> {
  try {
    const { values, positional } = getopt(
      `qemu-img ${command.name}`,
      args,
      command.options,
      undefined,
      command.negativeNumbers,
    );
    return await command.run(values, positional, shell);
  } catch (error) {
    if (!(error instanceof HelpRequested)) throw error;
    around.write(1, (await import('./help.js')).commandHelp(command));
    return 0;
  }
}

/** Says why the program ends, and with which code. */
async function ended(error: unknown, { write }: Surroundings): Promise<number> {
  if (error instanceof Shown) {
    write(1, await error.print());
    return 0;
  }
  if (error instanceof Interrupted) {
    // Whoever started us sees what the reference would have shown: a program that the signal ended.
    process.kill(process.pid, error.signal);
    return 1;
  }
  const program = error instanceof Exit ? error.program : 'qemu-img';
  let code = 1;
  let text: string | undefined;
  let hint: string | undefined;
  if (error instanceof Exit) ({ code, text, hint } = error);
  else if (error instanceof RequestError) ({ message: text, hint } = error);
  else text = `internal error: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
  write(2, `${text === undefined ? '' : `${program}: ${text}\n`}${hint === undefined ? '' : `${hint}\n`}`);
  return code;
}
