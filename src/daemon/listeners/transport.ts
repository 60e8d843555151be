/** A connection as sessions see it: whole messages in order, whatever carries them. */

export interface Transport {
  readonly kind: 'unix' | 'websocket';
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
  closed(): void;
}
