/** JSON-RPC 2.0 as it goes over the wire: shapes, the standard codes, and a check that is made before parsing. */

export type RequestId = string | number | null;

/** Codes that the JSON-RPC 2.0 specification gives a meaning; those of imgd are in errors.ts. */
export const RpcCode = {
  parse: -32700,
  invalidRequest: -32600,
  methodNotFound: -32601,
  invalidParams: -32602,
  internal: -32603,
} as const;

export interface RpcRequest {
  readonly jsonrpc: '2.0';
  readonly method: string;
  readonly params?: unknown;
  /** Absent: a notification, which is never answered. */
  readonly id?: RequestId;
}

export interface RpcErrorObject {
  readonly code: number;
  readonly message: string;
  readonly data?: unknown;
}

export type RpcResponse =
  | { readonly jsonrpc: '2.0'; readonly id: RequestId; readonly result: unknown }
  | { readonly jsonrpc: '2.0'; readonly id: RequestId; readonly error: RpcErrorObject };

/** What the server sends unasked once a client has subscribed. */
export interface RpcNotification<P> {
  readonly jsonrpc: '2.0';
  readonly method: string;
  readonly params: P;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

/**
 * Whether arrays and objects in a JSON text are nested deeper than `limit`. Looked at before parsing, because what walks
 * the value later (validation, cloning to a worker, printing) recurses. Text that is not JSON gets any answer: it fails to parse.
 */
export function nestedDeeperThan(text: string, limit: number): boolean {
  if (text.length <= limit) return false;
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === QUOTE) {
      for (at++; at < text.length; at++) {
        const inner = text.charCodeAt(at);
        if (inner === BACKSLASH) at++;
        else if (inner === QUOTE) break;
      }
    } else if (code === OPEN_BRACKET || code === OPEN_BRACE) {
      if (++depth > limit) return true;
    } else if (code === CLOSE_BRACKET || code === CLOSE_BRACE) depth--;
  }
  return false;
}
