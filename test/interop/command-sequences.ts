/** Random command lines over a few small images, all of it from a seed. */
import { generator } from '../support/stamped.js';

export interface Step {
  readonly program: 'qemu-img' | 'qemu-io';
  readonly args: readonly string[];
}

interface Image {
  readonly format: string;
  readonly size: string;
}

const SIZES =
  '0 1 511 512 513 4096 65535 64k 65537 100000 1M 1048577 1.5M 2M 3000000 4M 6M 6M 6M 6291457 7340544 40M 200M'.split(
    ' ',
  );
const SMALL = '0 1 511 512 64k 65537 1M 1048577 2M 3000000 6M 6291457'.split(' ');
const BAD_NUMBERS = [
  ...'-1 +1 abc 1x 1e3 0x10000 0x1g 99999999999999999999 9223372036854775807 9223372036854775808'.split(' '),
  ...'18446744073709551615 16E 8E 1.5 0.5k .5M 1M1 1MB 64kk 1,5 nan inf -0 00010 0777 1b -1k 1.1k 1.9999'.split(
    ' ',
  ),
  '',
  ' 1M',
  '1M ',
];
const FORMATS = 'qcow2 qcow2 qcow2 qcow2 qcow2 raw raw'.split(' ');
const NAMES = 'a b c d e'.split(' ');
const SNAPSHOTS = 's0 s1 1 2 é'.split(' ');
const BITMAPS = 'b0 b1 b2 b3'.split(' ');

export class Sequence {
  readonly #random: () => number;
  readonly #images = new Map<string, Image>();

  constructor(seed: number) {
    this.#random = generator(seed * 104729);
  }

  steps(): Step[] {
    const steps: Step[] = [];
    for (let i = 1 + this.#below(3); i > 0; i--) steps.push(this.#img(this.#create()), ...this.#scribble(2));
    for (let i = 4 + this.#below(9); i > 0; i--) steps.push(...this.#any());
    return steps;
  }

  #chance(part: number): boolean {
    return this.#random() < part;
  }

  #below(limit: number): number {
    return Math.floor(this.#random() * limit);
  }

  #pick<T>(values: readonly T[]): T {
    return values[this.#below(values.length)]!;
  }

  #maybe(part: number, ...words: string[]): string[] {
    return this.#chance(part) ? words : [];
  }

