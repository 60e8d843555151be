import { describe, expect, it } from 'vitest';
import { formatOptions, parseOptionList } from '../../clients/qemu-img/common-options.js';
import { imageText } from '../../clients/qemu-img/info-text.js';
import { orderedEntries, prettyJson, quote } from '../../clients/qemu-img/json.js';
import { parseNumber } from '../../clients/qemu-img/numbers.js';
import { parseObject } from '../../clients/qemu-img/objects.js';
import { hexColumn, sizeText } from '../../clients/qemu-img/text.js';

const failing = (action: () => unknown) => {
  try {
    action();
  } catch (error) {
    return (error as Error).message;
  }
  return undefined;
};

describe('numbers', () => {
  it('takes what the reference takes', () => {
    const values: [string, number][] = [
      ['0', 0],
      ['1.5k', 1536],
      ['.5k', 512],
      ['1.k', 1024],
      [' 1', 1],
      ['+1', 1],
      ['0x1b', 27],
      ['1B', 1],
      ['010', 10],
      ['4E', Number.POSITIVE_INFINITY],
    ];
    for (const [text, value] of values) expect(parseNumber('size', text), text).toBe(value);
  });

  it('tells bad text from numbers out of range', () => {
    for (const text of [
      '',
      'x',
      '1x',
      '1.5',
      '1e3',
      '1 ',
      '0x',
      '0x10k',
      '1kk',
      'inf',
      '-1k',
      '-1.5',
      '-0x10',
      '--1',
    ]) {
      expect(failing(() => parseNumber('size', text))).toBe(`Invalid size specified: '${text}'.`);
    }
    for (const text of ['-1', '-0', '8E', '16E', '99999999999999999999']) {
      const message = 'Invalid size specified. Must be between 0 and 9223372036854775807.';
      expect(failing(() => parseNumber('size', text))).toBe(message);
    }
    expect(failing(() => parseNumber('n', '17', 1, 16))).toBe(
      'Invalid n specified. Must be between 1 and 16.',
    );
  });

  it('prints sizes with three digits', () => {
    const texts: [number, string][] = [
      [0, '0 B'],
      [512, '512 B'],
      [1000, '0.977 KiB'],
      [200704, '196 KiB'],
      [197120, '192 KiB'],
      [197632, '193 KiB'],
      [524800, '512 KiB'],
      [2359296, '2.25 MiB'],
      [67108864, '64 MiB'],
      [1572864000, '1.46 GiB'],
      [999 * 1024, '999 KiB'],
      [1023 * 1024, '0.999 MiB'],
      [1023693, '1e+03 KiB'],
      [2 ** 53, '8 PiB'],
    ];
    for (const [bytes, text] of texts) expect(sizeText(bytes)).toBe(text);
    expect(hexColumn(0)).toBe('0               ');
    expect(hexColumn(0x20000)).toBe('0x20000         ');
  });
});

describe('JSON', () => {
  it('has members in the reference’s order, whatever order they come in', () => {
    const names = [
      'children',
      'backing-filename-format',
      'snapshots',
      'virtual-size',
      'filename',
      'cluster-size',
      'format',
      'actual-size',
      'format-specific',
      'full-backing-filename',
      'encrypted',
      'backing-filename',
      'dirty-flag',
    ];
    const given = Object.fromEntries([...names].sort().map((name) => [name, 1]));
    expect(orderedEntries(given).map(([name]) => name)).toEqual(names);
  });

  it('escapes everything outside ASCII', () => {
    expect(quote('a"\\\n\u00e9\u0001/😀\u007f')).toBe('"a\\"\\\\\\n\\u00E9\\u0001/\\uD83D\\uDE00\\u007F"');
  });

  it('indents by four, empty lists and objects too', () => {
    expect(prettyJson({ id: [], name: {} })).toBe('{\n    "name": {\n    },\n    "id": [\n    ]\n}');
    expect(prettyJson([{ id: 1 }, true])).toBe('[\n    {\n        "id": 1\n    },\n    true\n]');
  });
});

describe('option strings', () => {
  it('refuses lists that begin or end with a comma', () => {
    for (const text of ['', ',a', 'a,', ',,a=1', 'a,,,', ',,']) {
      expect(failing(() => parseOptionList(text))).toBe(`Invalid option list: ${text}`);
    }
    expect(parseOptionList('a=1,,')).toBe('a=1,,');
  });

  it('adds up, the last value winning, and finds help anywhere', () => {
    expect(formatOptions(['a=1,b', 'a=2', 'nocow=on', 'nolazy'])).toEqual({
      a: '2',
      b: 'on',
      nocow: 'on',
      lazy: 'off',
    });
    for (const list of [['help'], ['?'], ['a=1,help'], ['help,a'], ['a', '?']]) {
      expect(formatOptions(list)).toBe('help');
    }
    for (const list of [['help=on'], ['a=help'], ['a=1,,help']]) expect(formatOptions(list)).not.toBe('help');
  });

  it('parses objects with the reference’s errors', () => {
    expect(parseObject('secret,id=a,data=x,,y', 1)).toEqual({ 'qom-type': 'secret', id: 'a', data: 'x,y' });
    expect(parseObject('id=a,qom-type=secret,data=', 1)).toEqual({ 'qom-type': 'secret', id: 'a', data: '' });
    const errors: [string, string][] = [
      ['', "Parameter 'qom-type' is missing"],
      ['id=1', "Parameter 'qom-type' is missing"],
      ['foo', "Parameter 'qom-type' does not accept value 'foo'"],
      ['secret', "Parameter 'id' is missing"],
      ['secret,id=x', "Either 'file' or 'data' must be provided"],
      ['secret,id=x,data=a,file=b', "'file' and 'data' are mutually exclusive"],
      ['secret,id=x,bogus=1', "Parameter 'bogus' is unexpected"],
      ['secret,id=x,data', "Expected '=' after parameter 'data'"],
      ['secret,,id=x', "Invalid parameter ''"],
    ];
    for (const [text, message] of errors)
      expect(
        failing(() => parseObject(text, 1)),
        text,
      ).toBe(message);
  });
});

describe('info for people', () => {
  it('shows nested fields, snapshots, backing files and children', () => {
    const text = imageText({
      filename: 'a',
      format: 'qcow2',
      'virtual-size': 1048576,
      encrypted: true,
      'cluster-size': 65536,
      'dirty-flag': true,
      'backing-filename': 'b',
      'full-backing-filename': './b',
      snapshots: [
        {
          id: '1',
          name: 't',
          'vm-state-size': 0,
          'date-sec': 0,
          'vm-clock-sec': 109830,
          'vm-clock-nsec': 123456789,
        },
      ],
      'format-specific': {
        type: 'qcow2',
        data: { 'lazy-refcounts': false, bitmaps: [{ name: 'x', flags: ['auto'] }] },
      },
      children: [
        { name: 'file', info: { filename: 'a', format: 'file', 'virtual-size': 512, 'actual-size': 4096 } },
      ],
    });
    expect(text.replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/, 'DATE')).toBe(`image: a
file format: qcow2
virtual size: 1 MiB (1048576 bytes)
disk size: unavailable
encrypted: yes
cluster_size: 65536
cleanly shut down: no
backing file: b (actual path: ./b)
Snapshot list:
ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT
1       t                     0 B DATE  0030:30:30.123         --
Format specific information:
    lazy refcounts: false
    bitmaps:
        [0]:
            flags:
                [0]: auto
            name: x
Child node '/file':
    filename: a
    protocol type: file
    file length: 512 B (512 bytes)
    disk size: 4 KiB
`);
  });
});
