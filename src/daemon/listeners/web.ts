/** The TCP port: WebSocket and HTTP, with TLS where there is a certificate; a bearer token always. */
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { type Endpoint, isLoopback, type TlsFiles } from '../config-values.js';
import { type AccessRules, checkOrigin, checkToken, type Refusal } from './access.js';
import { HTTP_LIMITS, httpHandler, say } from './http.js';
import type { Accept, Listener } from './transport.js';
import { webSocketUpgrade } from './websocket.js';

export interface WebSettings {
  /** Where to listen, or a socket that listens already. */
  readonly at: Endpoint | { readonly fd: number };
  readonly tls: TlsFiles | undefined;
  readonly rules: () => AccessRules;
  readonly maxMessage: () => number;
  readonly maxConnections: () => number;
  readonly metrics: () => string;
  /** Told of each refusal; never of a token. */
  refused(reason: string): void;
}

export interface WebListener extends Listener {
  /** Another certificate, for connections from now on. */
  renew(tls: TlsFiles): void;
}

const STATUS = { 401: '401 Unauthorized', 403: '403 Forbidden', 404: '404 Not Found' } as const;

/** Throws the host's error, or one without a code where a socket that was handed over must not be served. */
export async function listenWeb(settings: WebSettings, accept: Accept): Promise<WebListener> {
  const { at, tls, rules } = settings;
  const server: Server | TlsServer =
    tls === undefined
      ? createServer(HTTP_LIMITS)
      : createTlsServer({
          ...HTTP_LIMITS,
          ...tls,
          minVersion: 'TLSv1.2',
          handshakeTimeout: HTTP_LIMITS.headersTimeout,
        });
  const { metrics, maxMessage } = settings;
  const handle = httpHandler({ accept, maxMessage, metrics, anyForm: false });
  const upgrade = webSocketUpgrade(accept, maxMessage);
  server.on('connection', () => {
    server.maxConnections = settings.maxConnections() + 16;
  });
  server.maxConnections = settings.maxConnections() + 16;

  server.on('request', (request: IncomingMessage, response) => {
    const refusal = checkOrigin(request, rules());
    if (refusal !== undefined) {
      settings.refused(refusal.reason);
      say(response, refusal.status, refusal.text);
      return;
    }
    const { origin } = request.headers;
    if (origin !== undefined) {
      response.setHeader('access-control-allow-origin', origin);
      response.setHeader('vary', 'origin');
    }
    if (request.method === 'OPTIONS') {
      // A browser asks before it sends a token; it shows none for that.
      response.writeHead(204, {
        'access-control-allow-methods': 'POST, GET',
        'access-control-allow-headers': 'authorization, content-type',
        'access-control-max-age': '600',
      });
      response.end();
      return;
    }
    const role = checkToken(request, rules());
    if (typeof role !== 'string') {
      settings.refused(role.reason);
      say(response, role.status, role.text, { 'www-authenticate': 'Bearer' });
      return;
    }
    handle(request, response, { role });
  });
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => undefined);
    const role = checkOrigin(request, rules()) ?? checkToken(request, rules());
    if (typeof role === 'string') upgrade(request, socket, head, role);
    else {
      settings.refused(role.reason);
      refuse(socket, role);
    }
  });
  server.on('clientError', (_, socket: Duplex) => {
    if (socket.writable)
      socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
  });

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    if ('fd' in at) server.listen({ fd: at.fd }, resolve);
    else server.listen(at.port, at.host, resolve);
  });
  server.removeAllListeners('error');
  server.on('error', () => undefined);
  const { address, port, family } = server.address() as AddressInfo;
  if (tls === undefined && !isLoopback(address)) {
    server.close();
    throw new Error(`${address} is not a loopback address: --tls-cert and --tls-key are needed`);
  }
  const shown = family === 'IPv6' ? `[${address}]` : address;
  return {
    address: `${tls === undefined ? 'ws' : 'wss'}://${shown}:${port}`,
    renew: (files) => (server as TlsServer).setSecureContext?.({ ...files, minVersion: 'TLSv1.2' }),
    close: () =>
      new Promise((resolve) => {
        server.close();
        server.closeIdleConnections();
        resolve();
      }),
  };
}

function refuse(socket: Duplex, { status, text }: Refusal): void {
  const challenge = status === 401 ? 'WWW-Authenticate: Bearer\r\n' : '';
  const length = Buffer.byteLength(text) + 1;
  socket.end(
    `HTTP/1.1 ${STATUS[status]}\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: ${length}\r\n${challenge}\r\n${text}\n`,
  );
}
