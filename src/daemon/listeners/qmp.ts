/** QMP on a Unix socket: bytes to a session that finds the messages in them, lines with CRLF back. */
import type { Socket } from 'node:net';
import type { Role } from '../../protocol/roles.js';
import { listenOnSocket, socketTransport } from './socket.js';
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
  const serving = (socket: Socket) => serve(socket, settings, accept);
  return (await listenOnSocket(settings, `qmp:${settings.path}`, serving)).listener;
}

function serve(socket: Socket, settings: QmpSettings, accept: AcceptQmp): void {
  const transport = socketTransport(socket, '\r\n', (peer) => settings.role(peer));
  socket.on('error', () => undefined);
  const receiver = accept(transport);
  if ('refuse' in receiver) {
    socket.end(`${receiver.refuse}\r\n`, () => socket.destroy());
    return;
  }
  socket.on('data', (chunk: Buffer) => {
    if (!transport.over) receiver.bytes(chunk);
  });
  socket.on('end', () => receiver.halfClosed());
  socket.on('drain', () => receiver.drained());
  socket.on('close', () => receiver.closed());
}
