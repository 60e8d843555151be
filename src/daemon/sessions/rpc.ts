/**
 * JSON-RPC 2.0 around the json-rpc-2.0 package, which dispatches single calls. Batches are taken apart here: the package answers
 * a batch of one with a bare object and fails on `[null]`. Answers are put together as text, so that a result that is JSON already
 * (from a worker) is not parsed and printed again.
 */
import { createRequire } from 'node:module';
import type * as JsonRpc from 'json-rpc-2.0';
import { wireError } from '../../protocol/errors.js';
import { nestedDeeperThan } from '../../protocol/json.js';
import type { Log } from '../log.js';
import { RpcError } from './rpc-error.js';
import type { Session } from './session.js';

// A CommonJS package: required, because Node's import scans its text for export names first.
const { JSONRPCServer } = createRequire(import.meta.url)('json-rpc-2.0') as typeof JsonRpc;

/** A result that is JSON text already. */
export class RawJson {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

/** What a handler may know of the call. */
export interface Call {
  readonly session: Session;
  /** Runs once the answer is queued: what it sends comes after the answer. In a batch, when this call's part is known. */
  afterAnswer(callback: () => void): void;
}

export type Method = (params: unknown, call: Call) => unknown;

const MAX_DEPTH = 64;
const MAX_BATCH = 100;

interface CallState extends Call {
  readonly after: (() => void)[];
}

export function createRpc(
  methods: Readonly<Record<string, Method>>,
  log: Log,
): (session: Session, text: string) => void {
  const server = new JSONRPCServer<CallState>({ errorListener: () => undefined });
  for (const [name, method] of Object.entries(methods)) {
    server.addMethod(name, (params: unknown, call) => method(params, call));
  }
  server.handleMethodNotFound = (request) =>
    Promise.resolve(
      request.id === undefined
        ? null
        : {
            jsonrpc: '2.0' as const,
            id: request.id,
            error: wireError(
              'unknown-method',
              `The command ${String(request.method).slice(0, 100)} has not been found`,
            ),
          },
    );
  server.mapErrorToJSONRPCErrorResponse = (id, error) => {
    if (error instanceof RpcError) return { jsonrpc: '2.0', id, error: error.wire };
    log.error({ err: error }, 'a handler failed');
    return { jsonrpc: '2.0', id, error: wireError('internal', 'internal error') };
  };

  function refuse(id: unknown, error: ReturnType<typeof wireError>): string {
    const known = typeof id === 'string' || typeof id === 'number' ? id : null;
    return JSON.stringify({ jsonrpc: '2.0', id: known, error });
  }

  function invalid(item: unknown): string | undefined {
    if (typeof item !== 'object' || item === null || Array.isArray(item)) {
      return refuse(null, wireError('invalid-request', 'a request is an object'));
    }
    const { jsonrpc, method, params, id } = item as Record<string, unknown>;
    let wrong: string | undefined;
    if (jsonrpc !== '2.0') wrong = 'jsonrpc must be "2.0"';
    else if (typeof method !== 'string') wrong = 'method must be a string';
    else if (params !== undefined && (typeof params !== 'object' || params === null)) {
      wrong = 'params must be an object';
    } else if (id !== undefined && id !== null && typeof id !== 'string' && typeof id !== 'number') {
      wrong = 'id must be a string, a number or null';
    }
    return wrong === undefined ? undefined : refuse(id, wireError('invalid-request', wrong));
  }

  /** `answer` is called once with the answer's text; not at all for a notification. */
  async function handle(session: Session, item: unknown, answer: (text: string) => void): Promise<void> {
    const wrong = invalid(item);
    if (wrong !== undefined) {
      answer(wrong);
      return;
    }
    const request = item as JsonRpc.JSONRPCRequest;
    session.callStarted();
    try {
      const after: (() => void)[] = [];
      const response = await server.receive(request, {
        session,
        after,
        afterAnswer: (callback) => after.push(callback),
      });
      if (response !== null) answer(print(response));
      for (const callback of after) callback();
    } finally {
      session.callEnded();
    }
  }

  async function batch(session: Session, items: readonly unknown[]): Promise<void> {
    const answers: string[] = [];
    session.hold();
    try {
      await Promise.all(items.map((item) => handle(session, item, (text) => answers.push(text))));
      if (answers.length > 0) session.answer(`[${answers.join(',')}]`);
    } finally {
      session.release();
    }
  }

  const bug = (error: unknown): void => log.error({ err: error }, 'a call was not answered');

  return (session, text) => {
    if (nestedDeeperThan(text, MAX_DEPTH)) {
      session.answer(refuse(null, wireError('too-deep', `nested deeper than ${MAX_DEPTH}`)));
      return;
    }
    let message: unknown;
    try {
      message = JSON.parse(text);
    } catch {
      session.answer(refuse(null, wireError('parse', 'the message is not JSON')));
      return;
    }
    if (!Array.isArray(message)) handle(session, message, (line) => session.answer(line)).catch(bug);
    else if (message.length === 0) {
      session.answer(refuse(null, wireError('invalid-request', 'a batch must not be empty')));
    } else if (message.length > MAX_BATCH) {
      session.answer(refuse(null, wireError('batch-too-long', `a batch holds at most ${MAX_BATCH} calls`)));
    } else batch(session, message).catch(bug);
  };
}

function print(response: JsonRpc.JSONRPCResponse): string {
  const result: unknown = response.result;
  if (!(result instanceof RawJson)) return JSON.stringify(response);
  return `{"jsonrpc":"2.0","id":${JSON.stringify(response.id)},"result":${result.text}}`;
}
