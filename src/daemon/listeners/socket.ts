/** What JSON-RPC and QMP have in common on a Unix socket. */
import { chmodSync, chownSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import type { Role } from '../../protocol/roles.js';
import { peerCredentials } from './peer.js';
import type { Listener, PeerCredentials, Transport } from './transport.js';

/** A path that is free, see claim.ts, or a socket that listens already (its path for the log alone). */
export type SocketPlace =
  | { readonly path: string; readonly mode: number; readonly group: number | undefined }
  | { readonly fd: number; readonly path: string };

/** Throws the host's error where the path cannot be bound. `address`: for the log. */
export async function listenOnSocket(
  at: SocketPlace,
  address: string,
  serve: (socket: Socket) => void,
): Promise<{ readonly server: Server; readonly listener: Listener }> {
  const server = createServer({ allowHalfOpen: true }, serve);
  // The file must never be open to others, not even until the chmod.
  const before = process.umask(0o177);
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      if ('fd' in at) server.listen({ fd: at.fd }, resolve);
      else server.listen(at.path, resolve);
    });
  } finally {
    process.umask(before);
  }
  server.removeAllListeners('error');
  server.on('error', () => undefined);
  if (!('fd' in at)) {
    try {
      if (at.group !== undefined) chownSync(at.path, -1, at.group);
      chmodSync(at.path, at.mode);
    } catch (error) {
      server.close();
      throw error;
    }
  }
  const close = () =>
    new Promise<void>((resolve) => {
      // Stops accepting and removes the file now; calls back when the last connection has gone, which is not waited for.
      server.close();
      resolve();
    });
  return { server, listener: { address, close } };
}

export interface SocketTransport extends Transport {
  /** The end was asked for: what still comes is not looked at. */
  readonly over: boolean;
}

/** `lineEnd` goes behind each message. `role`: what somebody may do who could connect. */
export function socketTransport(
  socket: Socket,
  lineEnd: string,
  role: (peer: PeerCredentials | undefined) => Role,
): SocketTransport {
  const peer = peerCredentials(socket);
  let over = false;
  return {
    kind: 'unix',
    role: role(peer),
    peer,
    get over() {
      return over;
    },
    send: (text) => !socket.writable || socket.write(text + lineEnd),
    pause: () => void socket.pause(),
    resume: () => void socket.resume(),
    end() {
      over = true;
      // Reads on, so that the peer's last bytes do not turn the close into a reset that takes our last bytes with it.
      socket.resume();
      socket.end(() => socket.destroySoon());
    },
    destroy: () => void socket.destroy(),
  };
}
