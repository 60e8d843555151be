/** A connection as sessions see it: whole messages in order, whatever carries them. */
import type { Role } from '../../protocol/roles.js';

/** Who is at the other end of a Unix socket, as the kernel says. */
export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

export interface Transport {
  /** `http`: one message, one answer, and nothing unasked. */
  readonly kind: 'unix' | 'websocket' | 'http';
  /** What the client may do. */
  readonly role: Role;
  readonly peer?: PeerCredentials | undefined;
  /** Sends one message. False: enough is buffered, `drained` will be called. After the end it does nothing. */
  send(text: string): boolean;
  /** Stop and go on delivering messages. */
  pause(): void;
  resume(): void;
  /** Sends what is buffered, then closes. */
  end(): void;
  /** Closes at once. */
  destroy(): void;
}

export interface TransportEvents {
  message(text: string): void;
  /** Bytes that are no message: `fatal` when nothing after them can be understood. */
  malformed(kind: 'invalid-utf8' | 'too-long' | 'not-text', fatal: boolean): void;
  drained(): void;
  /** The peer sends nothing more; it may still read. */
  halfClosed(): void;
  /** There will be no further message from here: let the transport end when all is answered. The client still listens. */
  finish(): void;
  closed(): void;
}

export interface Listener {
  /** Where it listens, for the log. */
  readonly address: string;
  /** Stops accepting; connections that exist stay. */
  close(): Promise<void>;
}

/** Gives a connection its receiver, or refuses it with a text to send before closing. */
export type Accept = (transport: Transport) => TransportEvents | { readonly refuse: string };
