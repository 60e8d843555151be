/** JSON-RPC on WebSocket, one message a frame; loopback only, a bearer token always. */
import { createHash, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { type WebSocket, WebSocketServer } from 'ws';
import type { Transport } from './transport.js';
import type { Accept, Listener } from './unix.js';

export interface WebSocketSettings {
  readonly host: string;
  readonly port: number;
  readonly tokens: readonly string[];
  readonly allowOrigins: readonly string[];
  readonly maxMessage: number;
  readonly maxConnections: number;
  /** Told of each refusal; never of a token. */
  refused(reason: string): void;
}

/** The protocol that is spoken, and how a browser, which cannot set headers, shows its token: `imgd, bearer.<base64url>`. */
const PROTOCOL = 'imgd';
const TOKEN_PROTOCOL = 'bearer.';

/** Bytes that may be buffered before a connection counts as full. */
const HIGH_WATER = 64 * 1024;

/** Time for a handshake, so that half requests do not pile up. */
const HANDSHAKE_MS = 10_000;

export async function listenWebSocket(settings: WebSocketSettings, accept: Accept): Promise<Listener> {
  const server = createServer(
    { headersTimeout: HANDSHAKE_MS, requestTimeout: HANDSHAKE_MS },
    (_, response) => {
      response.writeHead(426, { 'content-type': 'text/plain', upgrade: 'websocket', connection: 'close' });
      response.end('WebSocket only\n');
    },
  );
  server.maxConnections = settings.maxConnections + 16;
  const sockets = new WebSocketServer({
    noServer: true,
    maxPayload: settings.maxMessage,
    perMessageDeflate: false,
    clientTracking: false,
    handleProtocols: (offered) => (offered.has(PROTOCOL) ? PROTOCOL : false),
  });
  const hashes = settings.tokens.map(hash);

  server.on('upgrade', (request, socket, head) => {
    socket.on('error', () => undefined);
    const port = (server.address() as AddressInfo | null)?.port ?? settings.port;
    const refusal = check(request, port, settings.allowOrigins, hashes);
    if (refusal !== undefined) {
      settings.refused(refusal.reason);
      refuse(socket, refusal.status);
      return;
    }
    sockets.handleUpgrade(request, socket, head, (webSocket) => serve(webSocket, accept));
  });

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(settings.port, settings.host, resolve);
  });
  server.removeAllListeners('error');
  server.on('error', () => undefined);
  const { address, port, family } = server.address() as AddressInfo;
  return {
    address: `ws://${family === 'IPv6' ? `[${address}]` : address}:${port}`,
    close: () =>
      new Promise((resolve) => {
        server.close();
        server.closeIdleConnections();
        resolve();
      }),
  };
}

interface Refusal {
  readonly status: '400 Bad Request' | '401 Unauthorized' | '403 Forbidden';
  readonly reason: 'host' | 'origin' | 'token';
}

/** Names a refusal, or undefined where the request may pass. */
function check(
  request: IncomingMessage,
  port: number,
  allowOrigins: readonly string[],
  hashes: readonly Buffer[],
): Refusal | undefined {
  // A name that an attacker's DNS points at this machine is not one of these.
  const host = request.headers.host ?? '';
  const match = /^(127(?:\.\d{1,3}){3}|localhost|\[::1\])(?::(\d+))?$/i.exec(host);
  if (!match || Number(match[2] ?? 80) !== port) return { status: '403 Forbidden', reason: 'host' };
  const { origin } = request.headers;
  if (origin !== undefined && origin !== `http://${host}` && !allowOrigins.includes(origin)) {
    return { status: '403 Forbidden', reason: 'origin' };
  }
  const token = tokenOf(request);
  if (token === undefined) return { status: '401 Unauthorized', reason: 'token' };
  const shown = hash(token);
  let known = false;
  for (const each of hashes) known = timingSafeEqual(each, shown) || known;
  return known ? undefined : { status: '401 Unauthorized', reason: 'token' };
}

function tokenOf(request: IncomingMessage): string | undefined {
  const bearer = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1];
  if (bearer !== undefined) return bearer;
  for (const offered of (request.headers['sec-websocket-protocol'] ?? '').split(',')) {
    const name = offered.trim();
    if (name.startsWith(TOKEN_PROTOCOL)) {
      return Buffer.from(name.slice(TOKEN_PROTOCOL.length), 'base64url').toString('latin1');
    }
  }
  return undefined;
}

/** Hashes are all of one length, as the comparison in constant time needs. */
function hash(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}

function refuse(socket: Duplex, status: Refusal['status']): void {
  const challenge = status.startsWith('401') ? 'WWW-Authenticate: Bearer\r\n' : '';
  socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n${challenge}\r\n`);
}

function serve(socket: WebSocket, accept: Accept): void {
  let waiting = false;
  let drained = (): void => undefined;
  const transport: Transport = {
    kind: 'websocket',
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
