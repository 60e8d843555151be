/** Requests that a client sends over one HTTP connection without waiting for the answers. */
import { connect } from 'node:net';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { tempDir } from '../support/reference.js';
import { fake, Peer, startDaemon } from './support/daemon.js';

const folder = tempDir();

it('are given up with the connection, those too whose answers queue behind another', async () => {
  const path = join(folder, 'p.sock');
  await startDaemon(path);
  const watcher = await Peer.connect(path);
  await watcher.call('events-subscribe', { filter: { events: ['JOB_STATUS_CHANGE'] } });
  const connections = async (): Promise<number> => (await watcher.call('query-status')).result.connections;
  const post = (method: string, params: object): string => {
    const body = JSON.stringify({ jsonrpc: '2.0', id: 1, method, params });
    return `POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  };
  const socket = connect(path);
  socket.write(post('image-check', fake('deaf', { id: 'slow' })) + post('ping', {}).repeat(20));
  await watcher.status('slow', 'running');
  while ((await connections()) < 22);
  socket.destroy();
  while ((await connections()) > 1);
  expect(await connections()).toBe(1);
});
