/** The QMP side of the daemon: its socket, its sessions, what they call, what they are told. */
import { unlinkSync } from 'node:fs';
import type { Config } from '../config.js';
import type { NodeBitmapAccess } from '../handlers/images.js';
import { ClaimError, claimSocket } from '../listeners/claim.js';
import { type AcceptQmp, listenQmp } from '../listeners/qmp.js';
import type { PeerCredentials } from '../listeners/transport.js';
import type { Log } from '../log.js';
import type { EventBus } from '../sessions/events.js';
import { failureToWire, RpcError } from '../sessions/rpc-error.js';
import type { Session } from '../sessions/session.js';
import type { FromWorker, RunMessage } from '../workers/messages.js';
import type { JobListener } from '../workers/pool.js';
import { createQmpTable, type QmpContext } from './commands.js';
import { createDispatch } from './dispatch.js';
import { createEvents } from './events.js';
import { errorReply, eventText, QmpError } from './reply.js';
import { QmpSession } from './session.js';

export interface QmpSurroundings extends Omit<QmpContext, 'bitmaps' | 'quit'> {
  /** As it is now: it changes when settings are reloaded. */
  config(): Config;
  readonly bus: EventBus;
  readonly log: Log;
  /** Runs an operation where the images are that it names, beside all jobs. */
  run(message: RunMessage, listener: JobListener): unknown;
  readonly nodeBitmaps: NodeBitmapAccess;
  /** Begins the end of the daemon. */
  stop(): void;
  /** The daemon's limits: a number for a new session, or why it is refused. */
  admit(): { readonly id: number } | { readonly refuse: string };
  /** Told of each session that was let in. */
  admitted(session: Session): void;
}

export interface Qmp {
  readonly address: string;
  /** Takes no more connections and tells clients that the daemon ends; waits for what changes images without a job. */
  close(): Promise<void>;
  /** Gives the path up. */
  release(): void;
  /** Removes what would be left behind; for an end that waits for nothing. */
  abandon(): void;
}

/** Throws ClaimError: one line for the user. */
export async function startQmp(path: string, context: QmpSurroundings): Promise<Qmp> {
  const { config } = context;
  const { socketMode: mode, socketGroup: group } = config();
  const { accept, ending } = createSessions(context);
  /** As on the other Unix socket. */
  const role = (peer: PeerCredentials | undefined) => {
    const own =
      peer === undefined ? (mode & 0o077) === 0 : peer.uid === 0 || peer.uid === process.geteuid?.();
    return own ? 'admin' : config().groupRole;
  };
  const claim = await claimSocket(path, { mode, group });
  try {
    const listener = await listenQmp({ path, mode, group, role }, accept);
    return {
      address: listener.address,
      async close() {
        await listener.close();
        await ending();
      },
      release: () => claim.release(),
      abandon() {
        try {
          unlinkSync(path);
        } catch {
          // gone already
        }
        claim.release();
      },
    };
  } catch (error) {
    claim.release();
    throw new ClaimError(`cannot listen: ${(error as Error).message.split('\n')[0]}`);
  }
}

interface Sessions {
  readonly accept: AcceptQmp;
  /** Tells the clients that the daemon ends. */
  ending(): Promise<void>;
}

function createSessions(context: QmpSurroundings): Sessions {
  const { jobs, bus, log } = context;
  const sessions = new Set<QmpSession>();
  let reason: 'host-qmp-quit' | 'host-signal' = 'host-signal';
  let nextRun = 1;

  function perform(params: unknown): Promise<unknown> {
    const job = `qmp-${nextRun++}`;
    return new Promise((resolve, reject) => {
      context.run(
        {
          type: 'run',
          job,
          operation: 'image-bitmap',
          params,
          cwd: process.cwd(),
          policy: context.policy,
          rate: undefined,
        },
        {
          message(message: FromWorker) {
            if (message.type === 'done') resolve(JSON.parse(message.json));
            else if (message.type === 'failed') reject(new RpcError(failureToWire(message.failure, job)));
          },
          lost: (failure) => reject(new RpcError(failureToWire(failure, job))),
        },
      );
    });
  }

  const table = createQmpTable({
    ...context,
    bitmaps: { ...context.nodeBitmaps, perform },
    quit: () => {
      reason = 'host-qmp-quit';
      context.stop();
    },
  });
  const commands = createDispatch(table.commands, table.version, (error) =>
    log.error({ err: error }, 'a QMP command failed'),
  );
  const events = createEvents((id) => {
    try {
      return jobs.info(id);
    } catch {
      // forgotten
      return undefined;
    }
  });
  bus.watch((event) => {
    if (sessions.size === 0) {
      events.reset();
      return;
    }
    for (const text of events.translate(event)) for (const session of sessions) session.event(text);
  });

  return {
    accept(transport) {
      const admission = context.admit();
      if ('refuse' in admission) {
        log.warn({ transport: 'qmp', peer: transport.peer, reason: admission.refuse }, 'connection refused');
        return { refuse: errorReply(new QmpError(admission.refuse)) };
      }
      const session = new QmpSession(admission.id, transport, commands, () =>
        log.warn({ session: admission.id }, 'QMP client does not read its events: let go'),
      );
      sessions.add(session);
      const { peer, role } = transport;
      const foreign = peer !== undefined && peer.uid !== process.geteuid?.();
      log[foreign ? 'info' : 'debug']({ session: session.id, transport: 'qmp', peer, role }, 'connected');
      session.onClosed(() => sessions.delete(session));
      context.admitted(session);
      return session;
    },
    async ending() {
      const text = eventText('SHUTDOWN', { guest: false, reason });
      for (const session of sessions) session.event(text);
      await table.quiet();
    },
  };
}
