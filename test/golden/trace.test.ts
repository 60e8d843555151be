/** `-T`: what both programs say of a bad one, of events that are not there and of files that cannot be used. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop } from '../support/reference.js';
import { golden, ours, theirs, words } from './harness.js';

describeInterop('-T in both programs', () => {
  const { folder, same, differs } = golden();
  writeFileSync(
    join(folder, 'events'),
    '# comment\nnosuch\n\nno such\r\n -x\nfoo #x\nenable=x\nno*\n-nosuch\n-no*\n',
  );
  writeFileSync(join(folder, 'help'), 'help\n');

  for (const options of [
    'nosuch',
    '-nosuch',
    "'-no*'",
    "'nosuch*'",
    "'no?uch'",
    'enable=',
    "''",
    ',',
    'a,',
    'a,,b',
    'help=on',
    'help,nosuch',
    'help,help',
    'nosuch,?',
    'a,b',
    'a,nob',
    'a,noenable',
    'a=b',
    '=a',
    ',a',
    'x=y,id=1',
    'id=x',
    'events=/nonexistent',
    'x,events=/nonexistent',
    'events=.',
    'events=events',
    'a,events',
    'file=/nonexistent/x',
    'file=.',
    'file=',
    'file=a%s',
    'file=a%db%d',
    'file=a%%d',
    'nosuch -T a=b',
    'nosuch --bogus',
  ]) {
    same(`-T ${options} info`);
  }
  // Nothing is opened before there is a command.
  same('-T file=/nonexistent/x');
  same('-T nosuch,events=events');
  same('-T file=/nonexistent/x nosuch');
  same('--tr nosuch info nofile');
  same('--trace=nosuch foo');

  writeFileSync(join(folder, 'unended'), 'nosuch');
  differs('-T events=unended info', 'the reference drops the last character of a line that has no end');

  it.each(['-T help', '-T nosuch -T ? info', '-T enable=help,file=/nonexistent/x', '-T events=help info'])(
    '%s lists events',
    (line) => {
      const [mine, reference] = [ours(words(line), folder), theirs(words(line), folder)];
      expect({ ...mine, stdout: '' }).toEqual({ ...reference, stdout: '' });
      // One name a line, among them these of both.
      for (const { stdout } of [mine, reference]) {
        expect(stdout).toMatch(/^(\w+\n)+$/);
        for (const name of ['bdrv_open_common', 'bdrv_co_preadv_part', 'qcow2_cache_entry_flush']) {
          expect(stdout.split('\n')).toContain(name);
        }
      }
    },
  );

  it('events that both have, have lines of the same form', () => {
    theirs(['create', '-q', '-f', 'qcow2', 'a.qcow2', '4M'], folder);
    theirs(['bench', '-w', '-c', '1', '-s', '1M', '-f', 'qcow2', 'a.qcow2'], folder);
    const line = '-T bdrv_open_common -T bdrv_co_p*_part convert -O qcow2 a.qcow2';
    const forms = ({ stderr }: { stderr: string }) => {
      const general = stderr
        .replace(/0x[0-9a-f]+/g, '0x')
        .replace(/\b\d+\b/g, '0')
        .replace(/[bc]\.qcow2/g, 'target');
      return [...new Set(general.split('\n'))].sort();
    };
    const mine = forms(ours([...words(line), 'b.qcow2'], folder));
    expect(mine).toEqual(forms(theirs([...words(line), 'c.qcow2'], folder)));
    expect(mine.length).toBe(7);
  });
});
