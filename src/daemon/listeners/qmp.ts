/** QMP on a Unix socket: bytes to a session that finds the messages in them, lines with CRLF back. */
import { chmodSync, chownSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import type { Role } from '../../protocol/roles.js';
import { peerCredentials } from './peer.js';
import type { Listener, PeerCredentials, Transport } from './transport.js';

export interface QmpSettings {
  /** Free, see claim.ts. */
  readonly path: string;
  readonly mode: number;
  readonly group: number | undefined;
  /** What somebody may do who could connect. */
  role(peer: PeerCredentials | undefined): Role;
}

/** Who receives a connection's bytes. */
export interface QmpReceiver {
  bytes(chunk: Uint8Array): void;
  drained(): void;
  /** The peer sends nothing more; it may still read. */
  halfClosed(): void;
  closed(): void;
}

export type AcceptQmp = (transport: Transport) => QmpReceiver | { readonly refuse: string };

/** Throws the host's error where the path cannot be bound. */
export async function listenQmp(settings: QmpSettings, accept: AcceptQmp): Promise<Listener> {
  const { path, mode, group } = settings;
  const server = createServer({ allowHalfOpen: true }, (socket) => serve(socket, settings, accept));
  // The file must never be open to others, not even until the chmod.
  const before = process.umask(0o177);
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
  } finally {
    process.umask(before);
  }
  server.removeAllListeners('error');
  server.on('error', () => undefined);
  try {
    if (group !== undefined) chownSync(path, -1, group);
    chmodSync(path, mode);
  } catch (error) {
    server.close();
    throw error;
  }
  return {
    address: `qmp:${path}`,
    close: () =>
      new Promise((resolve) => {
        server.close();
        resolve();
      }),
  };
}

function serve(socket: Socket, settings: QmpSettings, accept: AcceptQmp): void {
  const peer = peerCredentials(socket);
  let over = false;
  const transport: Transport = {
    kind: 'unix',
    role: settings.role(peer),
    peer,
    send: (text) => !socket.writable || socket.write(`${text}\r\n`),
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
  socket.on('error', () => undefined);
  const receiver = accept(transport);
  if ('refuse' in receiver) {
    socket.end(`${receiver.refuse}\r\n`, () => socket.destroy());
    return;
  }
  socket.on('data', (chunk: Buffer) => {
    if (!over) receiver.bytes(chunk);
  });
  socket.on('end', () => receiver.halfClosed());
  socket.on('drain', () => receiver.drained());
  socket.on('close', () => receiver.closed());
}
