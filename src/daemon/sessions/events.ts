/** Events and who is told of them. */
import { randomUUID } from 'node:crypto';
import type { EventFilter } from '../../protocol/commands/events.js';
import { EVENT_METHOD, type EventName } from '../../protocol/events.js';
import type { Outbox, Ticket } from './outbox.js';
import { rpcError } from './rpc-error.js';

export interface PublishedEvent {
  readonly seq: number;
  readonly name: EventName;
  readonly job: string | undefined;
  /** Members `seq`, `timestamp`, `event` and `data` of the notification, as JSON without braces; made when first needed. */
  json(): string;
}

/** Events for `since`: so many, and of so many bytes together. */
const REMEMBERED_EVENTS = 2000;
const REMEMBERED_BYTES = 1024 * 1024;

/** Bytes that may wait for a subscriber that is not waited for; one that lets more pile up is let go. */
const QUEUE_BYTES = 1024 * 1024;

/** What an event costs beside its data. */
const ENVELOPE_BYTES = 200;

/** What subscribers did not get, over all of them since the start. */
export interface EventCounts {
  /** Progress events that were left out. */
  lagged: number;
  /** Subscriptions that were too slow and were ended. */
  ended: number;
}

export class Subscription {
  readonly id: string;
  readonly #filter: EventFilter;
  readonly #outbox: Outbox;
  readonly #onEnd: (subscription: Subscription) => void;
  readonly #counts: EventCounts;
  /** Whose jobs wait for this subscriber instead of leaving it behind. */
  readonly session: object;
  readonly #waiting = new Set<Ticket>();
  readonly #progress = new Map<string, Ticket>();
  #lossyBytes = 0;
  #lagged = 0;
  #ended = false;

  constructor(
    id: string,
    filter: EventFilter,
    session: object,
    outbox: Outbox,
    onEnd: (subscription: Subscription) => void,
    counts: EventCounts = { lagged: 0, ended: 0 },
  ) {
    this.#counts = counts;
    this.id = id;
    this.#filter = filter;
    this.session = session;
    this.#outbox = outbox;
    this.#onEnd = onEnd;
  }

  matches(event: PublishedEvent): boolean {
    const { job, events } = this.#filter;
    if (job !== undefined && event.job !== job) return false;
    return events === undefined || (events as readonly string[]).includes(event.name);
  }

  /**
   * Queues an event that matches.
   * @param sent given: the sender waits for this subscriber; called when the event has left the queue, in whichever way.
   */
  offer(event: PublishedEvent, sent?: () => void): void {
    if (this.#ended) {
      sent?.();
      return;
    }
    const progress = event.name === 'JOB_PROGRESS' && event.job !== undefined ? event.job : undefined;
    if (progress !== undefined) {
      const older = this.#progress.get(progress);
      if (older !== undefined) {
        older.drop();
        this.#lagged++;
        this.#counts.lagged++;
      }
    }
    const bytes = ENVELOPE_BYTES + (sent === undefined && progress === undefined ? event.json().length : 0);
    const lossy = sent === undefined;
    if (lossy) this.#lossyBytes += bytes;
    let ticket: Ticket | undefined;
    ticket = this.#outbox.push({
      text: () => this.#notification(event.json()),
      bytes,
      gone: () => {
        if (lossy) this.#lossyBytes -= bytes;
        if (ticket !== undefined) {
          this.#waiting.delete(ticket);
          if (progress !== undefined && this.#progress.get(progress) === ticket) {
            this.#progress.delete(progress);
          }
        }
        sent?.();
      },
    });
    if (ticket === undefined) return;
    this.#waiting.add(ticket);
    if (progress !== undefined) this.#progress.set(progress, ticket);
    if (this.#lossyBytes > QUEUE_BYTES) this.#letGo();
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    for (const ticket of [...this.#waiting]) ticket.drop();
    this.#onEnd(this);
  }

  #letGo(): void {
    const lost = this.#waiting.size;
    this.#counts.ended++;
    this.end();
    const json = eventJson(0, 'SUBSCRIPTION_ENDED', JSON.stringify({ reason: 'slow', lost }));
    this.#outbox.push({ text: () => this.#notification(json), bytes: ENVELOPE_BYTES });
  }

  #notification(json: string): string {
    const lagged = this.#lagged === 0 ? '' : `,"lagged":${this.#lagged}`;
    this.#lagged = 0;
    return `{"jsonrpc":"2.0","method":"${EVENT_METHOD}","params":{"subscription":"${this.id}",${json}${lagged}}}`;
  }
}

