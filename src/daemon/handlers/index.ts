/** Every command's handler. A command without one does not compile. */
import { isAbsolute } from 'node:path';
import type { GenericSchema } from 'valibot';
import type { ParamsOf, ResultOf } from '../../protocol/command.js';
import { type CommandName, commands, type OperationName, operations } from '../../protocol/commands/index.js';
import { JobOptions } from '../../protocol/commands/jobs.js';
import { openRpc } from '../../protocol/openrpc.js';
import { covers, DISCOVER, roleNeeded } from '../../protocol/roles.js';
import { traceEvents } from '../../protocol/trace.js';
import type { Outcome } from '../jobs/job.js';
import type { JobManager } from '../jobs/manager.js';
import type { EventBus } from '../sessions/events.js';
import { type Call, type Method, RawJson } from '../sessions/rpc.js';
import { RpcError, rpcError } from '../sessions/rpc-error.js';
import type { Session } from '../sessions/session.js';
import { QEMU_VERSION, VERSION } from '../version.js';
import type { Pool } from '../workers/pool.js';
import type { ImageHandlers } from './images.js';
import { parseParams } from './params.js';

export interface HandlerContext {
  readonly jobs: JobManager;
  readonly bus: EventBus;
  readonly pool: Pool;
  readonly images: ImageHandlers;
  readonly maxRunning: number;
  /** Calls of one connection that wait for jobs. Others are answered at once, so a full connection can still cancel. */
  readonly maxCalls: number;
  /** Told of each call of a method that exists, when it has been answered: `ok`, or the kind of the error. */
  called(method: string, outcome: string): void;
  connections(): number;
  stopping(): boolean;
  /** Begins the end of the daemon; returns at once. */
  stop(drain: boolean): void;
}

/** Subscriptions of one connection. */
const MAX_SUBSCRIPTIONS = 64;

type Handlers = {
  readonly [N in Exclude<CommandName, OperationName>]: (
    params: ParamsOf<(typeof commands)[N]>,
    call: Call,
  ) => ResultOf<(typeof commands)[N]> | RawJson | Promise<RawJson | ResultOf<(typeof commands)[N]>>;
};

