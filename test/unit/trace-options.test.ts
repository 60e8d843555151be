/** `-T`: what patterns mean, how the option is read, and where its lines go. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Exit, Shown } from '../../clients/qemu-img/errors.js';
import { createTrace, parseTrace } from '../../clients/qemu-img/trace.js';
import { applyPattern, type TraceEvent, traceEventNames } from '../../src/protocol/trace.js';
import { tempDir } from '../support/reference.js';

const folder = tempDir();

/** What the patterns enable, one after another. */
function enabled(...patterns: string[]): TraceEvent[] {
  const events = new Set<TraceEvent>();
  for (const pattern of patterns) applyPattern(events, pattern);
  return [...events];
}

describe('patterns', () => {
  it('are names, or have stars and question marks anywhere', () => {
    expect(enabled('bdrv_close')).toEqual(['bdrv_close']);
    expect(enabled('*')).toEqual(traceEventNames);
    expect(enabled('bdrv_co_p*_part')).toEqual(['bdrv_co_preadv_part', 'bdrv_co_pwritev_part']);
    expect(enabled('*o*_*fl*sh*')).toEqual(['bdrv_co_flush', 'qcow2_cache_entry_flush']);
    expect(enabled('bdrv_clos?')).toEqual(['bdrv_close']);
    for (const none of ['', 'bdrv', 'close', 'BDRV_*', 'bdrv_close?', '[b]drv_close', '.*', 'bdrv_close ']) {
      expect(enabled(none), none).toEqual([]);
    }
  });

  it('disable with a minus in front, in order', () => {
    expect(enabled('bdrv_c*', '-bdrv_co_*')).toEqual(['bdrv_close']);
    expect(enabled('-bdrv_close', 'bdrv_close')).toEqual(['bdrv_close']);
  });

  it('without a star have to mean an event', () => {
    const unknown = (pattern: string) => applyPattern(new Set(), pattern);
    expect(unknown('nosuch')).toBe('nosuch');
    expect(unknown('-nosuch')).toBe('nosuch');
    expect(unknown('x?')).toBe('x?');
    expect(unknown('nosuch*')).toBeUndefined();
    expect(unknown('job_phase')).toBeUndefined();
  });

  it('take no time to speak of, whatever they are', () => {
    const start = performance.now();
    applyPattern(new Set(), `${'*_'.repeat(100)}!`);
    applyPattern(new Set(), `${'*?'.repeat(120)}!`);
    expect(performance.now() - start).toBeLessThan(500);
  });
});

/** Reads options as a command line has them, and tells what was said. */
function reads(...options: string[]) {
  let said = '';
  const trace = createTrace((_, text) => {
    said += text;
  });
  let error: unknown;
  try {
    for (const text of options) trace.add(text);
    trace.begin();
  } catch (thrown) {
    error = thrown;
  }
  return { trace, error, said: () => said };
}

describe('the option', () => {
  it('has a pattern, an events file and a file, the last of each', () => {
    const parsed = (text: string) => parseTrace(text, () => {});
    expect(parsed('bdrv_*')).toEqual({ enable: 'bdrv_*' });
    expect(parsed('bdrv_*,file=a,events=b,enable=c,file=d')).toEqual({ enable: 'c', events: 'b', file: 'd' });
    expect(parsed('file=a,,b=c')).toEqual({ file: 'a,b=c' });
    expect(parsed('')).toEqual({});
    expect(() => parsed('a,b')).toThrow("Invalid parameter 'b'");
    expect(() => parsed('enabled=b')).toThrow("Invalid parameter 'enabled'");
  });

  it('adds up, the events file after the pattern', () => {
    const events = join(folder, 'events');
    writeFileSync(events, '# all but one\nbdrv_*\n\n-bdrv_co_*\nnosuch\n');
    const { trace, error, said } = reads('job_phase', `-bdrv_close,events=${events}`);
    expect(error).toBeUndefined();
    expect(trace.events).toEqual(['job_phase', 'bdrv_open_common', 'bdrv_close']);
    expect(said()).toBe(`qemu-img:${events}:5: warning: trace event 'nosuch' does not exist\n`);
  });

  it('lists the events, also from an events file', async () => {
    const events = join(folder, 'help');
    writeFileSync(events, 'help\n');
    for (const text of ['help', 'enable=?', `events=${events}`]) {
      const { error } = reads(text);
      expect(error).toBeInstanceOf(Shown);
      expect(await (error as Shown).print()).toBe(traceEventNames.map((name) => `${name}\n`).join(''));
    }
  });

  it('writes to the last file that was asked for, which begins anew', () => {
    const file = join(folder, 'log');
    writeFileSync(file, 'old');
    const { trace, said } = reads('file=/nonexistent/x', `bdrv_close,file=${file}`);
    trace.write('a\n');
    trace.write('b\n');
    expect(readFileSync(file, 'utf8')).toBe('a\nb\n');
    expect(said()).toBe('');
    const stderr = reads(`file=${file}`, 'bdrv_close');
    stderr.trace.write('c\n');
    expect(stderr.said()).toBe('c\n');
    reads(`file=${join(folder, 'of-%d')}`).trace.write('d\n');
    expect(readFileSync(join(folder, `of-${process.pid}`), 'utf8')).toBe('d\n');
  });

  it('names what is wrong with a file', () => {
    const failure = (text: string) => {
      const { error } = reads(text);
      expect(error).toBeInstanceOf(Exit);
      const { program, text: said } = error as Exit;
      return `${program}: ${said}`;
    };
    expect(failure('events=/nonexistent')).toBe('qemu-img:/nonexistent: No such file or directory');
    expect(failure('file=a%s')).toBe('qemu-img: Bad logfile template: a%s');
    mkdirSync(join(folder, 'dir'), { recursive: true });
    expect(failure(`file=${folder}/dir`)).toBe(
      `qemu-img: Error opening logfile ${folder}/dir: Is a directory`,
    );
  });

  it('goes on without the file where that is full', () => {
    const { trace, said } = reads('file=/dev/full');
    trace.write('a\n');
    trace.write('b\n');
    expect(said()).toBe('qemu-img: warning: Error writing logfile /dev/full: No space left on device\n');
  });
});
