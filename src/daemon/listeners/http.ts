/** JSON-RPC by HTTP POST, a request or a batch each, and GET /metrics. The same over TCP and on the Unix socket. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { covers, type Role } from '../../protocol/roles.js';
import type { Accept, PeerCredentials, Transport } from './transport.js';

export interface HttpSettings {
  readonly accept: Accept;
  readonly maxMessage: () => number;
  /** Prometheus' text. */
  readonly metrics: () => string;
  /** Takes what `curl -d` sends unasked for JSON: only where no browser can be the client. */
  readonly anyForm: boolean;
}

export interface Caller {
  readonly role: Role;
  readonly peer?: PeerCredentials | undefined;
}

/** Time for the headers and for a whole request, so that half ones do not pile up. */
export const HTTP_LIMITS = {
  headersTimeout: 10_000,
  requestTimeout: 60_000,
  connectionsCheckingInterval: 5000,
};

const RPC_PATHS = ['/', '/rpc'];
const JSON_TYPES = ['application/json', 'application/json-rpc', 'application/jsonrequest'];
const FORM_TYPE = 'application/x-www-form-urlencoded';
const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

/** A short text for a person; what is left of the request's body is not waited for. */
export function say(
  response: ServerResponse,
  status: number,
  text: string,
  headers: Readonly<Record<string, string>> = {},
): void {
  response.writeHead(status, { 'content-type': 'text/plain', connection: 'close', ...headers });
  response.end(`${text}\n`);
}

export type HttpHandler = (request: IncomingMessage, response: ServerResponse, caller: Caller) => void;

export function httpHandler(settings: HttpSettings): HttpHandler {
  return (request, response, caller) => {
    const path = (request.url ?? '').split('?')[0]!;
    const { method } = request;
    if (path === '/metrics') {
      if (method !== 'GET' && method !== 'HEAD')
        return say(response, 405, 'GET only', { allow: 'GET, HEAD' });
      if (!covers(caller.role, 'watch')) return say(response, 403, "needs the role 'watch'");
      response.writeHead(200, { 'content-type': METRICS_TYPE });
      response.end(method === 'GET' ? settings.metrics() : undefined);
      return;
    }
    if (!RPC_PATHS.includes(path))
      return say(response, 404, 'not found: POST JSON-RPC to /rpc, GET /metrics');
    if (method !== 'POST') return say(response, 405, 'POST JSON-RPC here', { allow: 'POST' });
    const type = request.headers['content-type']?.replace(/;.*/s, '').trim().toLowerCase();
    const taken = type !== undefined && JSON_TYPES.includes(type);
    if (!taken && !(settings.anyForm && (type === undefined || type === FORM_TYPE))) {
      return say(response, 415, 'the body must be application/json', { accept: 'application/json' });
    }
    const { 'content-encoding': encoding = 'identity', 'content-length': length = 0 } = request.headers;
    if (encoding !== 'identity') return say(response, 415, 'the body must not be compressed');
    const limit = settings.maxMessage();
    const tooLong = (): void => say(response, 413, `a request has at most ${limit} bytes`);
    if (Number(length) > limit) return tooLong();
    const parts: Buffer[] = [];
    let held = 0;
    let over = false;
    request.on('data', (part: Buffer) => {
      held += part.length;
      if (over) return;
      if (held > limit) {
        over = true;
        parts.length = 0;
        tooLong();
      } else parts.push(part);
    });
    request.on('end', () => {
      if (!over) answer(response, Buffer.concat(parts), caller, settings.accept);
    });
    request.on('error', () => undefined);
  };
}

/** A session of one message: whatever is answered is the response. */
function answer(response: ServerResponse, body: Buffer, caller: Caller, accept: Accept): void {
  let text: string | undefined;
  const transport: Transport = {
    kind: 'http',
    ...caller,
    send(answered) {
      text = answered;
      return true;
    },
    pause: () => undefined,
    resume: () => undefined,
    end() {
      if (response.writableEnded) return;
      if (text === undefined) {
        // Notifications alone are answered with nothing.
        response.writeHead(204);
        response.end();
        return;
      }
      const length = Buffer.byteLength(text) + 1;
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': length });
      response.end(`${text}\n`);
    },
    destroy: () => void response.destroy(),
  };
  const events = accept(transport);
  if ('refuse' in events) {
    response.writeHead(503, { 'content-type': 'application/json', connection: 'close' });
    response.end(`${events.refuse}\n`);
    return;
  }
  // One that queues behind others on its connection is not told when that closes.
  const { socket } = response.req;
  const gone = (): void => events.closed();
  // As many as the client sends without waiting for answers.
  socket.setMaxListeners(0).once('close', gone);
  response.on('close', () => {
    socket.off('close', gone);
    gone();
  });
  response.on('error', () => undefined);
  let message: string | undefined;
  try {
    message = new TextDecoder('utf-8', { fatal: true }).decode(body);
  } catch {
    events.malformed('invalid-utf8', false);
  }
  if (message !== undefined) events.message(message);
  events.finish();
}