export function createMethods(context: HandlerContext): Record<string, Method> {
  const { jobs, bus, pool, images } = context;

  const handlers: Handlers = {
    'query-jobs': ({ id }) => (id === undefined ? jobs.list() : [jobs.info(id)]),
    'job-pause': ({ id }) => done(jobs.pause(id)),
    'job-resume': ({ id }) => done(jobs.resume(id)),
    'job-cancel': ({ id, force }) => done(jobs.cancel(id, force)),
    'job-set-speed': ({ id, speed }) => done(jobs.setSpeed(id, speed)),
    'job-finalize': ({ id }) => done(jobs.finalize(id)),
    'job-dismiss': ({ id }) => done(jobs.dismiss(id)),
    'job-wait': async ({ id }, { session }) => {
      mayWait(session);
      return resultOf(await jobs.wait(jobs.get(id), session));
    },

    'blockdev-add': (options) => images.add(options),
    'blockdev-del': ({ 'node-name': node }) => images.del(node),
    'blockdev-reopen': ({ options, cwd }) => images.reopen(options, cwd),
    'query-named-block-nodes': ({ flat = false }) => images.query(flat),
    'query-image-users': (of) => images.users(of),

    'events-subscribe': ({ filter, since }, call) => {
      const { session } = call;
      if (session.transport.kind === 'http') {
        throw rpcError('unsupported', 'events need a connection that stays: the Unix socket or a WebSocket');
      }
      if (session.subscriptions.size >= MAX_SUBSCRIPTIONS) {
        throw rpcError(
          'too-many-subscriptions',
          `a connection has at most ${MAX_SUBSCRIPTIONS} subscriptions`,
        );
      }
      const { subscription, start } = bus.subscribe(filter ?? {}, session, session.outbox, since, (ended) =>
        session.subscriptions.delete(ended.id),
      );
      session.subscriptions.set(subscription.id, subscription);
      // The client learns the id first. What happens until then is remembered and follows.
      call.afterAnswer(() => {
        if (session.subscriptions.has(subscription.id)) start();
      });
      return { subscription: subscription.id, seq: bus.seq, instance: bus.instance };
    },
    'events-unsubscribe': ({ subscription }, { session }) => {
      const found = session.subscriptions.get(subscription);
      if (found === undefined) {
        throw rpcError('subscription-not-found', 'this connection has no such subscription', {
          member: 'subscription',
        });
      }
      return done(found.end());
    },

    ping: () => ({}),
    'query-version': () => ({ version: VERSION, qemu: QEMU_VERSION, package: `imgd ${VERSION}` }),
    'query-status': () => ({
      status: context.stopping() ? 'stopping' : 'running',
      pid: process.pid,
      uptime: process.uptime(),
      jobs: jobs.countByStatus(),
      workers: { busy: pool.busy, idle: pool.idle, limit: context.maxRunning, lost: pool.lost },
      nodes: images.count,
      connections: context.connections(),
      subscriptions: bus.subscriptions,
      seq: bus.seq,
      memory: { rss: process.memoryUsage.rss() },
    }),
    'query-trace-events': () => Object.entries(traceEvents).map(([name, doc]) => ({ name, doc })),
    shutdown: ({ drain }, call) => {
      call.afterAnswer(() => context.stop(drain));
      return {};
    },
  };

  function mayWait(session: Session): void {
    if (session.waiting < context.maxCalls) return;
    throw rpcError('too-many-calls', `more than ${context.maxCalls} calls of this connection wait for jobs`);
  }

  async function operate(name: OperationName, raw: unknown, { session }: Call): Promise<RawJson> {
    if (Array.isArray(raw)) throw rpcError('invalid-params', 'params must be an object: members have names');
    const { job: rawJob, ...rawParams } = (raw ?? {}) as Record<string, unknown>;
    const options = parseParams(JobOptions, rawJob ?? {}, 'job.');
    const schema: GenericSchema = operations[name].params;
    const params = parseParams(schema, rawParams) as { readonly cwd?: string };
    const cwd = params.cwd ?? process.cwd();
    if (!isAbsolute(cwd)) {
      throw rpcError('invalid-params', "Invalid params: 'cwd' must be an absolute path", { member: 'cwd' });
    }
    if (options.wait) mayWait(session);
    const job = jobs.start(name, params, cwd, options, session);
    if (!options.wait) return new RawJson(JSON.stringify({ job: job.id }));
    return resultOf(await jobs.wait(job, session));
  }

  const methods: Record<string, Method> = {};
  for (const name of Object.keys(operations) as OperationName[]) {
    methods[name] = (params, call) => operate(name, params, call);
  }
  for (const name of Object.keys(handlers) as (keyof Handlers)[]) {
    const handler = handlers[name] as (params: unknown, call: Call) => unknown;
    const schema: GenericSchema = commands[name].params;
    methods[name] = (params, call) => handler(parseParams(schema, params), call);
  }
  // Made when somebody asks, once.
  let document: RawJson | undefined;
  methods[DISCOVER] = () => {
    document ??= new RawJson(JSON.stringify(openRpc(VERSION)));
    return document;
  };
  for (const [name, method] of Object.entries(methods)) methods[name] = guarded(name, method, context);
  return methods;
}

/** The method for those whose role allows it. */
function guarded(name: string, method: Method, context: HandlerContext): Method {
  const needed = roleNeeded(name);
  return async (params, call) => {
    try {
      const { role } = call.session;
      if (!covers(role, needed)) {
        throw rpcError('forbidden', `'${name}' needs the role '${needed}', this client has '${role}'`, {
          check: `role-${needed}`,
        });
      }
      const result = await method(params, call);
      context.called(name, 'ok');
      return result;
    } catch (error) {
      context.called(name, error instanceof RpcError ? (error.wire.data?.kind ?? 'internal') : 'internal');
      throw error;
    }
  };
}

/** What a command without a result answers. */
function done(_: unknown): Record<string, never> {
  return {};
}

function resultOf(outcome: Outcome): RawJson {
  if ('error' in outcome) throw new RpcError(outcome.error);
  return new RawJson(outcome.json);
}