function eventJson(seq: number, name: EventName, data: string, now = Date.now()): string {
  const seconds = Math.floor(now / 1000);
  const microseconds = (now - seconds * 1000) * 1000;
  return `"seq":${seq},"timestamp":{"seconds":${seconds},"microseconds":${microseconds}},"event":"${name}","data":${data}`;
}

export class EventBus {
  readonly #subscriptions = new Set<Subscription>();
  readonly #watchers = new Set<(event: PublishedEvent) => void>();
  #remembered: ({ readonly event: PublishedEvent; readonly bytes: number } | undefined)[] = [];
  /** Those before it are forgotten, and cut off now and then. */
  #oldest = 0;
  #rememberedBytes = 0;
  /** Number of the newest event that is forgotten; progress, which is never remembered, does not count. */
  #forgotten = 0;
  #nextSubscription = 1;
  /** Number of the newest event. */
  seq = 0;
  /** Which start of the daemon the numbers belong to. */
  readonly instance: string = randomUUID();
  readonly counts: EventCounts = { lagged: 0, ended: 0 };

  get subscriptions(): number {
    return this.#subscriptions.size;
  }

  /**
   * @param data the event's data as an object, or as JSON text that is passed on as it is.
   * @param owner subscribers of this session are waited for before `delivered` is called; others may be left behind.
   */
  publish(
    name: EventName,
    job: string | undefined,
    data: object | string,
    owner?: object,
    delivered?: () => void,
  ): void {
    const seq = ++this.seq;
    // When it happens, not when somebody asks for its text.
    const now = Date.now();
    let text: string | undefined;
    const event: PublishedEvent = {
      seq,
      name,
      job,
      json() {
        text ??= eventJson(seq, name, typeof data === 'string' ? data : JSON.stringify(data), now);
        return text;
      },
    };
    if (name !== 'JOB_PROGRESS') this.#remember(event, typeof data === 'string' ? data.length : 0);
    for (const watcher of this.#watchers) watcher(event);
    let outstanding = 1;
    const sent = (): void => {
      if (--outstanding === 0) delivered?.();
    };
    for (const subscription of this.#subscriptions) {
      if (!subscription.matches(event)) continue;
      if (delivered !== undefined && owner !== undefined && subscription.session === owner) {
        outstanding++;
        subscription.offer(event, sent);
      } else subscription.offer(event);
    }
    sent();
  }

  /** Tells of each event at once; for those inside the daemon, who do not wait. */
  watch(callback: (event: PublishedEvent) => void): void {
    this.#watchers.add(callback);
  }

  /** Makes a subscription that hears nothing before `start`. Throws where `since` is too long ago. */
  subscribe(
    filter: EventFilter,
    session: object,
    outbox: Outbox,
    since: number | undefined,
    onEnd: (subscription: Subscription) => void,
  ): { subscription: Subscription; start(): void } {
    if (since !== undefined && since < this.#forgotten) {
      throw rpcError(
        'events-too-old',
        `events after ${since} are forgotten: the oldest that is left is ${this.#forgotten + 1}`,
        { oldest: this.#forgotten + 1, member: 'since' },
      );
    }
    const from = since ?? this.seq;
    const subscription = new Subscription(
      `s${this.#nextSubscription++}`,
      filter,
      session,
      outbox,
      (ended) => {
        this.#subscriptions.delete(ended);
        onEnd(ended);
      },
      this.counts,
    );
    let ended = false;
    return {
      subscription,
      start: () => {
        if (ended) return;
        ended = true;
        this.#subscriptions.add(subscription);
        for (const each of this.#remembered) {
          if (each === undefined || each.event.seq <= from) continue;
          if (subscription.matches(each.event)) subscription.offer(each.event);
        }
      },
    };
  }

  #remember(event: PublishedEvent, dataBytes: number): void {
    const bytes = dataBytes + ENVELOPE_BYTES;
    this.#remembered.push({ event, bytes });
    this.#rememberedBytes += bytes;
    const all = this.#remembered;
    while (
      all.length - this.#oldest > REMEMBERED_EVENTS ||
      (this.#rememberedBytes > REMEMBERED_BYTES && this.#oldest < all.length)
    ) {
      const forgotten = all[this.#oldest]!;
      all[this.#oldest++] = undefined;
      this.#rememberedBytes -= forgotten.bytes;
      this.#forgotten = forgotten.event.seq;
    }
    if (this.#oldest > REMEMBERED_EVENTS) {
      all.splice(0, this.#oldest);
      this.#oldest = 0;
    }
  }
}
