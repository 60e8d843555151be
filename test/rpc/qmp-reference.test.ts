/** The QMP dialect beside the reference's own: the same bytes to both, the same lines back. */
import { describe, it } from 'vitest';
import { reference, tempDir } from '../support/reference.js';
import { besideReference, normal, type Work } from './support/qmp.js';

const folder = tempDir();

const both = (name: string, work: Work) => besideReference(folder, name, work);

const before = [
  `{"execute":"query-version"}`,
  `{"execute":"nope","id":3}`,
  `{"foo":1}`,
  `{"exec-oob":"qmp_capabilities"}`,
  `{"execute":"qmp_capabilities","foo":1}`,
  `{"execute":"qmp_capabilities","arguments":{"enabl":["oob"]}}`,
  `{"execute":"qmp_capabilities","arguments":{"enable":"oob"}}`,
  `[}`,
];

const after = [
  `{"execute":"qmp_capabilities","id":2}`,
  `{"execute":"query-version","id":{"x":1.50}}`,
  `{"execute":"query-version","id":[null,true,18446744073709551615,-5,"\\u00e9\\ud83d\\ude00/"]}`,
  `{"execute":"nope","id":null}`,
  `{'execute':'query-jobs','id':'a\\'b"c/é'}{"execute":"query-block-jobs"}`,
  `[1]`,
  `"str" 12 true `,
  `{}`,
  `{"execute":1}`,
  `{"execute":"query-jobs","foo":1,"id":7}`,
  `{"execute":"query-jobs","control":{"run-oob":true},"id":7}`,
  `{"execute":"query-jobs","arguments":[]}`,
  `{"execute":"query-jobs","arguments":{"x":1}}`,
  `{"exec-oob":"query-jobs","id":1}`,
  `{"exec-oob":"query-jobs","execute":"query-jobs","id":1}`,
  `{"exec-oob":"nope","id":1}`,
  `{"exec-oob":"qmp_capabilities","id":1}`,
  `{"execute":"job-cancel"}`,
  `{"execute":"job-cancel","arguments":{"id":1}}`,
  `{"execute":"job-cancel","arguments":{"id":"x"}}`,
  `{"execute":"job-finalize","arguments":{"id":"x"}}`,
  `{"execute":"block-job-cancel","arguments":{"device":"x"}}`,
  `{"execute":"block-job-cancel","arguments":{"device":"x","force":"a"}}`,
  `{"execute":"block-job-dismiss","arguments":{"id":"x"}}`,
  `{"execute":"block-job-set-speed","arguments":{"device":"x","speed":1}}`,
  `{"execute":"block-job-set-speed","arguments":{"device":"x","speed":"a"}}`,
  `{"execute":"block-job-set-speed","arguments":{"device":"x","speed":1.5}}`,
  `{"execute":"blockdev-del","arguments":{"node-name":"x"}}`,
  `{"execute":"blockdev-add","arguments":{"driver":"foo","node-name":"x"}}`,
  `{"execute":"blockdev-add","arguments":{"driver":"raw","node-name":"x"}}`,
  `{"execute":"blockdev-add","arguments":{"driver":"file","node-name":"x","filename":"/nonexist","zip":1}}`,
  `{"execute":"blockdev-add","arguments":{"driver":"file","node-name":"x","filename":"/nonexist"}}`,
  `{"execute":"blockdev-reopen","arguments":{"options":[{"driver":"qcow2","node-name":"nn","file":"p"}]}}`,
  `{"execute":"object-del","arguments":{"id":"x"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"x"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","zz":1}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","data":"a","format":"hex"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","data":"!!","format":"base64"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","file":"/nonexist"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","file":"/nonexist","data":"x"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","data":"abc"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"x","data":"abc"}}`,
  `{"execute":"object-del","arguments":{"id":"x"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"secret","id":"1x","data":"abc"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"nope","id":"y"}}`,
  `{"execute":"object-add","arguments":{"qom-type":"throttle-group","id":"t","limits":{"bps-total":1,"zz":1}}}`,
  `{"execute":"object-add","arguments":{"qom-type":"throttle-group","id":"t","limits":{"bps-total":"x"}}}`,
  `{"execute":"object-add","arguments":{"qom-type":"throttle-group","id":"t","limits":{"bps-total":1000}}}`,
  `{"execute":"qom-list-types","arguments":{"implements":"secret"}}`,
  `{"execute":"query-named-block-nodes","arguments":{"flat":1}}`,
  `{"execute":"block-dirty-bitmap-add","arguments":{"node":"x","name":"b"}}`,
  `{"execute":"block-dirty-bitmap-remove","arguments":{"node":"x","name":"b"}}`,
  `{"execute":"transaction","arguments":{"actions":[]}}`,
  `{"execute":"transaction","arguments":{"actions":{}}}`,
  `{"execute":"transaction","arguments":{"actions":[1]}}`,
  `{"execute":"transaction","arguments":{"actions":[{"data":{}}]}}`,
  `{"execute":"transaction","arguments":{"actions":[{"type":"nope","data":{}}]}}`,
  `{"execute":"transaction","arguments":{"actions":[{"type":"abort"}]}}`,
  `{"execute":"transaction","arguments":{"actions":[{"type":"abort","data":{"x":1}}]}}`,
  `{"execute":"transaction","arguments":{"actions":[{"type":"abort","data":{}}]}}`,
  `{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-add","data":{"node":"x"}}]}}`,
  `{"execute":"transaction","arguments":{"actions":[],"properties":{"completion-mode":"x"}}}`,
  `{"execute":"transaction","arguments":{"actions":[],"properties":{"completion-mode":"grouped"}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":1}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":1}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"raw"}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"file","size":1048576}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"filename":"x","size":1048576}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"1j","options":{"driver":"file","filename":"x","size":1}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"file","filename":"x","size":"1M"}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"file","filename":"x","size":1,"z":2}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"qcow2","size":1048576}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"qcow2","file":1,"size":512}}}`,
  `{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"qcow2","file":"n","size":1,"version":"v4"}}}`,
  `{"execute": tru}\n{"execute":"query-jobs","id":"after"}`,
  `{"execute":"query-jobs","id":"\\ud800"}`,
  `{"execute":"query-jobs","id":-5,"id":6}`,
  `{"execute":"query-jobs" "id":1}`,
  `{"execute":"query-jobs",}`,
  `{"execute":"query-jobs","id":"a\tb"}`,
  `{"execute":"query-jobs","id":01}`,
  `{"a": 01, "b": 2}`,
  `{"a":"\\u12"}`,
  `}`,
  `[[[[1]]]] {"execute":"query-version","id":"e"}`,
];

