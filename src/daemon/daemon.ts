/** The daemon put together, and its life: start, serve, stop. */
import { unlinkSync } from 'node:fs';
import { wireError } from '../protocol/errors.js';
import { type Config, ConfigError, parseConfig } from './config.js';
import { createMethods } from './handlers/index.js';
import { JobManager } from './jobs/manager.js';
import { type Claim, ClaimError, claimSocket } from './listeners/claim.js';
import type { Transport } from './listeners/transport.js';
import { type Accept, type Listener, listenUnix } from './listeners/unix.js';
import { createLog, type LogSink } from './log.js';
import { giveMemoryBack } from './memory.js';
import { EventBus } from './sessions/events.js';
import { createRpc } from './sessions/rpc.js';
import { Session } from './sessions/session.js';
import { VERSION } from './version.js';
import { createPool } from './workers/pool.js';

/** Time for clients to take their last answers at the end. */
const LAST_ANSWERS_MS = 1000;

export interface Daemon {
  readonly addresses: readonly string[];
  /** Ends the daemon; resolves when all is closed. Further calls join the first. */
  stop(drain: boolean): Promise<void>;
  /** Resolves when it has stopped, for whatever reason. */
  readonly stopped: Promise<void>;
  /** Removes what would be left behind; for an end that waits for nothing. */
  abandon(): void;
}

/** @param engine URL of the module whose `runOperation` the workers call. */
export async function startDaemon(config: Config, engine: string, { log }: LogSink): Promise<Daemon> {
  const claim: Claim = await claimSocket(config.socket);
  const bus = new EventBus();
  const sessions = new Set<Session>();
  let nextSession = 1;
  let stopping: Promise<void> | undefined;
  let onStopped!: () => void;
  const stopped = new Promise<void>((resolve) => {
    onStopped = resolve;
  });

  const listeners: Listener[] = [];
  // Nothing arrives before the current turn of the event loop ends, and the rest below is synchronous.
  let receive: (session: Session, text: string) => void = () => undefined;
  const accept: Accept = (transport: Transport) => {
    if (stopping !== undefined || sessions.size >= config.maxConnections) {
      const error =
        stopping === undefined
          ? wireError(
              'too-many-connections',
              `the daemon serves at most ${config.maxConnections} connections`,
            )
          : wireError('shutting-down', 'the daemon is shutting down');
      log.warn({ transport: transport.kind, kind: error.data?.kind }, 'connection refused');
      return { refuse: JSON.stringify({ jsonrpc: '2.0', id: null, error }) };
    }
    const session = new Session(nextSession++, transport, (from, text) => receive(from, text));
    sessions.add(session);
    log.debug({ session: session.id, transport: transport.kind }, 'connected');
    session.onClosed(() => {
      sessions.delete(session);
      log.debug({ session: session.id }, 'disconnected');
    });
    return session;
  };

  try {
    listeners.push(await listenUnix(config.socket, config.maxMessage, accept));
    if (config.listen !== undefined) {
      // Loaded only where it is used: it takes longer than all the rest.
      const { listenWebSocket } = await import('./listeners/websocket.js');
      listeners.push(
        await listenWebSocket(
          {
            ...config.listen,
            tokens: config.tokens,
            allowOrigins: config.allowOrigins,
            maxMessage: config.maxMessage,
            maxConnections: config.maxConnections,
            refused: (reason) => log.warn({ reason }, 'WebSocket refused'),
          },
          accept,
        ),
      );
    }
  } catch (error) {
    for (const listener of listeners) await listener.close();
    claim.release();
    const { code, message } = error as NodeJS.ErrnoException;
    throw new ClaimError(`cannot listen: ${code === undefined ? message : `${message.split('\n')[0]}`}`);
  }

  const pool = createPool({ engine, memory: config.workerMemory, log, onIdle: giveMemoryBack });
  const jobs = new JobManager(pool, bus, log, {
    maxRunning: config.maxRunning,
    maxJobs: config.maxJobs,
    killTimeout: config.killTimeout,
    policy: config.roots === undefined ? {} : { roots: config.roots },
  });

  async function end(drain: boolean): Promise<void> {
    log.info({ drain }, 'stopping');
    for (const listener of listeners) await listener.close();
    await jobs.close(drain);
    // Answers of the last jobs are on their way through promises: one turn, then each connection is closed when it has been sent all.
    await new Promise((resolve) => setImmediate(resolve));
    await closeSessions(sessions);
    await pool.close();
    claim.release();
    log.info('stopped');
    onStopped();
  }

  const daemon: Daemon = {
    addresses: listeners.map((listener) => listener.address),
    stopped,
    stop(drain) {
      stopping ??= end(drain);
      return stopping;
    },
    abandon() {
      try {
        unlinkSync(config.socket);
      } catch {
        // gone already
      }
      claim.release();
    },
  };

  receive = createRpc(
    createMethods({
      jobs,
      bus,
      pool,
      maxRunning: config.maxRunning,
      maxCalls: config.maxCalls,
      connections: () => sessions.size,
      stopping: () => stopping !== undefined,
      stop: (drain) => void daemon.stop(drain),
    }),
    log,
  );
  log.info({ version: VERSION, addresses: daemon.addresses, roots: config.roots }, 'listening');
  return daemon;
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
      process.stdout.write(invocation.kind === 'help' ? invocation.text : `imgd ${VERSION}\n`);
      return;
    }
    config = invocation.config;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`imgd: ${error.message}\nTry 'imgd --help'.\n`);
    process.exitCode = 2;
    return;
  }

  const sink = createLog(config.logLevel);
  let daemon: Daemon;
  try {
    daemon = await startDaemon(config, engine, sink);
  } catch (error) {
    if (!(error instanceof ClaimError)) throw error;
    process.stderr.write(`imgd: ${error.message}\n`);
    process.exitCode = 1;
    return;
  }

  let signals = 0;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (++signals > 1) {
      sink.log.warn({ signal }, 'forced to stop');
      daemon.abandon();
      sink.flush();
      process.exit(1);
    }
    sink.log.info({ signal }, 'signal');
    void daemon.stop(config.drain);
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  process.on('uncaughtException', (error) => {
    sink.log.fatal({ err: error }, 'bug: the daemon ends');
    daemon.abandon();
    sink.flush();
    process.exit(1);
  });

  await daemon.stopped;
  sink.flush();
  process.exit(0);
}
