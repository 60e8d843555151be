/** A connection that carries messages, whatever it is made of. */

export interface WireEvents {
  message(text: string): void;
  /** Once, whoever closed it; not before `Dial` has resolved. */
  closed(): void;
}

export interface Wire {
  send(text: string): void;
  close(): void;
}

/** Connects. Rejects with an ImgdError of kind `connection-failed`, or `forbidden` where trying again is of no use. */
export type Dial = (events: WireEvents) => Promise<Wire>;
