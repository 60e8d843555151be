/**
 * Tells of all jobs of a daemon, those that run already and those that come, until interrupted: `node watch.js [SOCKET]`. Goes on,
 * with what was missed, when the daemon was away.
 */
import { connect } from '../index.js';

const [socket] = process.argv.slice(2);
const client = await connect({
  ...(socket === undefined ? {} : { socket }),
  onState: (state, error) => {
    if (state === 'reconnecting') console.log(`waiting for the daemon: ${error?.message}`);
  },
});
const interrupted = new AbortController();
process.once('SIGINT', () => interrupted.abort());
process.once('SIGTERM', () => interrupted.abort());

// First the events, then the state: nothing falls between the two.
const events = await client.subscribe({
  events: ['JOB_STATUS_CHANGE', 'JOB_PROGRESS'],
  signal: interrupted.signal,
  onGap: ({ reason, after }) => console.log(`events after ${after} were missed (${reason})`),
});
for (const { id, type, status } of await client.queryJobs()) console.log(`${id} ${type} ${status}`);
console.log('watching');
for await (const { event, data } of events) {
  if (event === 'JOB_STATUS_CHANGE') {
    console.log(`${data.id} ${data.type} ${data.status}${data.error ? `: ${data.error.message}` : ''}`);
  } else if (event === 'JOB_PROGRESS') console.log(`${data.id} ${data.percent.toFixed(1)} %`);
}
client.close();
