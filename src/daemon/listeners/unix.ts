/** JSON-RPC on a Unix socket, one message a line; who begins with an HTTP method is answered in HTTP. */
import type { Server as HttpServer } from 'node:http';
import type { Socket } from 'node:net';
import { type Frame, LineSplitter } from '../../protocol/framing.js';
import type { Role } from '../../protocol/roles.js';
import { HTTP_LIMITS, httpHandler } from './http.js';
import { peerCredentials } from './peer.js';
import { listenOnSocket, type SocketPlace, socketTransport } from './socket.js';
import type { Accept, Listener, PeerCredentials, TransportEvents } from './transport.js';

export type { Accept, Listener } from './transport.js';

export interface UnixSettings {
  readonly at: SocketPlace;
  readonly maxMessage: () => number;
  readonly maxConnections: () => number;
  /** What somebody may do who could connect. */
  role(peer: PeerCredentials | undefined): Role;
  readonly metrics: () => string;
}

/** Beyond those that are served, to be told that they are too many. */
const SPARE_CONNECTIONS = 16;

/** Throws the host's error where the path cannot be bound. */
export async function listenUnix(settings: UnixSettings, accept: Accept): Promise<Listener> {
  let made: Promise<HttpServer> | undefined;
  // Node's HTTP is loaded when somebody speaks it.
  const http = (): Promise<HttpServer> => {
    made ??= httpOverUnix(settings, accept);
    return made;
  };
  const { server, listener } = await listenOnSocket(settings.at, settings.at.path, (socket) =>
    serve(socket, settings, accept, http),
  );
  // Sessions are refused with an answer before; this is for connections that are none, such as idle ones of HTTP.
  const limit = (): void => {
    server.maxConnections = settings.maxConnections() + SPARE_CONNECTIONS;
  };
  server.on('connection', limit);
  limit();
  return listener;
}

/** Not for listening: is handed connections that turn out to speak HTTP. */
async function httpOverUnix(
  { maxMessage, metrics, role }: UnixSettings,
  accept: Accept,
): Promise<HttpServer> {
  const { createServer: createHttpServer } = await import('node:http');
  const handle = httpHandler({ accept, maxMessage, metrics, anyForm: true });
  const server = createHttpServer(HTTP_LIMITS, (request, response) => {
    const peer = peerCredentials(request.socket);
    handle(request, response, { role: role(peer), peer });
  });
  server.on('upgrade', (_, socket) => {
    socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
  });
  // Node watches over these limits from then on; this server never listens by itself.
  server.emit('listening');
  return server;
}

const METHODS = ['GET ', 'HEAD ', 'POST ', 'PUT ', 'PATCH ', 'DELETE ', 'OPTIONS '];
const LONGEST_METHOD = 8;

/** Whether bytes begin an HTTP request; undefined: more of them are needed to tell. No JSON begins like that. */
function beginsHttp(bytes: Uint8Array): boolean | undefined {
  const start = Buffer.from(bytes.subarray(0, LONGEST_METHOD)).toString('latin1');
  if (METHODS.some((method) => start.startsWith(method))) return true;
  return METHODS.some((method) => method.startsWith(start)) ? undefined : false;
}

function serve(
  socket: Socket,
  settings: UnixSettings,
  accept: Accept,
  http: () => Promise<HttpServer>,
): void {
  const splitter = new LineSplitter(settings.maxMessage());
  const transport = socketTransport(socket, '\n', (peer) => settings.role(peer));
  socket.on('error', () => undefined);
  const accepted = accept(transport);
  if ('refuse' in accepted) {
    socket.end(`${accepted.refuse}\n`, () => socket.destroy());
    return;
  }
  const events: TransportEvents = accepted;
  function deliver(frames: readonly Frame[]): void {
    for (const frame of frames) {
      if (handedOver || transport.over) return;
      if (frame.kind === 'line') events.message(frame.text);
      else events.malformed(frame.kind, frame.kind === 'too-long');
    }
  }
  let handedOver = false;
  /** What has come before it is known which language it is; undefined: lines. */
  let start: Buffer | undefined = Buffer.alloc(0);
  const onData = (chunk: Buffer): void => {
    if (start === undefined) {
      deliver(splitter.push(chunk));
      return;
    }
    start = start.length === 0 ? chunk : Buffer.concat([start, chunk]);
    const isHttp = beginsHttp(start);
    if (isHttp === undefined) return;
    const first = start;
    start = undefined;
    if (isHttp) toHttp(first);
    else deliver(splitter.push(first));
  };
  const onEnd = (): void => {
    if (start !== undefined) deliver(splitter.push(start));
    start = undefined;
    deliver(splitter.end());
    events.halfClosed();
  };
  const onDrain = (): void => events.drained();
  const onClose = (): void => events.closed();
  /** From here on the connection is the HTTP server's; each of its requests is a session of its own. */
  function toHttp(first: Buffer): void {
    handedOver = true;
    socket.off('data', onData).off('end', onEnd).off('drain', onDrain).off('close', onClose);
    events.closed();
    socket.pause();
    socket.unshift(first);
    void http().then((server) => {
      if (socket.destroyed) return;
      server.emit('connection', socket);
      process.nextTick(() => socket.resume());
    });
  }
  socket.on('data', onData).on('end', onEnd).on('drain', onDrain).on('close', onClose);
}
