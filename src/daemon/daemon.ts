/** The daemon put together, and its life: start, serve, stop. */
import { unlinkSync } from 'node:fs';
import { wireError } from '../protocol/errors.js';
import { type Config, ConfigError, parseConfig, reloadable } from './config.js';
import { createImageHandlers } from './handlers/images.js';
import { createMethods } from './handlers/index.js';
import { HeldImages } from './images/held.js';
import { Owners } from './images/owners.js';
import { createRouter } from './images/router.js';
import { Journal } from './jobs/journal.js';
import { JobManager } from './jobs/manager.js';
import { exitNow } from './libc.js';
import { ClaimError, claimSocket } from './listeners/claim.js';
import { type OpenListeners, openListeners } from './listeners/open.js';
import type { Accept, Transport } from './listeners/transport.js';
import { createLog, type LogSink } from './log.js';
import { collectAlone, giveMemoryBack } from './memory.js';
import { Metrics } from './metrics/metrics.js';
import { LONG_PRIORITY, lowerPool } from './pool-threads.js';
import type { Qmp } from './qmp/start.js';
import { EventBus } from './sessions/events.js';
import { createRpc } from './sessions/rpc.js';
import { Session } from './sessions/session.js';
import { type HandedOver, notify, takeSockets, watchdog } from './systemd.js';
import { VERSION } from './version.js';
import { createPool } from './workers/pool.js';

/** The engine thread has the caches of all held images: so many times the heap of a worker. */
const HELD_MEMORY = 4;

/** Time for clients to take their last answers at the end. */
const LAST_ANSWERS_MS = 1000;

export interface Daemon {
  readonly addresses: readonly string[];
  /** Ends the daemon; resolves when all is closed. Further calls join the first. */
  stop(drain: boolean): Promise<void>;
  /** Resolves when it has stopped, for whatever reason. */
  readonly stopped: Promise<void>;
  /** Takes other settings over as far as that can be while it runs; returns the names of those that wait for a new start. */
  reload(config: Config): readonly string[];
  /** Removes what would be left behind; for an end that waits for nothing. */
  abandon(): void;
}

/** What a daemon may be given that is not a setting. */
export interface Surroundings {
  /** Sockets that listen already. */
  readonly handed?: HandedOver;
}

