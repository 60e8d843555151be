/** `imgd status`, `jobs`, `events`, `cancel` and `inspect`: for a person at a shell. */
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { ImageInspectResult } from '../../protocol/commands/image-inspect.js';
import type { JobInfo } from '../../protocol/commands/jobs.js';
import { defaultSocketPath } from '../../protocol/endpoint.js';
import type { EventParams } from '../../protocol/events.js';
import { Client, ShellError } from './client.js';
import { eventText, inspectText, jobsText, type Status, statusText, visible } from './text.js';

interface Asked {
  readonly words: readonly string[];
  readonly values: Readonly<Record<string, string | boolean | undefined>>;
  readonly json: boolean;
  readonly socket: string | undefined;
}

interface Command {
  /** Names of the words after the command; in brackets: may be left out. */
  readonly words: readonly string[];
  readonly options: Readonly<Record<string, { readonly value?: string; readonly doc: string }>>;
  readonly doc: string;
  /** Returns the exit code. */
  run(asked: Asked): Promise<number>;
}

const NOT_SAFE = 3;

const out = (text: string): void => void process.stdout.write(text);
const asJson = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;

async function connect({ socket }: Asked, onEvent?: (params: EventParams) => void): Promise<Client> {
  const path = socket ?? defaultSocketPath(process.env, process.getuid?.());
  if (path === undefined) throw new ShellError('where is the daemon? Say it with --socket PATH');
  return Client.connect(resolve(path), socket !== undefined || Boolean(process.env.IMGD_SOCKET), onEvent);
}

async function asking<T>(asked: Asked, ask: (client: Client) => Promise<T>): Promise<T> {
  const client = await connect(asked);
  try {
    return await ask(client);
  } finally {
    client.close();
  }
}

const commands: Readonly<Record<string, Command>> = {
  status: {
    words: [],
    options: {},
    doc: 'Tells how the daemon is.',
    async run(asked) {
      const [status, { version }] = await asking(asked, async (client) => [
        (await client.call('query-status')) as Status,
        (await client.call('query-version')) as { version: string },
      ]);
      out(asked.json ? asJson({ version, ...status }) : statusText(status, version));
      return 0;
    },
  },
  jobs: {
    words: [],
    options: {},
    doc: 'Lists the jobs that the daemon knows of, oldest first.',
    async run(asked) {
      const jobs = (await asking(asked, (client) => client.call('query-jobs'))) as JobInfo[];
      out(asked.json ? asJson(jobs) : jobsText(jobs, Date.now()));
      return 0;
    },
  },
  events: {
    words: ['[JOB]'],
    options: { since: { value: 'NUMBER', doc: 'first those with greater numbers that are remembered' } },
    doc: 'Tells what happens, of one job or of all, an event a line, until it is interrupted.',
    async run(asked) {
      const [job] = asked.words;
      const since = asked.values.since === undefined ? undefined : Number(asked.values.since);
      if (since !== undefined && !Number.isSafeInteger(since)) throw new ShellError('--since takes a number');
      let slow: string | undefined;
      const client = await connect(asked, (params) => {
        if (params.event === 'SUBSCRIPTION_ENDED') slow = 'too slow: the daemon has ended the subscription';
        out(asked.json ? `${JSON.stringify(params)}\n` : eventText(params));
        if (slow !== undefined) client.close();
      });
      const filter = job === undefined ? {} : { filter: { job } };
      await client.call('events-subscribe', { ...filter, ...(since === undefined ? {} : { since }) });
      await client.ended.catch((error: unknown) => {
        throw slow === undefined ? error : new ShellError(slow);
      });
      return 0;
    },
  },
  cancel: {
    words: ['ID'],
    options: { force: { doc: 'end its worker at once: what it was writing is left as it is' } },
    doc: 'Cancels a job.',
    async run(asked) {
      const params = { id: asked.words[0], force: asked.values.force === true };
      await asking(asked, (client) => client.call('job-cancel', params));
      return 0;
    },
  },
  inspect: {
    words: ['FILE'],
    options: {
      format: { value: 'FORMAT', doc: 'what it is said to be: anything else fails' },
      'max-size': { value: 'BYTES', doc: 'the largest guest disk that is accepted' },
    },
    doc: `Checks whether an image is safe to be used, and opens nothing that it refers to. Exit code 0: safe, ${NOT_SAFE}: not safe.\nWithout a daemon it is looked at in this process.`,
    async run(asked) {
      const { format, 'max-size': limit } = asked.values;
      if (limit !== undefined && !/^\d{1,15}$/.test(String(limit))) {
        throw new ShellError('--max-size takes a number of bytes');
      }
      const params = {
        filename: asked.words[0]!,
        cwd: process.cwd(),
        ...(format === undefined ? {} : { format }),
        ...(limit === undefined ? {} : { 'max-size': Number(limit) }),
      };
      const report = await inspect(asked, params);
      out(asked.json ? asJson(report) : inspectText(report));
      return report.safe ? 0 : NOT_SAFE;
    },
  },
};

