/** Operations run by a daemon: JSON-RPC 2.0, one message a line, over its Unix socket. */
import { createConnection, type Socket } from 'node:net';
import type { MapEntry } from '../../src/protocol/commands/image-map.js';
import type { Listeners, ProgressReport } from './declare.js';
import { RequestError } from './errors.js';
import type { Reply, Transport } from './transport.js';

interface Message {
  readonly id?: number | null;
  readonly result?: unknown;
  readonly error?: {
    readonly message: string;
    readonly data?: { readonly kind?: string; readonly hint?: string };
  };
  readonly method?: string;
  readonly params?: { readonly event: string; readonly data: Record<string, unknown> };
}

/** Ids of the requests on a connection; the operation is the only one whose answer matters. */
const SUBSCRIBE = 1;
const OPERATION = 2;
const CANCEL = 3;

/** Connects to the socket at `path`; rejects with the system's error where nobody answers. */
export async function connect(path: string): Promise<Transport> {
  const socket = await new Promise<Socket>((resolve, reject) => {
    const opening = createConnection(path);
    opening.once('connect', () => {
      opening.off('error', reject);
      resolve(opening);
    });
    opening.once('error', reject);
  });
  return { run: (method, params, listeners, signal) => run(socket, method, params, listeners, signal) };
}

function run(
  socket: Socket,
  method: string,
  params: object,
  listeners: Required<Listeners>,
  signal: AbortSignal,
): Promise<Reply> {
  const job = `qemu-img-${process.pid}-${Date.now().toString(36)}`;
  const line = (id: number, name: string, body: object) =>
    `${JSON.stringify({ jsonrpc: '2.0', id, method: name, params: body })}\n`;

  return new Promise<Reply>((resolve, reject) => {
    const lost = () =>
      resolve({ error: new RequestError('The connection to the daemon was lost', 'internal') });
    const onMessage = (message: Message) => {
      if (message.method === 'event' && message.params !== undefined) {
        onEvent(message.params.event, message.params.data, listeners);
      } else if (message.id === OPERATION || (message.id === null && message.error !== undefined)) {
        const { error } = message;
        if (error === undefined) resolve({ result: message.result });
        else
          resolve({
            error: new RequestError(error.message, error.data?.kind ?? 'internal', error.data?.hint),
          });
      }
    };
    const cancel = () => socket.write(line(CANCEL, 'job-cancel', { id: job }));
    signal.addEventListener('abort', cancel, { once: true });

    let held = '';
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => {
      const lines = (held + chunk).split('\n');
      held = lines.pop() ?? '';
      try {
        for (const text of lines) if (text.trim() !== '') onMessage(JSON.parse(text) as Message);
      } catch (error) {
        // What a listener throws (a map that cannot be shown) ends the program, and with the connection the job.
        reject(error);
        socket.destroy();
      }
    });
    socket.on('error', lost);
    socket.on('close', lost);
    const operation = { ...params, job: { id: job, wait: true, 'cancel-on-disconnect': true } };
    // In one write: the subscription is there before the job's first event.
    socket.write(
      line(SUBSCRIBE, 'events-subscribe', { filter: { job } }) + line(OPERATION, method, operation),
    );
  });
}

function onEvent(event: string, data: Record<string, unknown>, listeners: Required<Listeners>): void {
  if (event === 'JOB_PROGRESS') listeners.onProgress(data as unknown as ProgressReport);
  if (event !== 'JOB_OUTPUT') return;
  const { stream, text, entries } = data as { stream: string; text?: string; entries?: MapEntry[] };
  if (stream === 'entries') listeners.onEntries(entries ?? []);
  else if (stream === 'trace') listeners.onTrace(text ?? '');
  else listeners.onText(stream === 'stderr' ? 'stderr' : 'stdout', text ?? '');
}
