/** Everything that can be set, declared once: flags, environment, file and help come from the one table. */
import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { defaultSocketPath } from '../protocol/endpoint.js';
import { type Role, roles } from '../protocol/roles.js';
import {
  type Environment,
  type Given,
  readEnvironment,
  readFile,
  readFlags,
  type Setting,
  variableOf,
} from './config-sources.js';
import {
  ConfigError,
  type Endpoint,
  isLoopback,
  parseChoice,
  parseCount,
  parseGroup,
  parseHost,
  parseListen,
  parseMode,
  parseOrigin,
  parseSwitch,
  readTls,
  readTokens,
  resolveRoot,
  type TlsFiles,
  type Token,
} from './config-values.js';

export { ConfigError } from './config-values.js';

export interface Config {
  /** Absolute path of the Unix socket. */
  readonly socket: string;
  readonly socketMode: number;
  /** Group that the socket belongs to; undefined: the daemon's. */
  readonly socketGroup: number | undefined;
  /** What users of the socket may do who are neither the daemon's user nor root. */
  readonly groupRole: Role;
  /** Absolute path of the socket that speaks QMP. */
  readonly qmpSocket: string | undefined;
  readonly listen: Endpoint | undefined;
  readonly tls: TlsFiles | undefined;
  /** Bearer tokens that WebSocket and HTTP clients must show one of. Never empty where `listen` is set. */
  readonly tokens: readonly Token[];
  readonly allowOrigins: readonly string[];
  readonly allowHosts: readonly string[];
  /** Resolved folders that images must be in; undefined: anywhere. */
  readonly roots: readonly string[] | undefined;
  /** Absolute; undefined: none is kept. */
  readonly journal: string | undefined;
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
  /** Jobs that run at once on one storage device; 0: any number. */
  readonly maxPerDevice: number;
  /** Seconds without progress after which a job is said to be stalled; 0: never. */
  readonly stallTimeout: number;
}

export type Invocation =
  | { readonly kind: 'run'; readonly config: Config }
  | { readonly kind: 'help'; readonly text: string }
  /** `--check-config`: what is set, and by what. */
  | { readonly kind: 'checked'; readonly text: string }
  | { readonly kind: 'version' };

const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;