/** @param engine URL of the module whose `runOperation` the workers call. */
export async function startDaemon(
  config: Config,
  engine: string,
  { log }: LogSink,
  { handed = { unix: undefined, tcp: undefined } }: Surroundings = {},
): Promise<Daemon> {
  /** As it is now; see `reload`. */
  let now = config;
  const { socket: path, socketMode: mode, socketGroup: group } = config;
  // A socket that was handed over is not this process's to claim, or to remove.
  const claim = handed.unix === undefined ? await claimSocket(path, { mode, group }) : undefined;
  const bus = new EventBus();
  const sessions = new Set<Session>();
  let nextSession = 1;
  let stopping: Promise<void> | undefined;
  let onStopped!: () => void;
  const stopped = new Promise<void>((resolve) => {
    onStopped = resolve;
  });

  const owners = new Owners();
  const policy = config.roots === undefined ? {} : { roots: config.roots };
  const memory = config.workerMemory;
  let receive: (session: Session, text: string) => void = () => undefined;
  const accept: Accept = (transport: Transport) => {
    const { kind, peer, role } = transport;
    if (stopping !== undefined || sessions.size >= now.maxConnections) {
      const error =
        stopping === undefined
          ? wireError('too-many-connections', `the daemon serves at most ${now.maxConnections} connections`)
          : wireError('shutting-down', 'the daemon is shutting down');
      log.warn({ transport: kind, peer, kind: error.data?.kind }, 'connection refused');
      return { refuse: JSON.stringify({ jsonrpc: '2.0', id: null, error }) };
    }
    const session = new Session(nextSession++, transport, (from, text) => receive(from, text));
    sessions.add(session);
    const foreign = peer !== undefined && peer.uid !== process.geteuid?.();
    log[foreign ? 'info' : 'debug']({ session: session.id, transport: kind, peer, role }, 'connected');
    session.onClosed(() => {
      sessions.delete(session);
      log.debug({ session: session.id }, 'disconnected');
    });
    return session;
  };

  const pool = createPool({ engine, memory, log, owners: owners.table, onIdle: giveMemoryBack });
  const held = new HeldImages({
    engine,
    memory: memory * HELD_MEMORY,
    policy,
    owners,
    log,
    publish: (event, data) => bus.publish(event, undefined, data),
  });
  const { journal, cutOff } =
    config.journal === undefined ? { journal: undefined, cutOff: [] } : Journal.open(config.journal, log);
  const router = createRouter(pool, held, owners);
  const jobs = new JobManager(router, bus, log, {
    get maxRunning() {
      return now.maxRunning;
    },
    get maxJobs() {
      return now.maxJobs;
    },
    get killTimeout() {
      return now.killTimeout;
    },
    get maxPerDevice() {
      return now.maxPerDevice;
    },
    get stallTimeout() {
      return now.stallTimeout;
    },
    policy,
    journal,
    concluded: (job, outcome) => metrics.concluded(job, outcome),
  });
  const metrics = new Metrics({
    jobs,
    bus,
    pool,
    connections: () =>
      [...sessions].map(({ transport, outbox }) => ({ kind: transport.kind, waiting: outbox.bytes })),
  });

  jobs.restore(cutOff);

  let open: OpenListeners | undefined;
  let qmp: Qmp | undefined;
  async function end(drain: boolean): Promise<void> {
    log.info({ drain }, 'stopping');
    notify('STOPPING=1');
    for (const listener of open?.all ?? []) await listener.close();
    await qmp?.close();
    await jobs.close(drain);
    await held.close();
    // Answers of the last jobs are on their way through promises: one turn, then each connection is closed when it has been sent all.
    await new Promise((resolve) => setImmediate(resolve));
    await closeSessions(sessions);
    await pool.close();
    await journal?.close();
    claim?.release();
    qmp?.release();
    log.info('stopped');
    onStopped();
  }
  const stop = (drain: boolean): Promise<void> => {
    stopping ??= end(drain);
    return stopping;
  };

  const images = createImageHandlers(held, owners, policy);
  const methods = createMethods({
    jobs,
    bus,
    pool,
    images,
    get maxRunning() {
      return now.maxRunning;
    },
    get maxCalls() {
      return now.maxCalls;
    },
    called: (method, outcome) => metrics.called(method, outcome),
    connections: () => sessions.size,
    stopping: () => stopping !== undefined,
    stop: (drain) => void stop(drain),
  });
  receive = createRpc(methods, log);
  try {
    open = await openListeners(
      {
        config: () => now,
        handed,
        metrics: () => metrics.text(),
        refused(reason) {
          metrics.refused(reason);
          log.warn({ reason }, 'request refused');
        },
      },
      accept,
    );
    if (config.qmpSocket !== undefined) {
      // Loaded only where it is used.
      const { startQmp } = await import('./qmp/start.js');
      qmp = await startQmp(config.qmpSocket, {
        ...{ config: () => now, jobs, bus, log, methods, policy },
        run: (message, listener) => router.run(message, listener),
        nodes: () => images.query(true),
        ...{ groups: images.groups, nodeBitmaps: images.bitmaps },
        stop: () => void stop(false),
        admit() {
          if (stopping !== undefined) return { refuse: 'the daemon is shutting down' };
          if (sessions.size < now.maxConnections) return { id: nextSession++ };
          return { refuse: `the daemon serves at most ${now.maxConnections} connections` };
        },
        admitted(session) {
          sessions.add(session);
          session.onClosed(() => sessions.delete(session));
        },
      });
    }
  } catch (error) {
    for (const listener of open?.all ?? []) await listener.close();
    await Promise.all([pool.close(), held.close()]);
    claim?.release();
    throw error;
  }
  const addresses = [...open.all, ...(qmp === undefined ? [] : [qmp])].map(({ address }) => address);
  log.info({ version: VERSION, addresses, roots: config.roots }, 'listening');

  return {
    addresses,
    stopped,
    stop,
    reload(config) {
      const waiting = changedForGood(now, config);
      now = { ...now, ...Object.fromEntries(reloadable.map((name) => [name, config[name]])) };
      log.level = now.logLevel;
      if (now.tls !== undefined) open.web?.renew(now.tls);
      jobs.limitsChanged();
      return waiting;
    },
    abandon() {
      qmp?.abandon();
      if (claim === undefined) return;
      try {
        unlinkSync(path);
      } catch {
        // gone already
      }
      claim.release();
    },
  };
}

