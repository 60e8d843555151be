/** Connections that Node makes: the daemon's Unix socket, and WebSocket. */
import { createConnection } from 'node:net';
import { WebSocket } from 'ws';
import { LineSplitter } from '../../src/protocol/framing.js';
import { ImgdError } from './errors.js';
import type { Dial } from './wire.js';

/** Longest answer that is taken: maps and lists of jobs are long. */
const LONGEST = 512 * 1024 * 1024;

export function unixDial(path: string): Dial {
  return (events) =>
    new Promise((resolve, reject) => {
      const splitter = new LineSplitter(LONGEST);
      const socket = createConnection(path);
      const failed = (error: NodeJS.ErrnoException): void =>
        reject(
          new ImgdError('connection-failed', `cannot connect to ${path}: ${error.code ?? error.message}`, {
            cause: error,
          }),
        );
      socket.once('error', failed);
      socket.once('connect', () => {
        socket.off('error', failed);
        socket.on('error', () => undefined);
        socket.on('data', (chunk) => {
          for (const frame of splitter.push(chunk)) {
            if (frame.kind === 'line') events.message(frame.text);
            else socket.destroy();
          }
        });
        socket.on('end', () => socket.destroy());
        socket.on('close', () => events.closed());
        resolve({
          send: (text) => void socket.write(`${text}\n`),
          // What has been sent still goes.
          close: () => void socket.end(),
        });
      });
    });
}

export interface WebSocketSettings {
  readonly token?: string | undefined;
  /** PEM of the authority that signed the daemon's certificate, where it is none of the system's. */
  readonly ca?: string | undefined;
}

export function webSocketDial(url: string, { token, ca }: WebSocketSettings): Dial {
  return (events) =>
    new Promise((resolve, reject) => {
      const socket = new WebSocket(url, ['imgd'], {
        maxPayload: LONGEST,
        perMessageDeflate: false,
        headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
        ...(ca === undefined ? {} : { ca }),
      });
      socket.on('unexpected-response', (request, response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (part: string) => {
          text = (text + part).slice(0, 200);
        });
        response.on('end', () => {
          const { statusCode = 0 } = response;
          // Whom it does not know now it will not know in a second either.
          const kind = statusCode === 401 || statusCode === 403 ? 'forbidden' : 'connection-failed';
          reject(
            new ImgdError(kind, `cannot connect to ${url}: ${text.trim() || `HTTP status ${statusCode}`}`),
          );
          request.destroy();
        });
      });
      socket.on('error', (error: NodeJS.ErrnoException) =>
        reject(
          new ImgdError('connection-failed', `cannot connect to ${url}: ${error.code ?? error.message}`, {
            cause: error,
          }),
        ),
      );
      socket.on('open', () =>
        resolve({ send: (text) => socket.send(text), close: () => socket.close(1000) }),
      );
      socket.on('message', (data, isBinary) => {
        if (!isBinary) events.message((data as Buffer).toString('utf8'));
      });
      socket.on('close', () => events.closed());
    });
}