export const settings = [
  {
    flag: 'config',
    value: 'FILE',
    doc: 'read settings from this file: lines NAME = VALUE, names as here without dashes',
  },
  {
    flag: 'check-config',
    once: true,
    doc: 'tell what is set and by what, then exit: 0 if all is well, else 2',
  },
  {
    flag: 'socket',
    value: 'PATH',
    doc: 'Unix socket (default: $XDG_RUNTIME_DIR/imgd/imgd.sock, for root /run/imgd/imgd.sock)',
  },
  {
    flag: 'socket-mode',
    value: 'MODE',
    default: '600',
    doc: "the socket's permissions, 660 to let its group in",
  },
  { flag: 'socket-group', value: 'GROUP', doc: "the socket's group, by name or number" },
  {
    flag: 'group-role',
    value: 'ROLE',
    default: 'operate',
    doc: `what members of the socket's group may do: ${roles.join(', ')}`,
  },
  {
    flag: 'qmp-socket',
    value: 'PATH',
    doc: 'serve QMP too, on this Unix socket, with the same permissions',
  },
  {
    flag: 'listen',
    value: 'ADDRESS:PORT',
    doc: 'serve WebSocket and HTTP too; port 0: any. Needs --token-file, and off loopback --tls-cert',
  },
  {
    flag: 'token-file',
    value: 'FILE',
    doc: 'bearer tokens that WebSocket and HTTP clients must show: lines TOKEN [ROLE], 16 characters or more',
  },
  { flag: 'tls-cert', value: 'FILE', doc: 'certificate (PEM, with its chain): speak TLS' },
  { flag: 'tls-key', value: 'FILE', doc: 'its private key (PEM)' },
  {
    flag: 'allow-origin',
    value: 'ORIGIN',
    repeat: true,
    doc: 'let pages from this origin connect (default: only those from the same host and port)',
  },
  {
    flag: 'allow-host',
    value: 'HOST',
    repeat: true,
    doc: 'a name by which clients call this machine (default: only its addresses, and localhost on loopback)',
  },
  {
    flag: 'root',
    value: 'DIR',
    repeat: true,
    doc: 'open only images below this folder (default: anywhere)',
  },
  {
    flag: 'journal',
    value: 'FILE',
    doc: 'what a daemon after a crash must know of jobs; none: keep none (default: /var/lib/imgd/journal for root, else $XDG_STATE_HOME/imgd/journal; with --socket PATH: PATH.journal)',
  },
  { flag: 'log-level', value: 'LEVEL', default: 'info', doc: logLevels.join(', ') },
  { flag: 'drain', doc: 'on SIGTERM let jobs finish instead of cancelling them' },
  {
    flag: 'max-running',
    value: 'N',
    doc: 'jobs that run at once; further ones queue (default: cores + 2, at least 4)',
  },
  {
    flag: 'max-per-device',
    value: 'N',
    default: '0',
    doc: 'jobs that run at once on one storage device, 0: any number',
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
  {
    flag: 'stall-timeout',
    value: 'SECONDS',
    default: '60',
    doc: 'a running job without progress for so long is said to be stalled (event JOB_STALLED), 0: never',
  },
  { flag: 'help', once: true, doc: 'show this text' },
  { flag: 'version', once: true, doc: 'show the version' },
] as const satisfies readonly Setting[];

type Flag = (typeof settings)[number]['flag'];

/** What takes effect on SIGHUP; a change of anything else waits for the next start. */
export const reloadable = [
  'tokens',
  'tls',
  'allowOrigins',
  'allowHosts',
  'groupRole',
  'logLevel',
  'drain',
  'maxRunning',
  'maxJobs',
  'maxMessage',
  'maxCalls',
  'maxConnections',
  'killTimeout',
  'maxPerDevice',
  'stallTimeout',
] as const satisfies readonly (keyof Config)[];

/** What people call at a shell, see shell/main.ts; told here so that --help names them. */
export const SHELL_HELP = `Commands, for a daemon that runs:
  imgd status         how it is
  imgd jobs           its jobs
  imgd events [JOB]   what happens, until interrupted
  imgd cancel ID      cancels a job
  imgd inspect FILE   safety checks of an image, opening nothing that it refers to
  (--json: for programs; --socket PATH: which daemon; imgd COMMAND --help)
`;

export function helpText(): string {
  const rows = (settings as readonly Setting[]).map((setting) => {
    const left = `  --${setting.flag}${setting.value === undefined ? '' : ` ${setting.value}`}`;
    const notes = [
      setting.default === undefined ? '' : ` (default: ${setting.default})`,
      setting.repeat ? ' (repeatable)' : '',
      setting.once ? '' : ` [${variableOf(setting)}]`,
    ];
    return [left, setting.doc + notes.join('')] as const;
  });
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  const lines = rows.map(([left, doc]) => left.padEnd(width) + doc);
  return (
    'Usage: imgd [OPTION]...\n       imgd COMMAND [OPTION]...\n' +
    'Holds disk images and runs image operations as jobs for its clients.\n\n' +
    `${lines.join('\n')}\n\n${SHELL_HELP}\nFlags come first, then the environment [in brackets], then the file. ` +
    'SIGHUP reads all again.\n'
  );
}

/** Reads flags, the environment for what no flag says, and the file for the rest. Throws ConfigError. */
export function parseConfig(
  argv: readonly string[],
  env: Environment = process.env,
  uid: number | undefined = process.getuid?.(),
): Invocation {
  const flags = readFlags(settings, argv);
  if (flags.has('help')) return { kind: 'help', text: helpText() };
  if (flags.has('version')) return { kind: 'version' };
  const variables = readEnvironment(settings, env);
  const file = (flags.get('config') ?? variables.get('config'))?.texts[0];
  const given = new Map([
    ...(file === undefined ? [] : readFile(settings, resolve(file))),
    ...variables,
    ...flags,
  ]);
  const config = configOf(given, env, uid);
  return flags.has('check-config')
    ? { kind: 'checked', text: describe(given, config) }
    : { kind: 'run', config };
}

function configOf(given: ReadonlyMap<string, Given>, env: Environment, uid: number | undefined): Config {
  const text = (flag: Flag): string | undefined =>
    given.get(flag)?.texts[0] ?? (settings as readonly Setting[]).find((each) => each.flag === flag)!.default;
  /** The setting as the user wrote it. */
  const name = (flag: Flag): string => given.get(flag)?.name ?? `--${flag}`;
  const all = <T>(flag: Flag, parse: (text: string, name: string) => T): T[] =>
    (given.get(flag)?.texts ?? []).map((each) => parse(each, name(flag)));
  const one = <T>(flag: Flag, parse: (text: string, name: string) => T): T | undefined => {
    const value = text(flag);
    return value === undefined ? undefined : parse(value, name(flag));
  };
  const count = (flag: Flag, least: number, most: number): number =>
    parseCount(text(flag)!, name(flag), least, most);

  const socket = text('socket') ?? defaultSocketPath(env, uid);
  if (socket === undefined) {
    throw new ConfigError('XDG_RUNTIME_DIR is not set: say where the socket shall be with --socket PATH');
  }
  // sun_path holds 108 bytes with the terminating null; more would be cut off silently.
  if (Buffer.byteLength(resolve(socket)) > 107)
    throw new ConfigError(`the socket's path is too long: ${socket}`);

  const listen = one('listen', parseListen);
  const tokens = one('token-file', readTokens) ?? [];
  const cert = text('tls-cert');
  const key = text('tls-key');
  if ((cert === undefined) !== (key === undefined)) {
    throw new ConfigError('--tls-cert and --tls-key are given together or not at all');
  }
  const tls =
    cert === undefined || key === undefined
      ? undefined
      : readTls(cert, name('tls-cert'), key, name('tls-key'));
  if (listen !== undefined && !isLoopback(listen.host) && tls === undefined) {
    throw new ConfigError(
      `${name('listen')} ${text('listen')}: off the loopback addresses (127.0.0.1, [::1]) only with TLS: --tls-cert, --tls-key`,
    );
  }
  if (listen !== undefined && tokens.length === 0) throw new ConfigError('--listen needs --token-file');

  return {
    socket: resolve(socket),
    socketMode: one('socket-mode', parseMode)!,
    socketGroup: one('socket-group', parseGroup),
    groupRole: parseChoice(text('group-role')!, name('group-role'), roles),
    qmpSocket: qmpPath(text('qmp-socket'), name('qmp-socket'), resolve(socket)),
    listen,
    tls,
    tokens,
    allowOrigins: all('allow-origin', parseOrigin),
    allowHosts: all('allow-host', parseHost),
    roots: given.has('root') ? all('root', resolveRoot) : undefined,
    journal: journalPath(text('journal'), given.has('socket') ? resolve(socket) : undefined, env, uid),
    logLevel: parseChoice(text('log-level')!, name('log-level'), logLevels),
    drain: one('drain', parseSwitch) ?? false,
    maxRunning: given.has('max-running')
      ? count('max-running', 1, 1024)
      : Math.max(4, availableParallelism() + 2),
    maxJobs: count('max-jobs', 1, 1_000_000),
    maxMessage: count('max-message', 1024, 64 * 1024 * 1024),
    maxCalls: count('max-calls', 1, 100_000),
    maxConnections: count('max-connections', 1, 100_000),
    workerMemory: count('worker-memory', 32, 65_536),
    killTimeout: count('kill-timeout', 0, 86_400),
    maxPerDevice: count('max-per-device', 0, 1024),
    stallTimeout: count('stall-timeout', 0, 86_400),
  };
}

function qmpPath(text: string | undefined, name: string, socket: string): string | undefined {
  if (text === undefined) return undefined;
  const path = resolve(text);
  if (Buffer.byteLength(path) > 107) throw new ConfigError(`${name}: the socket's path is too long: ${text}`);
  if (path === socket) throw new ConfigError(`${name}: ${text} is the JSON-RPC socket already`);
  return path;
}

/** One daemon a socket, one journal a daemon: beside a socket that was given, where state belongs otherwise. */
function journalPath(
  given: string | undefined,
  socket: string | undefined,
  env: Environment,
  uid: number | undefined,
): string | undefined {
  if (given === 'none') return undefined;
  if (given !== undefined) return resolve(given);
  if (socket !== undefined) return `${socket}.journal`;
  if (uid === 0) return '/var/lib/imgd/journal';
  const state = env.XDG_STATE_HOME || (env.HOME === undefined ? undefined : `${env.HOME}/.local/state`);
  return state?.startsWith('/') ? `${state}/imgd/journal` : undefined;
}

/** What is set, in the form of a file. Files that hold secrets are named, not shown. */
function describe(given: ReadonlyMap<string, Given>, config: Config): string {
  const lines = (settings as readonly Setting[]).flatMap((setting) => {
    if (setting.once || setting.flag === 'config') return [];
    const from = given.get(setting.flag);
    if (from !== undefined) return from.texts.map((text) => `${setting.flag} = ${text}  # ${from.from}`);
    if (setting.flag === 'socket') return [`socket = ${config.socket}  # default`];
    return setting.default === undefined ? [] : [`${setting.flag} = ${setting.default}  # default`];
  });
  return `${lines.join('\n')}\n`;
}
