/**
 * All that QMP's clients may call: QAPI's commands, and imgd's own as `x-imgd-` and their JSON-RPC name. A command of JSON-RPC that
 * QMP has under the same name and in the same shape is served as it is.
 */
import type { OpenPolicy } from '../../engine/node/gate.js';
import type { BlockDeviceInfo } from '../../protocol/commands/blockdev.js';
import { type CommandName, commands } from '../../protocol/commands/index.js';
import { JobOptions } from '../../protocol/commands/jobs.js';
import { roleNeeded } from '../../protocol/roles.js';
import type { GroupAccess } from '../handlers/images.js';
import type { JobManager } from '../jobs/manager.js';
import { type Call, type Method, RawJson } from '../sessions/rpc.js';
import { QEMU_VERSION, VERSION } from '../version.js';
import { type BitmapAccess, Bitmaps } from './bitmaps.js';
import { type BlockdevRef, type CreateTarget, checkCreatable, createParams } from './create-options.js';
import {
  declarations,
  type QmpCommandName,
  type QmpParams,
  qmpEvents,
  type TransactionAction,
} from './declarations.js';
import type { QmpCommand } from './dispatch.js';
import { introspect } from './introspect.js';
import { jobCommands, jobExists, manualJob } from './jobs.js';
import { Objects } from './objects.js';
import { EMPTY, type QapiObject, qapiArguments, qapiType } from './qapi.js';
import { QmpError, versionJson } from './reply.js';

export interface QmpContext {
  readonly jobs: JobManager;
  /** JSON-RPC's. */
  readonly methods: Readonly<Record<string, Method>>;
  readonly bitmaps: BitmapAccess;
  nodes(): Promise<readonly BlockDeviceInfo[]>;
  readonly groups: GroupAccess;
  readonly policy: OpenPolicy;
  /** Begins the end of the daemon; returns at once. */
  quit(): void;
}

export interface QmpTable {
  readonly commands: ReadonlyMap<string, QmpCommand>;
  /** QAPI's VersionInfo, as JSON. */
  readonly version: string;
  /** Resolves when no command is under way that changes images without a job. */
  quiet(): Promise<void>;
}

/** Served under their own names, as they are. */
const SAME: readonly CommandName[] = [
  'blockdev-add',
  'blockdev-del',
  'blockdev-reopen',
  'query-named-block-nodes',
];

/** A client of QMP is told of events anyway, and its own way. */
const NOT_FOR_QMP: ReadonlySet<string> = new Set(['events-subscribe', 'events-unsubscribe']);

export const OWN_PREFIX = 'x-imgd-';

const version = versionJson(QEMU_VERSION, `imgd ${VERSION}`);