  #img(args: readonly string[]): Step {
    return { program: 'qemu-img', args };
  }

  #size(from: readonly string[] = SIZES): string {
    return this.#chance(0.03) ? this.#pick(BAD_NUMBERS) : this.#pick(from);
  }

  /** One that exists, as a rule. */
  #name(): string {
    const known = [...this.#images.keys()];
    return known.length > 0 && this.#chance(0.96) ? this.#pick(known) : this.#pick([...NAMES, 'none']);
  }

  #qcow2(): string {
    const known = [...this.#images].filter(([, { format }]) => format === 'qcow2').map(([name]) => name);
    return known.length > 0 && this.#chance(0.95) ? this.#pick(known) : this.#name();
  }

  #format(name: string): string {
    if (this.#chance(0.02)) return this.#pick(['zz', 'vmdk', 'raw', 'qcow2', '', 'RAW']);
    return this.#images.get(name)?.format ?? 'raw';
  }

  /** `-f` and a name, or one of the other ways to name an image. */
  #source(name: string, flag = '-f'): string[] {
    const format = this.#format(name);
    const way = this.#random();
    if (way < 0.55) return [flag, format, name];
    if (way < 0.78) return [name];
    if (way < 0.82 && flag === '-f') return ['--image-opts', `driver=${format},file.filename=${name}`];
    if (way < 0.84 && flag === '-f')
      return ['--image-opts', `driver=${format},file.driver=file,file.filename=${name},read-only=on`];
    if (way < 0.88) return [`json:{"driver":"${format}","file":{"driver":"file","filename":"${name}"}}`];
    if (way < 0.91) return [`blkdebug::${name}`];
    if (way < 0.94) return [`file:${name}`];
    if (way < 0.96) return [`json:{"driver":"${format}","file.filename":"${name}","read-only":true}`];
    if (way < 0.98) return [flag, format, `json:{"file.filename":"${name}"}`];
    return [`./${name}`];
  }

  #common(): string[] {
    return [
      ...this.#maybe(0.06, '-q'),
      ...this.#maybe(0.02, '--object', 'secret,id=s0,data=x'),
      ...this.#maybe(0.005, `--${this.#pick(['nope', 'form', 'o', 'im', 'output', 'help=1'])}`),
    ];
  }

  #cache(flag: string, part = 0.05): string[] {
    const mode = this.#pick(['none', 'writeback', 'writethrough', 'unsafe', 'directsync', 'bad', '']);
    return this.#maybe(part, flag, mode);
  }

  #output(): string[] {
    if (this.#chance(0.02)) return [`--output=${this.#pick(['xml', '', 'JSON', 'hum'])}`];
    return this.#chance(0.5) ? ['--output=json'] : this.#maybe(0.1, '--output=human');
  }

  #layout(format: string): string[] {
    const options: string[] = [];
    const add = (part: number, name: string, values: readonly string[]) => {
      if (this.#chance(part)) options.push(`${name}=${this.#pick(values)}`);
    };
    add(0.15, 'preallocation', ['off', 'metadata', 'falloc', 'full', 'bad']);
    if (this.#chance(0.01))
      add(1, this.#pick(['nope', 'size', 'nocow', 'extent_size_hint']), ['on', '64k', '1M']);
    if (format !== 'qcow2') {
      if (this.#chance(0.03)) add(1, 'cluster_size', ['64k']);
      return options;
    }
    const extended = this.#chance(0.12);
    if (extended) options.push(`extended_l2=${this.#pick(['on', 'on', 'on', 'off', 'yes'])}`);
    const sizes = extended
      ? ['16k', '32k', '64k', '128k', '2M', '8k']
      : ['512', '1k', '4k', '64k', '128k', '1M', '2M'];
    if (this.#chance(0.04)) sizes.push('256', '4M', '1000', '0', '-64k', '65537', 'x', '64kB');
    add(0.4, 'cluster_size', sizes);
    add(0.15, 'refcount_bits', ['1', '2', '4', '8', '16', '32', '64', '3', '0', '128']);
    add(0.15, 'compat', ['0.10', '1.1', '0.10', 'v2', 'v3', '0.9']);
    add(0.1, 'lazy_refcounts', ['on', 'off', 'true']);
    add(0.1, 'compression_type', ['zlib', 'zstd', 'lz4']);
    if (this.#chance(0.05)) {
      options.push(`data_file=${this.#pick(['data', 'data2', ...NAMES])}`);
      add(0.5, 'data_file_raw', ['on', 'off']);
    }
    return options;
  }

  #joined(options: readonly string[]): string[] {
    if (options.length === 0) return [];
    if (options.length > 1 && this.#chance(0.1)) return options.flatMap((option) => ['-o', option]);
    return ['-o', options.join(',')];
  }

  #newName(format: string, size: string): string {
    const name = this.#pick(NAMES);
    this.#images.set(name, { format, size });
    return name;
  }

  #create(): string[] {
    const format = this.#pick(FORMATS);
    const options = this.#layout(format);
    const size = this.#size(options.some((option) => option.startsWith('prealloc')) ? SMALL : SIZES);
    const args = ['create', ...this.#common(), '-f', format];
    const known = [...this.#images.keys()];
    let sized = this.#chance(0.97);
    if (format === 'qcow2' && known.length > 0 && this.#chance(0.45)) {
      const base = this.#name();
      const byOption = this.#chance(0.15);
      if (byOption) options.push(`backing_file=${base}`);
      else args.push('-b', this.#chance(0.05) ? `json:{"driver":"file","filename":"${base}"}` : base);
      if (this.#chance(0.9)) {
        const below = this.#format(base);
        if (byOption && this.#chance(0.7)) options.push(`backing_fmt=${below}`);
        else args.push('-F', below);
      }
      args.push(...this.#maybe(0.1, '-u'));
      sized = this.#chance(0.4);
    } else args.push(...this.#maybe(0.01, '-F', 'raw'), ...this.#maybe(0.01, '-u'));
    if (this.#chance(0.01)) options.push(this.#pick(['help', '?', 'list', 'size=3M']));
    return [...args, ...this.#joined(options), this.#newName(format, size), ...(sized ? [size] : [])];
  }

  /** Writes by the reference's own program, the same into both folders. */
  #scribble(limit: number): Step[] {
    const steps: Step[] = [];
    for (let i = this.#below(limit + 1); i > 0; i--) {
      const name = this.#name();
      const commands: string[] = [];
      for (let k = 1 + this.#below(6); k > 0; k--) commands.push('-c', this.#write());
      steps.push({
        program: 'qemu-io',
        args: ['-f', this.#images.get(name)?.format ?? 'raw', ...commands, name],
      });
    }
    return steps;
  }

  #write(): string {
    const grain = this.#pick([512, 512, 4096, 65536]);
    const at = this.#below(Math.ceil(this.#pick([100_000, 1_000_000, 6_000_000]) / grain)) * grain;
    const length = grain * (1 + this.#below(Math.ceil(600_000 / grain)));
    const what = this.#random();
    if (what < 0.5) return `write -q -P ${1 + this.#below(250)} ${at} ${length}`;
    if (what < 0.6) return `write -q -P 0 ${at} ${length}`;
    if (what < 0.7) return `write -q -c -P ${this.#below(250)} ${Math.floor(at / 65536) * 65536} 65536`;
    if (what < 0.85) return `write -q -z ${this.#chance(0.5) ? '-u ' : ''}${at} ${length}`;
    return `discard -q ${at} ${length}`;
  }

  #any(): Step[] {
    const what = this.#random();
    if (what < 0.16) return [this.#img(this.#create()), ...this.#scribble(2)];
    if (what < 0.28) return this.#scribble(3);
    const makers = [
      () => this.#snapshot(),
      () => this.#snapshot(),
      () => this.#bitmap(),
      () => this.#bitmap(),
      () => this.#amend(),
      () => this.#resize(),
      () => this.#resize(),
      () => this.#rebase(),
      () => this.#rebase(),
      () => this.#commit(),
      () => this.#check(),
      () => this.#info(),
      () => this.#map(),
      () => this.#measure(),
      () => this.#convert(),
      () => this.#convert(),
      () => this.#convert(),
      () => this.#compare(),
      () => this.#dd(),
    ];
    return [this.#img(this.#pick(makers)())];
  }

  #snapshot(): string[] {
    const flag = this.#pick(['-c', '-c', '-c', '-a', '-a', '-d', '-d', '-l', undefined]);
    const name = flag === undefined || flag === '-l' ? [] : [flag, this.#pick(SNAPSHOTS)];
    if (flag === '-l') name.push(flag);
    if (this.#chance(0.02)) name.push('-d', 's0');
    return [
      'snapshot',
      ...this.#common(),
      ...name,
      ...this.#maybe(0.04, '-U'),
      ...this.#source(this.#qcow2()),
    ];
  }

  #bitmap(): string[] {
    const actions: string[] = [];
    for (let i = this.#pick([1, 1, 1, 1, 2, 3]); i > 0; i--) {
      const action = this.#pick([
        '--add',
        '--add',
        '--add',
        '--remove',
        '--clear',
        '--enable',
        '--disable',
        '--merge',
      ]);
      actions.push(action, ...(action === '--merge' ? [this.#pick(BITMAPS)] : []));
    }
    if (this.#chance(0.25))
      actions.push('-g', this.#pick(['512', '4k', '64k', '1M', '2G', '256', '1000', '4G', '0', 'x']));
    if (actions.includes('--merge') && this.#chance(0.5)) {
      const other = this.#qcow2();
      actions.push('-b', other, ...this.#maybe(0.7, '-F', this.#format(other)));
    } else if (this.#chance(0.02)) actions.push('-b', this.#name());
    return [
      'bitmap',
      ...this.#common().filter((word) => word !== '-q'),
      ...actions,
      ...this.#source(this.#qcow2()),
      this.#pick(BITMAPS),
    ];
  }

  #amend(): string[] {
    const options: string[] = [];
    for (let i = this.#pick([1, 1, 2, 3]); i > 0; i--) {
      const other = this.#name();
      options.push(
        ...this.#pick([
          ['compat=0.10'],
          ['compat=1.1'],
          ['compat=v3'],
          ['lazy_refcounts=on'],
          ['lazy_refcounts=off'],
          [`refcount_bits=${this.#pick(['1', '2', '4', '8', '16', '32', '64', '3'])}`],
          [`size=${this.#size()}`],
          [`backing_file=${other}`, `backing_fmt=${this.#format(other)}`],
          [`backing_file=${other}`],
          ['backing_file='],
          [`backing_fmt=${this.#pick(['raw', 'qcow2', 'zz'])}`],
          ['data_file=data2'],
          [`data_file_raw=${this.#pick(['on', 'off'])}`],
          [
            this.#pick([
              'cluster_size=64k',
              'preallocation=metadata',
              'nope=1',
              'encryption=on',
              'extended_l2=on',
              'help',
              '?',
            ]),
          ],
        ]),
      );
    }
    return [
      'amend',
      ...this.#common(),
      ...this.#maybe(0.1, '--force'),
      ...this.#cache('-t'),
      '-o',
      options.join(','),
      ...this.#source(this.#qcow2()),
    ];
  }

  #resize(): string[] {
    const size = `${this.#pick(['', '', '', '+', '-'])}${this.#size()}`;
    const modes = ['off', 'metadata', 'falloc', 'full', 'bad'];
    const preallocation = this.#maybe(0.2, `--preallocation=${this.#pick(modes)}`);
    const huge = preallocation.length > 0 && /[GT]$/.test(size) ? '5M' : size;
    const source = this.#source(this.#name());
    return ['resize', ...this.#common(), ...preallocation, ...this.#maybe(0.4, '--shrink'), ...source, huge];
  }

  #rebase(): string[] {
    const base = this.#chance(0.25) ? '' : this.#name();
    const named =
      base !== '' && this.#chance(0.9) ? ['-F', this.#format(base)] : this.#maybe(0.05, '-F', 'raw');
    return [
      'rebase',
      ...this.#common(),
      ...this.#maybe(0.25, '-u'),
      ...this.#maybe(0.12, '-c'),
      ...this.#maybe(0.03, '-U'),
      ...this.#cache('-t'),
      ...this.#cache('-T'),
      ...this.#maybe(0.96, '-b', base),
      ...named,
      ...this.#source(this.#qcow2()),
    ];
  }

  #commit(): string[] {
    return [
      'commit',
      ...this.#common(),
      ...this.#maybe(0.2, '-d'),
      ...this.#maybe(0.25, '-b', this.#name()),
      ...this.#maybe(0.05, '-r', this.#size()),
      ...this.#cache('-t'),
      ...this.#source(this.#qcow2()),
    ];
  }

  #check(): string[] {
    return [
      'check',
      ...this.#common(),
      ...this.#maybe(0.3, '-r', this.#pick(['all', 'leaks', 'all', 'bad'])),
      ...this.#maybe(0.1, '-U'),
      ...this.#cache('-T'),
      ...this.#output(),
      ...this.#source(this.#name()),
    ];
  }

  #info(): string[] {
    return [
      'info',
      ...this.#output(),
      ...this.#maybe(0.4, '--backing-chain'),
      ...this.#maybe(0.1, '-U'),
      ...this.#source(this.#name()),
    ];
  }

  #map(): string[] {
    return [
      'map',
      ...this.#output(),
      ...this.#maybe(0.15, `--start-offset=${this.#size()}`),
      ...this.#maybe(0.15, `--max-length=${this.#size()}`),
      ...this.#maybe(0.1, '-U'),
      ...this.#source(this.#name()),
    ];
  }

  #measure(): string[] {
    const to = this.#pick(['qcow2', 'qcow2', 'qcow2', 'raw', 'vmdk', 'zz']);
    const what = this.#chance(0.3) ? ['--size', this.#size()] : this.#source(this.#name());
    return [
      'measure',
      ...this.#output(),
      '-O',
      to,
      ...this.#maybe(0.1, '-l', this.#pick(SNAPSHOTS)),
      ...this.#maybe(0.05, '-U'),
      ...this.#joined(this.#chance(0.5) ? this.#layout(to) : []),
      ...what,
    ];
  }

  #convert(): string[] {
    const to = this.#pick(FORMATS);
    const options = this.#layout(to);
    const first = this.#name();
    const args = ['convert', ...this.#common(), '-O', to];
    args.push(...this.#maybe(0.25, '-c'));
    args.push(
      ...this.#maybe(0.25, '-S', this.#pick(['0', '512', '4k', '64k', '1M', '100', '2M', 'x', '-1', '1000'])),
    );
    args.push(
      ...this.#maybe(0.1, '-C'),
      ...this.#maybe(0.1, '-m', this.#pick(['1', '2', '16', '0', '17', 'x'])),
    );
    args.push(
      ...this.#maybe(0.08, '--salvage'),
      ...this.#maybe(0.12, '--bitmaps'),
      ...this.#maybe(0.03, '--skip-broken-bitmaps'),
    );
    args.push(...this.#maybe(0.05, '-r', this.#pick(['1G', '0', 'x', '-1'])), ...this.#maybe(0.04, '-U'));
    args.push(...this.#cache('-t'), ...this.#cache('-T'));
    if (this.#chance(0.12)) {
      args.push(
        '-l',
        this.#chance(0.5)
          ? this.#pick(SNAPSHOTS)
          : `snapshot.${this.#pick(['id', 'name', 'bad'])}=${this.#pick(SNAPSHOTS)}`,
      );
    }
    if (this.#chance(0.2)) {
      const base = this.#name();
      args.push('-B', base, ...this.#maybe(0.9, '-F', this.#format(base)));
    }
    const onto = this.#chance(0.2);
    if (onto) args.push('-n', ...this.#maybe(0.2, '--target-is-zero'));
    else args.push(...this.#maybe(0.02, '--target-is-zero'), ...this.#joined(options));
    const source = this.#source(first);
    const more = source.length === 1 && this.#chance(0.2) ? [this.#name()] : [];
    const target = onto ? this.#name() : this.#newName(to, this.#images.get(first)?.size ?? '0');
    return [...args, ...source, ...more, target];
  }

  #compare(): string[] {
    const [one, two] = [this.#name(), this.#name()];
    return [
      'compare',
      ...this.#common(),
      ...this.#maybe(0.3, '-s'),
      ...this.#maybe(0.1, '-U'),
      ...this.#cache('-T'),
      ...this.#maybe(0.7, '-f', this.#format(one)),
      ...this.#maybe(0.7, '-F', this.#format(two)),
      one,
      two,
    ];
  }

  #dd(): string[] {
    const name = this.#name();
    const to = this.#pick(FORMATS);
    const words = [
      `if=${name}`,
      `of=${this.#newName(to, this.#images.get(name)?.size ?? '0')}`,
      // Blocks of a size that does not make it millions of reads.
      ...this.#maybe(
        0.85,
        `bs=${this.#pick(['64k', '64k', '1M', '65537', '100000', '4k', '0', 'x', '3000000', '-1'])}`,
      ),
      ...this.#maybe(0.9, `count=${this.#pick(['1', '3', '10', '0', '17', 'x', '1k', '-1'])}`),
      ...this.#maybe(0.3, `skip=${this.#pick(['0', '1', '5', '100', '100000', 'x', '1k'])}`),
      ...this.#maybe(0.02, this.#pick(['nope=1', 'bs', 'conv=sync', 'seek=1', '=1', 'osize=1M'])),
    ];
    return [
      'dd',
      ...this.#maybe(0.6, '-f', this.#format(name)),
      '-O',
      to,
      ...this.#maybe(0.05, '-U'),
      ...words,
    ];
  }
}
