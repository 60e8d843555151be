/** JSON-RPC on a Unix socket, one message a line. */
import { chmodSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { type Frame, LineSplitter } from '../../protocol/framing.js';
import type { Transport, TransportEvents } from './transport.js';

export interface Listener {
  /** Where it listens, for the log. */
  readonly address: string;
  /** Stops accepting; connections that exist stay. */
  close(): Promise<void>;
}

/** Gives a connection its receiver, or refuses it with a text to send before closing. */
export type Accept = (transport: Transport) => TransportEvents | { readonly refuse: string };

/** @param path free, see claim.ts. Throws the host's error where it cannot be bound. */
export async function listenUnix(path: string, maxMessage: number, accept: Accept): Promise<Listener> {
  const server = createServer({ allowHalfOpen: true }, (socket) => serve(socket, maxMessage, accept));
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
  chmodSync(path, 0o600);
  return {
    address: path,
    close: () =>
      new Promise((resolve) => {
        // Stops accepting and removes the file now; calls back when the last connection has gone, which is not waited for.
        server.close();
        resolve();
      }),
  };
}

function serve(socket: Socket, maxMessage: number, accept: Accept): void {
  const splitter = new LineSplitter(maxMessage);
  let over = false;
  const transport: Transport = {
    kind: 'unix',
    send(text) {
      if (!socket.writable) return true;
      return socket.write(`${text}\n`);
    },
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
  const events = accept(transport);
  if ('refuse' in events) {
    socket.end(`${events.refuse}\n`, () => socket.destroy());
    return;
  }
  function deliver(frames: readonly Frame[]): void {
    for (const frame of frames) {
      if (over) return;
      if (frame.kind === 'line') (events as TransportEvents).message(frame.text);
      else (events as TransportEvents).malformed(frame.kind, frame.kind === 'too-long');
    }
  }
  socket.on('data', (chunk: Buffer) => deliver(splitter.push(chunk)));
  socket.on('end', () => {
    deliver(splitter.end());
    events.halfClosed();
  });
  socket.on('drain', () => events.drained());
  socket.on('close', () => events.closed());
}
