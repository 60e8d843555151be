/** Subscriptions. Nothing is sent unasked to a connection that has none. */
import * as v from 'valibot';
import { command } from '../command.js';
import { subscribableEvents } from '../events.js';

export const EventFilter = v.strictObject({
  /** Only events of this job; it need not exist yet. */
  job: v.optional(v.string()),
  /** Only these events. */
  events: v.optional(v.pipe(v.array(v.picklist(subscribableEvents)), v.minLength(1))),
});
export type EventFilter = v.InferOutput<typeof EventFilter>;

export const eventsSubscribe = command({
  name: 'events-subscribe',
  doc: 'Starts sending events to this connection, as notifications `event`. With `since`, events with greater numbers that the daemon remembers come first (never progress, of which only the newest counts); numbers older than it remembers are refused.',
  params: v.strictObject({
    filter: v.optional(EventFilter),
    since: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0))),
  }),
  result: v.strictObject({
    subscription: v.string(),
    /** Number of the newest event so far. */
    seq: v.number(),
    /** Another one for each start of the daemon: events are numbered from 1 again then. */
    instance: v.string(),
  }),
  errors: ['too-many-subscriptions', 'events-too-old'],
  job: false,
});

export const eventsUnsubscribe = command({
  name: 'events-unsubscribe',
  doc: 'Ends a subscription of this connection; none of its notifications follow the answer.',
  params: v.strictObject({ subscription: v.string() }),
  result: v.strictObject({}),
  errors: ['subscription-not-found'],
  job: false,
});