const describeStorageDaemon = reference.qemuStorageDaemon === undefined ? describe.skip : describe;
if (reference.qemuStorageDaemon === undefined) {
  process.stderr.write('\nSKIPPED (no qemu-storage-daemon in PATH): QMP beside the reference\n');
}

describeStorageDaemon('QMP, with the same bytes to the reference', () => {
  it('greets, negotiates, refuses and answers alike', () =>
    both('table', async (peer) => {
      await peer.until((reply) => 'QMP' in reply);
      const seen: [string, string[]][] = [['greeting', peer.lines.map(normal)]];
      for (const text of before) seen.push([text, (await peer.exchange(text)).map(normal)]);
      seen.push([
        '',
        (await peer.exchange(`{"execute":"qmp_capabilities","arguments":{"enable":["oob"]},"id":[1]}`)).map(
          normal,
        ),
      ]);
      for (const text of after) seen.push([text, (await peer.exchange(text)).map(normal)]);
      return seen;
    }));

  it('creates, adds, marks and deletes with the same events in the same order', () =>
    both('life', async (peer, at) => {
      const seen: string[] = [];
      const file = at('disk.qcow2');
      const say = async (command: string, given: object, until?: [string, string]) => {
        const from = peer.lines.length;
        const sent = peer.call(command, given);
        await sent;
        if (until !== undefined) {
          await peer.until(
            ({ event, data }) =>
              event === 'JOB_STATUS_CHANGE' && data.id === until[0] && data.status === until[1],
            from,
          );
        }
        const lines = peer.lines.slice(from).map((line) => normal(line).replaceAll(file, 'FILE'));
        // How soon a job ends after it has begun is its own affair.
        const replies = lines.filter((line) => !line.includes('"event"'));
        seen.push(command, ...replies, ...lines.filter((line) => line.includes('"event"')));
      };
      await say('qmp_capabilities', {});
      await say('blockdev-create', { 'job-id': 'f', options: { driver: 'file', filename: file, size: 0 } }, [
        'f',
        'concluded',
      ]);
      await say('query-jobs', {});
      await say('job-pause', { id: 'f' });
      await say('blockdev-create', { 'job-id': 'f', options: { driver: 'file', filename: file, size: 0 } });
      await say('job-dismiss', { id: 'f' });
      await say('blockdev-add', { driver: 'file', filename: file, 'node-name': 'prot' });
      await say(
        'blockdev-create',
        { 'job-id': 'q', options: { driver: 'qcow2', file: 'prot', size: 1048576 } },
        ['q', 'concluded'],
      );
      await say('job-dismiss', { id: 'q' });
      await say('blockdev-add', { driver: 'qcow2', file: 'prot', 'node-name': 'fmt' });
      await say('blockdev-del', { 'node-name': 'prot' });
      await say('block-dirty-bitmap-add', { node: 'prot', name: 'b', persistent: true });
      await say('block-dirty-bitmap-add', { node: 'fmt', name: 'b', granularity: 100 });
      await say('block-dirty-bitmap-add', { node: 'fmt', name: '' });
      await say('block-dirty-bitmap-add', { node: 'fmt', name: 'b', persistent: true });
      await say('block-dirty-bitmap-add', { node: 'fmt', name: 'b', persistent: true });
      await say('block-dirty-bitmap-disable', { node: 'fmt', name: 'b' });
      await say('block-dirty-bitmap-enable', { node: 'fmt', name: 'b' });
      await say('block-dirty-bitmap-clear', { node: 'fmt', name: 'c' });
      await say('block-dirty-bitmap-merge', {
        node: 'fmt',
        target: 'b',
        bitmaps: ['c', { node: 'fmt', name: 'b' }],
      });
      await say('block-dirty-bitmap-merge', { node: 'fmt', target: 'c', bitmaps: ['b'] });
      await say('block-dirty-bitmap-remove', { node: 'fmt', name: 'b' });
      await say('blockdev-del', { 'node-name': 'fmt' });
      await say('blockdev-del', { 'node-name': 'prot' });
      await say(
        'blockdev-create',
        { 'job-id': 'x', options: { driver: 'file', filename: '/nonexist/x', size: 0 } },
        ['x', 'concluded'],
      );
      await say('query-jobs', {});
      return seen;
    }));
});
