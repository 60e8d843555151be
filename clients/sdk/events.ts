/** Subscriptions that outlive their connection. */
import type { EventFilter } from '../../src/protocol/commands/events.js';
import type { EventParams } from '../../src/protocol/events.js';
import { type EventGap, ImgdError } from './errors.js';
import type { Link } from './link.js';
import type { ImgdEvent, SubscribableEvent } from './types.js';

interface Subscribed {
  readonly subscription: string;
  readonly seq: number;
  readonly instance?: string;
}

export interface FeedTarget {
  event(event: ImgdEvent): void;
  /** Events are missing from here on; those that come follow it. */
  gap(gap: EventGap): void;
  /** Nothing more comes. */
  ended(error: ImgdError): void;
}

/** One subscription: made again, with what was missed, whenever the connection comes back or the daemon lets it go. */
export class Feed {
  readonly #feeds: Feeds;
  readonly #filter: EventFilter;
  readonly #target: FeedTarget;
  #instance: string | undefined;
  #id: string | undefined;
  #over = false;
  /** Told once it is known where the events go on. */
  #gap: EventGap | undefined;
  /** Number of the newest event that has come; undefined: before the first answer. */
  seq: number | undefined;

  constructor(feeds: Feeds, filter: EventFilter, target: FeedTarget, since: number | undefined) {
    this.#feeds = feeds;
    this.#filter = filter;
    this.#target = target;
    this.seq = since;
  }

