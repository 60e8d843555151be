/** What handlers throw to be answered with an error. */
import type { ErrorKind } from '../../engine/error.js';
import { type ErrorDetails, type WireError, type WireErrorKind, wireError } from '../../protocol/errors.js';
import type { Failure } from '../workers/messages.js';

export class RpcError extends Error {
  readonly wire: WireError;

  constructor(wire: WireError) {
    super(wire.message);
    this.name = 'RpcError';
    this.wire = wire;
  }
}

export function rpcError(kind: WireErrorKind, message: string, more: ErrorDetails = {}): RpcError {
  return new RpcError(wireError(kind, message, more));
}

/** An engine's failure on the wire. */
export function failureToWire(failure: Failure, job: string): WireError {
  return wireError(failure.kind, failure.message, { ...failure.context, job });
}

/** Does not compile when the engine has a kind of error without a code. */
export type EveryKindHasACode = ErrorKind extends WireErrorKind ? true : never;
export const everyKindHasACode: EveryKindHasACode = true;
