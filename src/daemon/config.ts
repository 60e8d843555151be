/** Everything that can be set, declared once: flags, environment and help come from the one table. */
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { isAbsolute, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { defaultSocketPath } from '../protocol/endpoint.js';

/** A wrong flag or value: one line for the user, exit code 2. */
export class ConfigError extends Error {}

export interface Config {
  /** Absolute path of the Unix socket. */
  readonly socket: string;
  readonly listen: { readonly host: string; readonly port: number } | undefined;
  /** Bearer tokens that WebSocket clients must show one of. Never empty where `listen` is set. */
  readonly tokens: readonly string[];
  readonly allowOrigins: readonly string[];
  /** Resolved folders that images must be in; undefined: anywhere. */
  readonly roots: readonly string[] | undefined;
  readonly logLevel: string;
  /** SIGTERM lets jobs finish. */
  readonly drain: boolean;
  readonly maxRunning: number;
  readonly maxJobs: number;
  readonly maxMessage: number;
  readonly maxCalls: number;
  readonly maxConnections: number;
  /** MiB of JavaScript heap of a worker. */
  readonly workerMemory: number;
  /** Seconds that a cancelled job gets to stop by itself. */
  readonly killTimeout: number;
}

export type Invocation =
  | { readonly kind: 'run'; readonly config: Config }
  | { readonly kind: 'help'; readonly text: string }
  | { readonly kind: 'version' };

interface Setting {
  readonly flag: string;
  readonly env?: string;
  /** Name of the value in the help; absent: a switch. */
  readonly value?: string;
  readonly repeat?: boolean;
  readonly default?: string;
  readonly doc: string;
}

const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'];

const settings = [
  {
    flag: 'socket',
    env: 'IMGD_SOCKET',
    value: 'PATH',
    doc: 'Unix socket (default: $XDG_RUNTIME_DIR/imgd/imgd.sock, for root /run/imgd/imgd.sock)',
  },
  {
    flag: 'listen',
    env: 'IMGD_LISTEN',
    value: 'ADDRESS:PORT',
    doc: 'serve WebSocket too, on a loopback address; port 0: any. Needs --token-file',
  },
  {
    flag: 'token-file',
    env: 'IMGD_TOKEN_FILE',
    value: 'FILE',
    doc: 'bearer tokens that WebSocket clients must show, one a line, 16 characters or more',
  },
  {
    flag: 'allow-origin',
    value: 'ORIGIN',
    repeat: true,
    doc: 'let pages from this origin connect (default: only those from the same host and port)',
  },
  {
    flag: 'root',
    value: 'DIR',
    repeat: true,
    doc: 'open only images below this folder (default: anywhere)',
  },
  {
    flag: 'log-level',
    env: 'IMGD_LOG_LEVEL',
    value: 'LEVEL',
    default: 'info',
    doc: logLevels.join(', '),
  },
  { flag: 'drain', doc: 'on SIGTERM let jobs finish instead of cancelling them' },
  {
    flag: 'max-running',
    value: 'N',
    doc: 'jobs that run at once; further ones queue (default: cores + 2, at least 4)',
  },
  { flag: 'max-jobs', value: 'N', default: '1000', doc: 'jobs that run and queue' },
  { flag: 'max-message', value: 'BYTES', default: '1048576', doc: 'size of a request' },
  { flag: 'max-calls', value: 'N', default: '128', doc: 'calls of one connection that wait for jobs' },
  { flag: 'max-connections', value: 'N', default: '256', doc: 'connections' },
  {
    flag: 'worker-memory',
    value: 'MIB',
    default: '512',
    doc: 'heap of a worker; a job that needs more fails',
  },
  {
    flag: 'kill-timeout',
    value: 'SECONDS',
    default: '10',
    doc: 'what a cancelled job gets to stop before its worker is ended',
  },
  { flag: 'help', doc: 'show this text' },
  { flag: 'version', doc: 'show the version' },
] as const satisfies readonly Setting[];

export function helpText(): string {
  const rows = (settings as readonly Setting[]).map((setting) => {
    const left = `  --${setting.flag}${setting.value === undefined ? '' : ` ${setting.value}`}`;
    const notes = [
      setting.default === undefined ? '' : ` (default: ${setting.default})`,
      setting.repeat ? ' (repeatable)' : '',
      setting.env === undefined ? '' : ` [${setting.env}]`,
    ];
    return [left, setting.doc + notes.join('')] as const;
  });
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  const lines = rows.map(([left, doc]) => left.padEnd(width) + doc);
  return `Usage: imgd [OPTION]...\nHolds disk images and runs image operations as jobs for its clients.\n\n${lines.join('\n')}\n`;
}

/** Reads flags, then the environment for what no flag says. Throws ConfigError. */
export function parseConfig(
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>> = process.env,
  uid: number | undefined = process.getuid?.(),
): Invocation {
  const given = readFlags(argv);
  if (given.help === true) return { kind: 'help', text: helpText() };
  if (given.version === true) return { kind: 'version' };

  const text = (flag: (typeof settings)[number]['flag']): string | undefined => {
    const setting: Setting = settings.find((candidate) => candidate.flag === flag)!;
    const value = given[flag];
    if (typeof value === 'string') return value;
    const fromEnv = setting.env === undefined ? undefined : env[setting.env];
    return fromEnv || setting.default;
  };
  const count = (flag: (typeof settings)[number]['flag'], least: number, most: number): number => {
    const value = text(flag)!;
    const number = /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN;
    if (!(number >= least && number <= most)) {
      throw new ConfigError(`--${flag} takes a whole number from ${least} to ${most}, not '${value}'`);
    }
    return number;
  };

  const socket = text('socket') ?? defaultSocketPath(env, uid);
  if (socket === undefined) {
    throw new ConfigError('XDG_RUNTIME_DIR is not set: say where the socket shall be with --socket PATH');
  }
  // sun_path holds 108 bytes with the terminating null; more would be cut off silently.
  if (Buffer.byteLength(resolve(socket)) > 107)
    throw new ConfigError(`the socket's path is too long: ${socket}`);

  const listenText = text('listen');
  const listen = listenText === undefined ? undefined : parseListen(listenText);
  const tokenFile = text('token-file');
  if (listen !== undefined && tokenFile === undefined) throw new ConfigError('--listen needs --token-file');

  const logLevel = text('log-level')!;
  if (!logLevels.includes(logLevel)) {
    throw new ConfigError(`--log-level takes ${logLevels.join(', ')}, not '${logLevel}'`);
  }

  const roots = (given.root as string[] | undefined)?.map(resolveRoot);
  return {
    kind: 'run',
    config: {
      socket: resolve(socket),
      listen,
      tokens: listen === undefined ? [] : readTokens(tokenFile!),
      allowOrigins: ((given['allow-origin'] as string[] | undefined) ?? []).map(parseOrigin),
      roots,
      logLevel,
      drain: given.drain === true,
      maxRunning:
        given['max-running'] === undefined
          ? Math.max(4, availableParallelism() + 2)
          : count('max-running', 1, 1024),
      maxJobs: count('max-jobs', 1, 1_000_000),
      maxMessage: count('max-message', 1024, 64 * 1024 * 1024),
      maxCalls: count('max-calls', 1, 100_000),
      maxConnections: count('max-connections', 1, 100_000),
      workerMemory: count('worker-memory', 32, 65_536),
      killTimeout: count('kill-timeout', 0, 86_400),
    },
  };
}

function readFlags(
  argv: readonly string[],
): Record<string, string | boolean | (string | boolean)[] | undefined> {
  const options = Object.fromEntries(
    (settings as readonly Setting[]).map((setting) => [
      setting.flag,
      {
        type: setting.value === undefined ? 'boolean' : 'string',
        multiple: setting.repeat === true,
      } as const,
    ]),
  );
  try {
    return parseArgs({ args: [...argv], options, strict: true, allowPositionals: false }).values;
  } catch (error) {
    // Node's text goes on with advice about `--`; the first sentence says what is wrong.
    throw new ConfigError((error as Error).message.split('. ')[0]!.split('\n')[0]!);
  }
}

function parseListen(text: string): { host: string; port: number } {
  const match = /^(127(?:\.\d{1,3}){3}|localhost|\[::1\]):(\d{1,5})$/.exec(text);
  if (!match) {
    throw new ConfigError(`--listen takes a loopback address and a port, as 127.0.0.1:8040, not '${text}'`);
  }
  const port = Number(match[2]);
  if (port > 65_535) throw new ConfigError(`--listen: there is no port ${port}`);
  return { host: match[1]!.replace(/^\[|\]$/g, ''), port };
}

function parseOrigin(text: string): string {
  if (!URL.canParse(text) || new URL(text).origin !== text) {
    throw new ConfigError(`--allow-origin takes an origin, as http://host:port, not '${text}'`);
  }
  return text;
}

function resolveRoot(folder: string): string {
  let real: string;
  try {
    real = realpathSync(folder);
  } catch (error) {
    throw new ConfigError(`--root ${folder}: ${(error as NodeJS.ErrnoException).code}`);
  }
  if (!isAbsolute(real) || !statSync(real).isDirectory())
    throw new ConfigError(`--root ${folder}: not a folder`);
  return real;
}

function readTokens(file: string): string[] {
  let text: string;
  try {
    if ((statSync(file).mode & 0o007) !== 0) {
      throw new ConfigError(`--token-file ${file}: others may read or write it (chmod 600)`);
    }
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`--token-file ${file}: ${(error as NodeJS.ErrnoException).code}`);
  }
  const tokens = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  if (tokens.length === 0) throw new ConfigError(`--token-file ${file}: no token in it`);
  // The value is not shown: it is a secret.
  if (tokens.some((token) => !/^[\x21-\x7e]{16,}$/.test(token))) {
    throw new ConfigError(
      `--token-file ${file}: a token must have at least 16 printable characters and no spaces`,
    );
  }
  return tokens;
}
