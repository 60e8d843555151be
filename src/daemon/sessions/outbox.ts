/**
 * All that a connection still has to be sent, in order: answers and events in one queue, so that a client sees a job's events
 * before the answer that ends it. Memory is bounded by who fills it: calls in flight for answers, see subscription.ts for events.
 */
import type { Transport } from '../listeners/transport.js';

export interface Item {
  /** Made when the item's turn comes. */
  text(): string;
  /** About how much memory it holds. */
  readonly bytes: number;
  /** Called once, when it was handed to the transport, dropped, or the connection ended. */
  gone?(sent: boolean): void;
}

interface Slot {
  item: Item | undefined;
}

export interface Ticket {
  /** Takes the item out, if it still waits. */
  drop(): void;
}

/** Dropped slots are swept out when there are so many, and more than live ones. */
const SWEEP = 1024;

export class Outbox {
  readonly #transport: Transport;
  readonly #onIdle: () => void;
  #slots: Slot[] = [];
  #head = 0;
  #dropped = 0;
  #writable = true;
  #closed = false;
  /** Bytes that wait. */
  bytes = 0;

  /** @param onIdle called whenever everything has been handed to the transport after some had to wait. */
  constructor(transport: Transport, onIdle: () => void) {
    this.#transport = transport;
    this.#onIdle = onIdle;
  }

  push(item: Item): Ticket | undefined {
    if (this.#closed) {
      item.gone?.(false);
      return undefined;
    }
    if (this.#writable && this.#head === this.#slots.length) {
      this.#writable = this.#transport.send(item.text());
      item.gone?.(true);
      return undefined;
    }
    const slot: Slot = { item };
    this.#slots.push(slot);
    this.bytes += item.bytes;
    return { drop: () => this.#drop(slot) };
  }

  get empty(): boolean {
    return this.#head === this.#slots.length && this.#writable;
  }

  drained(): void {
    this.#writable = true;
    while (this.#writable && this.#head < this.#slots.length) {
      const slot = this.#slots[this.#head++]!;
      const { item } = slot;
      slot.item = undefined;
      if (item === undefined) {
        this.#dropped--;
        continue;
      }
      this.bytes -= item.bytes;
      this.#writable = this.#transport.send(item.text());
      item.gone?.(true);
    }
    if (this.#head === this.#slots.length || this.#head > SWEEP) this.#compact();
    if (this.empty) this.#onIdle();
  }

  close(): void {
    this.#closed = true;
    const rest = this.#slots.slice(this.#head);
    this.#slots = [];
    this.#head = 0;
    this.bytes = 0;
    for (const { item } of rest) item?.gone?.(false);
  }

  #drop(slot: Slot): void {
    const { item } = slot;
    if (item === undefined || this.#closed) return;
    slot.item = undefined;
    this.bytes -= item.bytes;
    this.#dropped++;
    item.gone?.(false);
    if (this.#dropped > SWEEP && this.#dropped > (this.#slots.length - this.#head) / 2) this.#compact();
  }

  #compact(): void {
    this.#slots = this.#slots.slice(this.#head).filter((slot) => slot.item !== undefined);
    this.#head = 0;
    this.#dropped = 0;
  }
}