/** Settings that differ and are not looked at again before the next start, as they are called in the help. */
function changedForGood(from: Config, to: Config): string[] {
  return (Object.keys(to) as (keyof Config)[])
    .filter((name) => !(reloadable as readonly string[]).includes(name))
    .filter((name) => JSON.stringify(from[name]) !== JSON.stringify(to[name]))
    .map((name) =>
      name === 'roots' ? 'root' : name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`),
    );
}

function closeSessions(sessions: ReadonlySet<Session>): Promise<void> {
  return new Promise((resolve) => {
    if (sessions.size === 0) {
      resolve();
      return;
    }
    const timer = setTimeout(() => {
      for (const session of [...sessions]) session.transport.destroy();
      resolve();
    }, LAST_ANSWERS_MS);
    for (const session of [...sessions]) {
      session.onClosed(() => {
        if (sessions.size > 0) return;
        clearTimeout(timer);
        resolve();
      });
      session.finish();
    }
  });
}

/** The process: reads its settings, serves until it is told to stop, exits. */
export async function main(argv: readonly string[], engine: string): Promise<void> {
  let config: Config;
  try {
    const invocation = parseConfig(argv);
    if (invocation.kind !== 'run') {
      process.stdout.write(invocation.kind === 'version' ? `imgd ${VERSION}\n` : invocation.text);
      return;
    }
    config = invocation.config;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`imgd: ${error.message}\nTry 'imgd --help'.\n`);
    process.exitCode = 2;
    return;
  }
  collectAlone();
  void lowerPool(LONG_PRIORITY);

  const sink = createLog(config.logLevel);
  let daemon: Daemon;
  try {
    daemon = await startDaemon(config, engine, sink, { handed: handedOver() });
  } catch (error) {
    if (!(error instanceof ClaimError)) throw error;
    process.stderr.write(`imgd: ${error.message}\n`);
    // Not by Node's own exit: a thread that is stopped while it loads its modules can abort the process.
    exitNow(1);
  }

  let signals = 0;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (++signals > 1) {
      sink.log.warn({ signal }, 'forced to stop');
      daemon.abandon();
      sink.flush();
      exitNow(1);
    }
    sink.log.info({ signal }, 'signal');
    void daemon.stop(config.drain);
  };
  process.on('SIGHUP', () => {
    notify(`RELOADING=1\nMONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`);
    try {
      const invocation = parseConfig(argv);
      if (invocation.kind === 'run') {
        config = invocation.config;
        const waiting = daemon.reload(config);
        sink.log.info('settings read again');
        if (waiting.length > 0) sink.log.warn({ settings: waiting }, 'changes that wait for a new start');
      }
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      sink.log.error({ reason: error.message }, 'settings stay as they were');
    }
    notify('READY=1');
  });
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  process.on('uncaughtException', (error) => {
    sink.log.fatal({ err: error }, 'bug: the daemon ends');
    daemon.abandon();
    sink.flush();
    exitNow(1);
  });

  notify('READY=1');
  watchdog();
  await daemon.stopped;
  await sink.settled();
  exitNow(0);
}

function handedOver(): HandedOver {
  try {
    return takeSockets();
  } catch (error) {
    throw new ClaimError((error as Error).message);
  }
}
