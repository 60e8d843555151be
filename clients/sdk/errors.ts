/** What goes wrong, as the SDK's users see it: one class, told apart by `kind`. */
import type { ErrorData, WireError, WireErrorKind } from '../../src/protocol/errors.js';

/** The daemon's kinds, and those of the connection to it. */
export type ImgdErrorKind =
  | WireErrorKind
  /** Nobody answered, or what answered does not let this client in. */
  | 'connection-failed'
  /** The connection broke while a call waited, and what became of the call is not known. */
  | 'connection-lost'
  /** The client was closed. */
  | 'closed'
  /** Events were missed and cannot be had any more; `gap` says why. */
  | 'events-lost';

/** Why a subscription has a hole. */
export interface EventGap {
  /**
   * `too-old`: the connection was gone for longer than the daemon remembers events. `restarted`: another daemon answers, whose
   * events are numbered anew. `overflow`: this program reads its events too slowly.
   */
  readonly reason: 'too-old' | 'restarted' | 'overflow';
  /** Number of the last event before the hole. */
  readonly after: number;
  /** Of `too-old`: events go on with this number at the earliest. */
  readonly oldest?: number;
}

/** Every error of the SDK, but for the reason of an aborted signal, which is passed on as it is. */
export class ImgdError extends Error {
  readonly kind: ImgdErrorKind;
  /** QMP's error class: `GenericError`, `CommandNotFound`. */
  readonly class: string;
  /** JSON-RPC's code; undefined where the daemon did not answer. */
  readonly code: number | undefined;
  /** The image file that the error is about, and the byte offset in it. */
  readonly path: string | undefined;
  readonly offset: number | undefined;
  /** Symbolic host error: `ENOSPC`. */
  readonly errno: string | undefined;
  /** Further lines for people. */
  readonly hint: string | undefined;
  /** The safety check or lock that refused. */
  readonly check: string | undefined;
  /** Who holds the lock that was not to be had. */
  readonly holder: ErrorData['holder'];
  readonly operation: string | undefined;
  /** The member of the params that is wrong: `image.filename`. */
  readonly member: string | undefined;
  readonly job: string | undefined;
  /** Of `events-lost`. */
  readonly gap: EventGap | undefined;
  /** All that the daemon said beside code and message. */
  readonly data: ErrorData | undefined;

  constructor(
    kind: ImgdErrorKind,
    message: string,
    more: {
      readonly code?: number;
      readonly data?: ErrorData | undefined;
      readonly gap?: EventGap;
      readonly job?: string;
      readonly cause?: unknown;
    } = {},
  ) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.name = 'ImgdError';
    this.kind = kind;
    this.class = more.data?.class ?? 'GenericError';
    this.code = more.code;
    this.path = more.data?.path;
    this.offset = more.data?.offset;
    this.errno = more.data?.errno;
    this.hint = more.data?.hint;
    this.check = more.data?.check;
    this.holder = more.data?.holder;
    this.operation = more.data?.operation;
    this.member = more.data?.member;
    this.job = more.data?.job ?? more.job;
    this.gap = more.gap;
    this.data = more.data;
  }
}

/** An error as the daemon sends it. Servers that are not imgd send no `data`: `internal` then. */
export function fromWire({ code, message, data }: WireError): ImgdError {
  return new ImgdError((data?.kind ?? 'internal') as ImgdErrorKind, message, { code, data });
}

/** Whether something caught is an ImgdError, of this kind if one is given. */
export function isImgdError(error: unknown, kind?: ImgdErrorKind): error is ImgdError {
  return error instanceof ImgdError && (kind === undefined || error.kind === kind);
}