async function inspect(asked: Asked, params: { readonly cwd: string }): Promise<ImageInspectResult> {
  try {
    return (await asking(asked, (client) => client.call('image-inspect', params))) as ImageInspectResult;
  } catch (error) {
    // Where a daemon was named it is the one that is asked.
    if (!(error instanceof ShellError && error.absent && asked.socket === undefined)) throw error;
  }
  const { runOperation } = await import('../../engine/index.js');
  const done = await runOperation('image-inspect', params, {
    cwd: params.cwd,
    policy: {},
    signal: new AbortController().signal,
    progress: () => undefined,
    output: () => undefined,
    pace: () => undefined,
    setRate: () => undefined,
  });
  if (done.isErr()) throw new ShellError(done.error.message);
  return done.value as ImageInspectResult;
}

export function isShellCommand(word: string | undefined): word is string {
  return word !== undefined && Object.hasOwn(commands, word);
}

function usage(name: string, { words, options, doc }: Command): string {
  const more = [
    ...Object.entries(options),
    ['json', { doc: 'for programs' }] as const,
    ['socket', { value: 'PATH', doc: "the daemon's socket [IMGD_SOCKET]" }] as const,
  ].map(([flag, option]) => {
    const value = 'value' in option && option.value !== undefined ? ` ${option.value}` : '';
    return `  ${`--${flag}${value}`.padEnd(18)}${option.doc}\n`;
  });
  return `Usage: ${['imgd', name, '[OPTION]...', ...words].join(' ')}\n${doc}\n\n${more.join('')}`;
}

function parse(command: Command, argv: readonly string[]): Asked & { readonly help: boolean } {
  const own = Object.entries(command.options).map(
    ([flag, { value }]) => [flag, { type: value === undefined ? 'boolean' : 'string' }] as const,
  );
  const options = {
    ...Object.fromEntries(own),
    json: { type: 'boolean' },
    socket: { type: 'string' },
    help: { type: 'boolean', short: 'h' },
  } as const;
  try {
    const { values, positionals } = parseArgs({ args: [...argv], options, allowPositionals: true });
    const given: Readonly<Record<string, string | boolean | undefined>> = values;
    const least = command.words.filter((word) => !word.startsWith('[')).length;
    if (given.help !== true && (positionals.length < least || positionals.length > command.words.length)) {
      const wanted = command.words.length === 0 ? 'no words' : command.words.join(' ');
      throw new Error(`takes ${wanted}`);
    }
    const socket = typeof given.socket === 'string' ? given.socket : undefined;
    return {
      words: positionals,
      values: given,
      json: given.json === true,
      socket,
      help: given.help === true,
    };
  } catch (error) {
    throw new ShellError((error as Error).message.split('. ')[0]!.split('\n')[0]!);
  }
}

/** Runs a command; returns the exit code: 0, 1 where it failed, 2 where it makes no sense. */
export async function shell(name: string, argv: readonly string[]): Promise<number> {
  const command = commands[name]!;
  let asked: ReturnType<typeof parse>;
  try {
    asked = parse(command, argv);
  } catch (error) {
    process.stderr.write(`imgd ${name}: ${(error as Error).message}\nTry 'imgd ${name} --help'.\n`);
    return 2;
  }
  if (asked.help) {
    out(usage(name, command));
    return 0;
  }
  // A reader that has seen enough (head, less) is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
  try {
    return await command.run(asked);
  } catch (error) {
    if (!(error instanceof ShellError)) throw error;
    process.stderr.write(`imgd: ${visible(error.message)}\n`);
    return 1;
  }
}
