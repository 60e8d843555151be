/** What QMP answers with: QEMU's members in QEMU's order, everything outside ASCII escaped. */
import { flatJson, quote } from '../../protocol/dictionary.js';
import type { Json } from '../../protocol/json-tokens.js';
import { RpcError } from '../sessions/rpc-error.js';

/** QAPI's QapiErrorClass. */
export type ErrorClass =
  | 'GenericError'
  | 'CommandNotFound'
  | 'DeviceNotActive'
  | 'DeviceNotFound'
  | 'KVMMissingCap';

export class QmpError extends Error {
  readonly errorClass: ErrorClass;
  constructor(desc: string, errorClass: ErrorClass = 'GenericError') {
    super(desc);
    this.errorClass = errorClass;
  }
}

/** Error text of the JSON-RPC side as QMP says it. Undefined for what is no error of a command, but a bug. */
export function asQmpError(error: unknown): QmpError | undefined {
  if (error instanceof QmpError) return error;
  if (!(error instanceof RpcError)) return undefined;
  const { message, data } = error.wire;
  if (data?.kind === 'job-not-found') return new QmpError('Job not found');
  return new QmpError(message.replace(/^Invalid params: /, ''));
}

/** @param id undefined: the request had none. */
export function errorReply({ errorClass, message }: QmpError, id?: Json): string {
  return flatJson({ id, error: { class: errorClass, desc: message } });
}

/** QEMU's dictionaries have `micro` before `minor`, which share a bucket. */
export function versionJson(qemu: { major: number; minor: number; micro: number }, name: string): string {
  const { major, minor, micro } = qemu;
  return `{"qemu": {"micro": ${micro}, "minor": ${minor}, "major": ${major}}, "package": ${quote(name)}}`;
}

export function greeting(version: string): string {
  return `{"QMP": {"version": ${version}, "capabilities": ["oob"]}}`;
}

/** @param json the result as JSON text; QEMU has it before the id. */
export function returnReply(json: string, id?: Json): string {
  return id === undefined ? `{"return": ${json}}` : `{"return": ${json}, "id": ${flatJson(id)}}`;
}

export function eventText(name: string, data: object | undefined, milliseconds = Date.now()): string {
  const seconds = Math.floor(milliseconds / 1000);
  const timestamp = { seconds, microseconds: Math.round((milliseconds - seconds * 1000) * 1000) };
  return flatJson({ timestamp, event: name, data });
}
