/** JSON-RPC on WebSocket, one message a frame. */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { type WebSocket, WebSocketServer } from 'ws';
import type { Role } from '../../protocol/roles.js';
import type { Accept, Transport } from './transport.js';

/** The protocol that is spoken; a token that a browser offers as another is not echoed. */
const PROTOCOL = 'imgd';

/** Bytes that may be buffered before a connection counts as full. */
const HIGH_WATER = 64 * 1024;

export type Upgrade = (request: IncomingMessage, socket: Duplex, head: Buffer, role: Role) => void;

/** Takes connections over whose requests may pass. @param maxMessage asked at each connection's start. */
export function webSocketUpgrade(accept: Accept, maxMessage: () => number): Upgrade {
  const create = (maxPayload: number): WebSocketServer =>
    new WebSocketServer({
      noServer: true,
      maxPayload,
      perMessageDeflate: false,
      clientTracking: false,
      handleProtocols: (offered) => (offered.has(PROTOCOL) ? PROTOCOL : false),
    });
  let limit = maxMessage();
  let sockets = create(limit);
  return (request, socket, head, role) => {
    if (maxMessage() !== limit) {
      limit = maxMessage();
      sockets = create(limit);
    }
    sockets.handleUpgrade(request, socket, head, (webSocket) => serve(webSocket, role, accept));
  };
}

function serve(socket: WebSocket, role: Role, accept: Accept): void {
  let waiting = false;
  let drained = (): void => undefined;
  const transport: Transport = {
    kind: 'websocket',
    role,
    send(text) {
      if (socket.readyState !== socket.OPEN) return true;
      socket.send(text, () => {
        if (waiting && socket.bufferedAmount < HIGH_WATER) {
          waiting = false;
          drained();
        }
      });
      waiting = socket.bufferedAmount >= HIGH_WATER;
      return !waiting;
    },
    pause: () => socket.pause(),
    resume: () => socket.resume(),
    end: () => socket.close(1000),
    destroy: () => socket.terminate(),
  };
  socket.on('error', () => undefined);
  const events = accept(transport);
  if ('refuse' in events) {
    socket.send(events.refuse);
    socket.close(1013);
    return;
  }
  drained = () => events.drained();
  socket.on('message', (data, isBinary) => {
    if (isBinary) events.malformed('not-text', false);
    else events.message((data as Buffer).toString('utf8'));
  });
  socket.on('close', () => events.closed());
}