  /** The first subscription: its refusal is the caller's. */
  open(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#subscribe((error) => {
        if (error === undefined) resolve();
        else {
          this.#over = true;
          reject(error);
        }
      });
    });
  }

  close(): void {
    if (this.#over) return;
    this.#over = true;
    const id = this.#id;
    this.#feeds.remove(this, id);
    if (id !== undefined) {
      this.#feeds.link.send('events-unsubscribe', { subscription: id }, 'fail', () => undefined);
    }
  }

  /** The connection broke: the subscription is gone with it. */
  lost(): void {
    if (this.#id !== undefined) this.#feeds.byId.delete(this.#id);
    this.#id = undefined;
  }

  again(): void {
    if (this.#over) return;
    this.#subscribe((error) => {
      if (error === undefined || this.#over) return;
      this.fail(error);
    });
  }

  fail(error: ImgdError): void {
    if (this.#over) return;
    this.#over = true;
    this.#feeds.remove(this, this.#id);
    this.#target.ended(error);
  }

  take(params: EventParams): void {
    if (this.#over) return;
    const { subscription: _, ...event } = params;
    if (event.event === 'SUBSCRIPTION_ENDED') {
      // Too slow for the daemon's patience, not for its memory: what was dropped may still be had.
      this.lost();
      this.again();
      return;
    }
    this.seq = event.seq;
    this.#target.event(event as ImgdEvent);
  }

  #subscribe(done: (error: ImgdError | undefined) => void): void {
    const { seq: since } = this;
    const params = { filter: this.#filter, ...(since === undefined ? {} : { since }) };
    // Lost before its answer: `again` makes it anew, but the first one has nobody who would.
    const first = this.#instance === undefined;
    this.#feeds.link.send('events-subscribe', params, first ? 'resend' : 'fail', (error, result) => {
      if (error === undefined) this.#subscribed(result as Subscribed, since, done);
      else if (error.kind === 'connection-lost' && !first && this.#feeds.link.state !== 'closed') return;
      else if (error.kind === 'events-too-old' && !first) {
        this.#gap ??= { reason: 'too-old', after: since ?? 0 };
        const oldest = error.data?.oldest;
        this.seq = typeof oldest === 'number' ? oldest - 1 : undefined;
        if (!this.#over) this.#subscribe(done);
      } else done(error);
    });
  }

  #subscribed(answer: Subscribed, since: number | undefined, done: (error: undefined) => void): void {
    const { subscription, seq, instance = '' } = answer;
    if (this.#over) {
      this.#feeds.link.send('events-unsubscribe', { subscription }, 'fail', () => undefined);
      return;
    }
    this.#id = subscription;
    this.#feeds.keep(this);
    this.#feeds.byId.set(subscription, this);
    const restarted = this.#instance !== undefined && this.#instance !== instance;
    this.#instance = instance;
    if (since === undefined || seq < since) this.seq = seq;
    const gap: EventGap | undefined = restarted ? { reason: 'restarted', after: since ?? 0 } : this.#gap;
    this.#gap = undefined;
    if (gap !== undefined) {
      const oldest = gap.reason === 'too-old' && since !== undefined ? { oldest: since + 1 } : {};
      this.#target.gap({ ...gap, ...oldest });
    }
    done(undefined);
  }
}

/** All subscriptions of a client. */
export class Feeds {
  readonly link: Link;
  readonly byId = new Map<string, Feed>();
  readonly #all = new Set<Feed>();

  constructor(link: Link) {
    this.link = link;
    link.onEvent = (params) => this.byId.get(params.subscription)?.take(params);
    link.onLost = () => {
      for (const feed of this.#all) feed.lost();
    };
    link.onConnected = () => {
      for (const feed of this.#all) feed.again();
    };
    link.onClosed = (error) => {
      for (const feed of [...this.#all]) feed.fail(error);
    };
  }

  async open(filter: EventFilter, target: FeedTarget, since?: number): Promise<Feed> {
    const feed = new Feed(this, filter, target, since);
    await feed.open();
    return feed;
  }

  keep(feed: Feed): void {
    this.#all.add(feed);
  }

  remove(feed: Feed, id: string | undefined): void {
    this.#all.delete(feed);
    if (id !== undefined) this.byId.delete(id);
  }
}

export interface SubscribeOptions<N extends SubscribableEvent = SubscribableEvent> {
  /** Only events of this job; it need not exist yet. */
  readonly job?: string;
  /** Only these events. */
  readonly events?: readonly N[];
  /** Begin with the events after this number. Older than the daemon remembers: refused, as `events-too-old`. */
  readonly since?: number;
  /**
   * Told where events are missing; what follows is delivered all the same. Without it, iteration throws `events-lost` there.
   */
  readonly onGap?: (gap: EventGap) => void;
  /** Events that may wait to be read; of a job's progress only the newest waits. Default 10,000. */
  readonly buffer?: number;
  /** Ends the subscription. */
  readonly signal?: AbortSignal;
}

/** Events, in order, for `for await`. Leaving the loop ends the subscription. One reader. */
export class EventStream<N extends SubscribableEvent = SubscribableEvent>
  implements AsyncIterable<ImgdEvent<N>>, FeedTarget
{
  readonly #options: SubscribeOptions<N>;
  readonly #limit: number;
  #queue: ImgdEvent[] = [];
  #wake: (() => void) | undefined;
  #failure: ImgdError | undefined;
  #closed = false;
  #feed: Feed | undefined;
  readonly #abort = (): void => this.close();

  constructor(options: SubscribeOptions<N>) {
    this.#options = options;
    this.#limit = options.buffer ?? 10_000;
  }

  /** For the client. */
  async open(feeds: Feeds): Promise<void> {
    const { job, events, since, signal } = this.#options;
    signal?.throwIfAborted();
    const filter = {
      ...(job === undefined ? {} : { job }),
      ...(events === undefined ? {} : { events: [...events] }),
    };
    this.#feed = await feeds.open(filter, this, since);
    if (this.#closed) this.#feed.close();
    if (signal?.aborted) this.close();
    else signal?.addEventListener('abort', this.#abort, { once: true });
  }

  /** Number of the newest event that has come: `since` for a program that goes on later. */
  get seq(): number {
    return this.#feed?.seq ?? this.#options.since ?? 0;
  }

  close(): void {
    this.#closed = true;
    this.#queue = [];
    this.#options.signal?.removeEventListener('abort', this.#abort);
    this.#feed?.close();
    this.#wake?.();
  }

  event(event: ImgdEvent): void {
    if (this.#closed || this.#failure !== undefined) return;
    if (event.event === 'JOB_PROGRESS') {
      const { id } = event.data;
      const older = this.#queue.findIndex((each) => each.event === 'JOB_PROGRESS' && each.data.id === id);
      if (older >= 0) this.#queue.splice(older, 1);
    }
    if (this.#queue.length >= this.#limit) {
      const after = this.#queue[0]!.seq - 1;
      this.#queue = [];
      this.gap({ reason: 'overflow', after });
    }
    if (this.#failure === undefined) this.#queue.push(event);
    this.#wake?.();
  }

  gap(gap: EventGap): void {
    const { onGap } = this.#options;
    if (onGap !== undefined) {
      onGap(gap);
      return;
    }
    const why = {
      'too-old': 'the daemon does not remember them any more',
      restarted: 'the daemon was started anew',
      overflow: 'they were not read in time',
    }[gap.reason];
    this.ended(new ImgdError('events-lost', `events after ${gap.after} were missed: ${why}`, { gap }));
    this.#feed?.close();
  }

  ended(error: ImgdError): void {
    this.#failure ??= error;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ImgdEvent<N>, void, undefined> {
    try {
      while (!this.#closed) {
        const next = this.#queue.shift();
        if (next !== undefined) yield next as ImgdEvent<N>;
        else if (this.#failure !== undefined) throw this.#failure;
        else {
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
          this.#wake = undefined;
        }
      }
    } finally {
      this.close();
    }
  }
}