export function createQmpTable(context: QmpContext): QmpTable {
  const { jobs, methods } = context;
  const table = new Map<string, QmpCommand>();
  const objects = new Objects(context.policy, context.groups);
  const bitmaps = new Bitmaps(context.bitmaps);
  /** Files that jobs of blockdev-create are about, by the jobs' ids. */
  const created = new Map<string, string>();
  const bitmap =
    (type: TransactionAction['type']) =>
    (data: unknown): Promise<void> =>
      bitmaps.run([{ type, data } as TransactionAction]);

  /** The file that a reference of blockdev-create is to. */
  async function fileOf(reference: BlockdevRef): Promise<CreateTarget> {
    if (typeof reference === 'string') {
      const nodes = await context.nodes();
      const node: BlockDeviceInfo | undefined = nodes.find((each) => each['node-name'] === reference);
      if (node === undefined) {
        throw new QmpError(`Cannot find device='${reference}' nor node-name='${reference}'`);
      }
      if (node.drv !== 'file') throw new QmpError(`Node '${reference}' is not a file`);
      return { filename: node.file, node: reference };
    }
    const { driver, filename, ...rest } = reference as Record<string, unknown>;
    if (driver !== 'file') throw new QmpError("Only files can be created in: 'driver' must be 'file'");
    if (typeof filename !== 'string') throw new QmpError("Parameter 'options.file.filename' is missing");
    for (const name of ['node-name', 'read-only', 'locking', 'aio', 'cache', 'discard']) delete rest[name];
    const stranger = Object.keys(rest)[0];
    if (stranger !== undefined) throw new QmpError(`Parameter 'options.file.${stranger}' is unexpected`);
    return { filename };
  }

  const native: { readonly [N in QmpCommandName]: (given: QmpParams<N>, call: Call) => unknown } = {
    ...jobCommands(jobs, methods, created),
    // Answered by the session: negotiation is over when this is called.
    qmp_capabilities: () => {
      throw new QmpError('Capabilities negotiation is already complete, command ignored', 'CommandNotFound');
    },
    'query-version': () => new RawJson(version),
    'query-commands': () => [...table.keys()].map((name) => ({ name })),
    'query-qmp-schema': async () => {
      const { blockdevSchema } = await import('./blockdev-schema.js');
      const shown = new Map(table);
      const node = await blockdevSchema('reopen');
      const options = { name: 'options', type: { kind: 'array', of: node } as const, optional: false };
      const add = await blockdevSchema('add');
      shown.set('blockdev-add', { ...table.get('blockdev-add')!, arguments: add });
      const reopen = table.get('blockdev-reopen')!;
      const rest = reopen.arguments.members.filter(({ name }) => name !== 'options');
      shown.set('blockdev-reopen', { ...reopen, arguments: { ...EMPTY, members: [options, ...rest] } });
      const events = Object.entries(qmpEvents).map(([name, data]) => [name, qapiArguments(data)] as const);
      return introspect(shown.values(), Object.fromEntries(events));
    },
    quit: (_, call) => {
      call.afterAnswer(() => context.quit());
    },
    'blockdev-create': async ({ 'job-id': id, options }, { session }) => {
      checkCreatable(options);
      const start = manualJob(jobs, id);
      const params = await createParams(options, fileOf);
      // Looked for once more: others had their turn meanwhile.
      manualJob(jobs, id);
      for (const known of [...created.keys()]) if (!jobExists(jobs, known)) created.delete(known);
      created.set(id, params.filename);
      jobs.start('image-create', { ...params, ...secretsFor(params) }, process.cwd(), start, session);
    },
    'object-add': (object) => objects.add(object),
    'object-del': ({ id }) => objects.delete(id),
    'qom-list-types': ({ implements: what }) => objects.types(what),
    'block-dirty-bitmap-add': bitmap('block-dirty-bitmap-add'),
    'block-dirty-bitmap-remove': bitmap('block-dirty-bitmap-remove'),
    'block-dirty-bitmap-clear': bitmap('block-dirty-bitmap-clear'),
    'block-dirty-bitmap-enable': bitmap('block-dirty-bitmap-enable'),
    'block-dirty-bitmap-disable': bitmap('block-dirty-bitmap-disable'),
    'block-dirty-bitmap-merge': bitmap('block-dirty-bitmap-merge'),
    transaction: async ({ actions }) => {
      if (actions.length > 0) await bitmaps.run(actions);
    },
  };

  function secretsFor(params: object): { objects?: readonly { 'qom-type': string; id: string }[] } {
    const found = objects.referenced(params);
    return found.length === 0 ? {} : { objects: found };
  }

  for (const name of Object.keys(declarations) as QmpCommandName[]) {
    const { params, result, role, ...more } = declarations[name];
    table.set(name, {
      name,
      arguments: qapiArguments(params),
      result: qapiType(result),
      role,
      oob: 'oob' in more,
      run: native[name] as QmpCommand['run'],
    });
  }
  for (const name of Object.keys(commands) as CommandName[]) {
    const same = SAME.includes(name);
    if ((!same && name in declarations && name !== 'query-jobs') || NOT_FOR_QMP.has(name)) continue;
    const { params, result, job } = commands[name];
    const given = qapiArguments(params);
    const takesObjects = given.members.some((member) => member.name === 'objects');
    const shown = same ? name : OWN_PREFIX + name;
    table.set(shown, {
      name: shown,
      arguments: job ? withJob(given) : given,
      result: job ? { kind: 'builtin', name: 'any' } : qapiType(result),
      role: roleNeeded(name),
      oob: false,
      run: async (raw, call) => {
        const own = raw as { readonly objects?: readonly unknown[] };
        const found = takesObjects ? objects.referenced(raw) : [];
        const all = found.length === 0 ? own : { ...own, objects: [...found, ...(own.objects ?? [])] };
        const answer = await methods[name]!(all, call);
        // Of QAPI's commands members come in QEMU's order, of ours as they are.
        return same || answer instanceof RawJson ? answer : new RawJson(JSON.stringify(answer));
      },
    });
  }
  return { commands: table, version, quiet: () => bitmaps.quiet() };
}

/** Operations take `job` beside their own parameters. */
function withJob(given: QapiObject): QapiObject {
  const job = { name: 'job', type: qapiType(JobOptions), optional: true };
  return { ...EMPTY, ...given, members: [...given.members, job] };
}
