/** Opens what the settings ask for: the Unix socket always, the TCP port where there is one, or those that systemd hands over. */
import type { Config } from '../config.js';
import type { HandedOver } from '../systemd.js';
import { ClaimError } from './claim.js';
import type { Accept, Listener, PeerCredentials } from './transport.js';
import { listenUnix } from './unix.js';
import type { WebListener } from './web.js';

export interface OpenListeners {
  readonly all: readonly Listener[];
  readonly web: WebListener | undefined;
}

export interface ListenerSettings {
  /** As it is now: it changes when settings are reloaded. */
  config(): Config;
  readonly handed: HandedOver;
  readonly metrics: () => string;
  refused(reason: string): void;
}

/** Throws ClaimError: one line for the user. The socket's path is claimed, where it is not handed over. */
export async function openListeners(settings: ListenerSettings, accept: Accept): Promise<OpenListeners> {
  const { config, handed, metrics, refused } = settings;
  const { socket, socketMode: mode, socketGroup: group, listen, tls } = config();
  const maxMessage = (): number => config().maxMessage;
  const maxConnections = (): number => config().maxConnections;
  if (handed.tcp !== undefined && config().tokens.length === 0) {
    throw new ClaimError('a TCP socket was handed over (LISTEN_FDS): --token-file is needed');
  }
  const all: Listener[] = [];
  try {
    const at =
      handed.unix === undefined ? { path: socket, mode, group } : { path: 'LISTEN_FDS', fd: handed.unix };
    const role = (peer: PeerCredentials | undefined) => {
      const closed = handed.unix === undefined && (mode & 0o077) === 0;
      if (peer === undefined) return closed ? 'admin' : config().groupRole;
      return peer.uid === 0 || peer.uid === process.geteuid?.() ? 'admin' : config().groupRole;
    };
    all.push(await listenUnix({ at, maxMessage, maxConnections, role, metrics }, accept));
    const port = handed.tcp === undefined ? listen : { fd: handed.tcp };
    let web: WebListener | undefined;
    if (port !== undefined) {
      // Loaded only where it is used: it takes longer than all the rest.
      const { listenWeb } = await import('./web.js');
      web = await listenWeb(
        { at: port, tls, rules: config, maxMessage, maxConnections, metrics, refused },
        accept,
      );
      all.push(web);
    }
    return { all, web };
  } catch (error) {
    for (const listener of all) await listener.close();
    throw new ClaimError(`cannot listen: ${(error as Error).message.split('\n')[0]}`);
  }
}
