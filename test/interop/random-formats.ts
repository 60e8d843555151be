/** Random sequences of command lines over small images of the formats other than raw and qcow2, each all from its seed. */
import { generator } from '../support/stamped.js';

const KiB = 1024;
const MiB = 1024 * KiB;

export type Step =
  /** One qemu-img command line; one that only reads is run by both programs on the same files. */
  | {
      readonly kind: 'line';
      readonly args: readonly string[];
      readonly reads: boolean;
      readonly makes?: string;
    }
  /** qemu-io of the reference in both folders. */
  | { readonly kind: 'io'; readonly args: readonly string[]; readonly input: string }
  /** From here each program works on the files that the other has made. */
  | { readonly kind: 'swap' };

export interface Image {
  readonly name: string;
  readonly format: string;
  /** What was asked for; the image may be rounded, or not exist. */
  readonly size: number;
}

const CREATABLE = ['vmdk', 'vdi', 'vpc', 'vhdx', 'qed', 'qcow', 'parallels'] as const;
const READ_ONLY = ['dmg', 'bochs', 'cloop'] as const;
const BACKED: ReadonlySet<string> = new Set(['vmdk', 'qed', 'qcow', 'qcow2']);
const VMDK = [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
  'streamOptimized',
];

/** The commands of one seed. */
export class Sequence {
  readonly #random: () => number;
  readonly steps: Step[] = [];
  readonly images: Image[] = [];
  #names = 0;

  constructor(seed: number, fixtures: readonly Image[]) {
    this.#random = generator(seed * 104729);
    const count = 4 + this.#below(9);
    this.create();
    if (this.#chance(0.5)) this.io();
    if (this.#chance(0.12)) this.images.push(this.#pick(...fixtures));
    while (this.steps.length < count) {
      const step = this.#pick(...STEPS);
      this[step]();
    }
  }

  #chance(part: number): boolean {
    return this.#random() < part;
  }

  #below(limit: number): number {
    return Math.floor(this.#random() * limit);
  }

  #pick<T>(...values: readonly T[]): T {
    return values[this.#below(values.length)]!;
  }

  /** Some of the values, each with its own chance. */
  #some(...values: readonly (readonly [number, () => string])[]): string[] {
    return values.flatMap(([part, make]) => (this.#chance(part) ? [make()] : []));
  }

  #line(args: readonly string[], reads: boolean, makes?: string): void {
    this.steps.push({ kind: 'line', args, reads, ...(makes === undefined ? {} : { makes }) });
  }

  #name(format: string): string {
    return this.#chance(0.1) && this.images.length > 0
      ? this.#pick(...this.images).name
      : `${'abcdefghijklmnopqrst'[this.#names++]}.${format}`;
  }

  #image(): Image {
    return this.#chance(0.03)
      ? { name: 'none.img', format: this.#pick(...CREATABLE), size: MiB }
      : this.#pick(...this.images);
  }

  #format(): string {
    return this.#chance(0.08) ? this.#pick('raw', 'qcow2') : this.#pick(...CREATABLE);
  }

  #size(): number {
    const kind = this.#random();
    if (kind < 0.1) return this.#pick(0, 1, 511, 512, 513, 1000, 4096, 65535, 65537);
    if (kind < 0.6) return (1 + this.#below(5)) * MiB + (this.#chance(0.6) ? this.#below(4096) * 512 : 0);
    if (kind < 0.75) return this.#below(6 * MiB);
    return this.#pick(10, 16, 33, 40) * MiB + this.#pick(0, 0, 512, 1, 4096);
  }

  /** Too large to be copied, but not to be made. */
  #hugeSize(): string {
    return this.#pick(
      '2G',
      '5G',
      '127G',
      '128G',
      '1T',
      '2040G',
      '2T',
      '4T',
      '64T',
      '65T',
      '1P',
      '4P',
      '1E',
      '7E',
      '8E',
      '9223372036854775807',
      '9223372036854775296',
      '4398046510080',
      String(2 ** this.#pick(31, 32, 40, 41, 42, 46, 50) + this.#pick(-512, -1, 1, 512)),
    );
  }

  #sizeText(size: number): string {
    if (size % MiB === 0 && this.#chance(0.6)) return `${size / MiB}M`;
    if (size % KiB === 0 && this.#chance(0.6)) return `${size / KiB}k`;
    return String(size);
  }

  #flag(): string {
    return this.#chance(0.08) ? this.#pick('maybe', '1', '', 'yes') : this.#pick('on', 'off');
  }

  #clusterText(): string {
    return this.#pick(
      '0',
      '1',
      '512',
      '4k',
      '4095',
      '4096',
      '64k',
      '64k',
      '1M',
      '2M',
      '3M',
      '64M',
      '128M',
      '4G',
      '-1',
      '1x',
    );
  }

  /** Options of creating an image of a format: good, odd and bad ones. */
  #options(format: string): string[] {
    const bad: [number, () => string][] = [
      [
        0.02,
        () =>
          this.#pick(
            'nonsense=1',
            'size=3M',
            'size=bad',
            'backing_fmt=raw',
            'preallocation=full',
            '=',
            'help',
          ),
      ],
      [
        0.02,
        () =>
          this.#pick(
            'preallocation=off',
            'nocow=on',
            'extent_size_hint=1M',
            'cluster_size=64k',
            'subformat=',
          ),
      ],
    ];
    switch (format) {
      case 'vmdk':
        return this.#some(
          [
            0.75,
            () =>
              `subformat=${this.#chance(0.05) ? this.#pick('bad', 'monolithicflat', '') : this.#pick(...VMDK)}`,
          ],
          [
            0.15,
            () => `adapter_type=${this.#pick('ide', 'lsilogic', 'buslogic', 'legacyESX', 'IDE', 'bad')}`,
          ],
          [0.1, () => `compat6=${this.#flag()}`],
          [0.15, () => `hwversion=${this.#pick('4', '6', '12', 'undefined', 'x', '-1')}`],
          [0.1, () => `toolsversion=${this.#pick('1', '2147483647', 'abc')}`],
          [0.3, () => `zeroed_grain=${this.#flag()}`],
          ...bad,
        );
      case 'vdi':
        return this.#some(
          [0.3, () => `static=${this.#flag()}`],
          [0.05, () => 'preallocation=metadata'],
          ...bad,
        );
      case 'vpc':
        return this.#some(
          [0.5, () => `subformat=${this.#pick('dynamic', 'fixed', 'fixed', this.#pick('bad', 'Fixed'))}`],
          [0.4, () => `force_size=${this.#flag()}`],
          ...bad,
        );
      case 'vhdx':
        return this.#some(
          [
            0.4,
            () => `subformat=${this.#pick('dynamic', 'fixed', 'dynamic', this.#pick('bad', 'differencing'))}`,
          ],
          [
            0.4,
            () =>
              `block_size=${this.#pick('0', '1M', '2M', '8M', '32M', '256M', '512M', '3M', '512k', '1', '1025k')}`,
          ],
          [0.3, () => `log_size=${this.#pick('0', '1M', '2M', '3M', '512k', '1', '4095M', '4G', '1025k')}`],
          [0.3, () => `block_state_zero=${this.#flag()}`],
          ...bad,
        );
      case 'qed':
        return this.#some(
          [0.5, () => `cluster_size=${this.#clusterText()}`],
          [0.4, () => `table_size=${this.#pick('0', '1', '2', '3', '4', '8', '16', '32', '4k', '-1')}`],
          ...bad,
        );
      case 'parallels':
        return this.#some([0.6, () => `cluster_size=${this.#clusterText()}`], ...bad);
      case 'qcow2':
        return this.#some([0.4, () => `cluster_size=${this.#pick('512', '4k', '64k', '2M')}`], ...bad);
      default:
        return this.#some(...bad);
    }
  }

  #withOptions(options: readonly string[]): string[] {
    if (options.length === 0) return [];
    if (options.length > 1 && this.#chance(0.2)) {
      return ['-o', options[0]!, '-o', options.slice(1).join(',')];
    }
    return ['-o', options.join(',')];
  }

  private create(): void {
    const format = this.#format();
    const options = this.#options(format);
    const args = ['create', '-f', format];
    if (this.#chance(0.3)) args.push('-q');
    const isBacked = this.images.length > 0 && this.#chance(BACKED.has(format) ? 0.5 : 0.04);
    let below: Image | undefined;
    if (isBacked) {
      below = this.#image();
      if (this.#chance(0.12)) args.push('-u');
      if (this.#chance(0.7)) {
        args.push('-b', below.name);
        if (this.#chance(0.8)) args.push('-F', this.#chance(0.05) ? 'raw' : below.format);
      } else {
        options.push(`backing_file=${below.name}`);
        if (this.#chance(0.8)) options.push(`backing_fmt=${below.format}`);
      }
    }
    const name = this.#name(format);
    if (this.#chance(0.09)) {
      // What is made is too large for all that follows, but for what tells about it.
      const size = this.#hugeSize();
      this.#line([...args, ...this.#withOptions(options), `huge.${format}`, size], false);
      for (const line of [['info'], ['map', '-f', format], ['check', '-f', format]]) {
        if (this.#chance(0.5)) this.#line([...line, `huge.${format}`], true);
      }
      if (this.images.length > 0) return;
    }
    const size = this.#size();
    args.push(...this.#withOptions(options), name);
    if (below === undefined || this.#chance(0.5)) {
      args.push(this.#chance(0.02) ? this.#pick('1Q', '-5', '', '1M1', '0x100000') : this.#sizeText(size));
    }
    this.#line(args, false, name);
    this.images.push({ name, format, size });
  }

  private io(): void {
    const { name, format, size } = this.#pick(...this.images);
    const commands: string[] = [];
    const count = 1 + this.#below(8);
    for (let i = 0; i < count; i++) {
      const grain = this.#pick(512, 512, 4096, 65536, 1);
      const start = Math.floor(this.#below(Math.max(1, size)) / grain) * grain;
      const most = Math.ceil((1 + this.#random() ** 4 * 600 * KiB) / grain) * grain;
      const length = Math.max(1, Math.min(size - start, most));
      const what = this.#random();
      if (what < 0.6) commands.push(`write -P ${1 + this.#below(250)} ${start} ${length}`);
      else if (what < 0.7) commands.push(`write -P 0 ${start} ${length}`);
      else if (what < 0.83) commands.push(`write -z ${this.#chance(0.5) ? '-u ' : ''}${start} ${length}`);
      else if (what < 0.9) commands.push(`discard ${start} ${length}`);
      else if (what < 0.93) commands.push(`write -c -P 7 ${start} ${length}`);
      else if (what < 0.96) commands.push('flush');
      else commands.push(`read ${start} ${length}`);
    }
    const args = this.#chance(0.9) ? ['-f', format, name] : [name];
    this.steps.push({ kind: 'io', args, input: `${commands.join('\n')}\n` });
  }

  #runtime(format: string): string {
    const own: Record<string, string[]> = {
      vpc: ['force_size_calc=current_size', 'force_size_calc=chs', 'force_size_calc=bad'],
      parallels: [
        'prealloc-size=1M',
        'prealloc-mode=truncate',
        'prealloc-mode=falloc',
        'prealloc-mode=bad',
        'prealloc-size=3',
      ],
      qed: ['backing.driver=null-co', 'backing=', 'backing.driver=raw'],
      vmdk: ['extents.0.driver=raw', 'backing=none', 'backing.driver=null-co'],
      qcow: ['encrypt.format=aes', 'encrypt.format=luks', 'backing.driver=null-co'],
      raw: ['offset=512', 'size=1024', 'size=1000000000', 'offset=511', 'size=bad', 'offset=-1'],
    };
    return this.#pick(
      'read-only=on',
      'discard=unmap',
      'discard=on',
      'detect-zeroes=unmap',
      'detect-zeroes=on',
      'cache.direct=off',
      'cache.no-flush=on',
      'force-share=on',
      'auto-read-only=on',
      'node-name=n0',
      'nonsense=1',
      'file.locking=off',
      ...(own[format] ?? []),
      ...(own[format] ?? []),
    );
  }

  /** Ways to name an image: the options before the name, and the name. */
  #named(image: Image): { readonly options: string[]; readonly name: string } {
    const kind = this.#random();
    const { name } = image;
    const format = this.#chance(0.04) ? this.#pick(...CREATABLE, ...READ_ONLY, 'raw', 'bad') : image.format;
    if (kind < 0.5) return { options: ['-f', format], name };
    // A fixed vpc image is no such to who probes it: then its footer, with its date, is what the guest sees.
    if (kind < 0.72)
      return image.format === 'vpc' ? { options: ['-f', format], name } : { options: [], name };
    const runtime = this.#chance(0.5) ? [this.#runtime(format)] : [];
    if (kind < 0.9) {
      const flat = [`driver=${format}`, `file.filename=${name}`, ...runtime];
      return { options: ['--image-opts'], name: flat.join(',') };
    }
    const tree: Record<string, unknown> = { driver: format, file: { driver: 'file', filename: name } };
    for (const option of runtime) {
      const [key, value] = option.split('=');
      tree[key!] = value === 'on' ? true : value === 'off' ? false : value;
    }
    return { options: [], name: `json:${JSON.stringify(tree)}` };
  }

  private info(): void {
    const { options, name } = this.#named(this.#image());
    this.#line(
      [
        'info',
        ...options,
        ...this.#some([0.4, () => '--output=json'], [0.3, () => '--backing-chain'], [0.1, () => '-U']),
        name,
      ],
      true,
    );
  }

  private map(): void {
    const image = this.#image();
    const { options, name } = this.#named(image);
    const offset = () => String(this.#below(image.size + 1000));
    const args = ['map', ...options, ...this.#some([0.5, () => '--output=json'])];
    if (this.#chance(0.1)) args.push('-s', offset());
    if (this.#chance(0.1)) args.push('-l', offset());
    this.#line([...args, name], true);
  }

  private check(): void {
    const { options, name } = this.#named(this.#image());
    const repair = this.#chance(0.3) ? ['-r', this.#pick('leaks', 'all')] : [];
    const args = [
      'check',
      ...options,
      ...repair,
      ...this.#some([0.3, () => '--output=json'], [0.1, () => '-q']),
    ];
    this.#line([...args, name], repair.length === 0);
  }

  private measure(): void {
    const target = this.#chance(0.1) ? this.#pick('raw', 'qcow2', ...READ_ONLY) : this.#pick(...CREATABLE);
    const args = ['measure', '-O', target, ...this.#withOptions(this.#options(target))];
    if (this.#chance(0.3)) args.push('--output=json');
    if (this.#chance(0.25))
      args.push('--size', this.#chance(0.3) ? this.#hugeSize() : this.#sizeText(this.#size()));
    else {
      const { options, name } = this.#named(this.#image());
      args.push(...options, name);
    }
    this.#line(args, true);
  }

  private convert(): void {
    const sources = [this.#image()];
    if (this.#chance(0.08)) sources.push(this.#image());
    const target = this.#chance(0.25)
      ? this.#pick('raw', 'qcow2', 'raw', this.#pick(...READ_ONLY))
      : this.#pick(...CREATABLE);
    const { options, name } = this.#named(sources[0]!);
    const args = ['convert', ...options, '-O', target];
    const exists = this.#chance(0.12);
    if (exists) args.push('-n');
    if (!exists || this.#chance(0.1)) args.push(...this.#withOptions(this.#options(target)));
    if (this.#chance(0.12)) args.push('-c');
    if (this.#chance(0.3)) args.push('-S', this.#pick('0', '512', '4k', '64k', '1M', '3', 'x'));
    if (this.#chance(0.1)) args.push('-p');
    if (this.#chance(0.1)) args.push('-W');
    if (this.#chance(0.2)) args.push('-m', this.#pick('1', '4', '16'));
    if (this.#chance(0.03)) args.push('-l', this.#pick('1', 's', 'snapshot.id=1'));
    if (this.#chance(0.03)) args.push('-C');
    if (this.#chance(0.03)) args.push('--salvage');
    if (this.#chance(0.03)) args.push('--bitmaps');
    if (this.#chance(0.04) && exists) args.push('--target-is-zero');
    if (this.#chance(BACKED.has(target) ? 0.15 : 0.02)) {
      const below = this.#image();
      args.push('-B', below.name);
      if (this.#chance(0.9)) args.push('-F', below.format);
    }
    const rest = sources.slice(1).map((image) => image.name);
    const out = exists ? this.#image().name : this.#name(target);
    if (out === sources[0]!.name) return;
    this.#line([...args, name, ...rest, out], false, out);
    const size = sources.reduce((sum, image) => sum + image.size, 0);
    if (!exists && CREATABLE.some((format) => format === target))
      this.images.push({ name: out, format: target, size });
  }

  private dd(): void {
    const image = this.#image();
    const target = this.#chance(0.2) ? 'raw' : this.#pick(...CREATABLE);
    const out = this.#name(target);
    const args = ['dd', ...(this.#chance(0.7) ? ['-f', image.format] : []), '-O', target];
    args.push(`bs=${this.#pick('512', '4k', '64k', '1M', '777', '0', '1')}`.replace('bs=1', 'bs=1k'));
    if (this.#chance(0.5)) args.push(`count=${this.#pick('0', '1', '7', '100')}`);
    if (this.#chance(0.3)) args.push(`skip=${this.#pick('0', '1', '5', '10000')}`);
    this.#line([...args, `if=${image.name}`, `of=${out}`], false, out);
    if (target !== 'raw') this.images.push({ name: out, format: target, size: image.size });
  }

  private resize(): void {
    const image = this.#image();
    const { options, name } = this.#named(image);
    const args = ['resize', ...options];
    if (this.#chance(0.4)) args.push('--shrink');
    if (this.#chance(0.2))
      args.push('--preallocation', this.#pick('off', 'metadata', 'falloc', 'full', 'bad'));
    const huge = this.#chance(0.05);
    const amount = huge ? this.#hugeSize() : this.#sizeText(this.#size());
    const size = this.#pick('', '', '+', '-') + amount;
    // A huge one is of no further use.
    const last = huge && !size.startsWith('-');
    this.#line(
      size.startsWith('-') && this.#chance(0.7) ? [...args, '--', name, size] : [...args, name, size],
      false,
      last ? undefined : image.name,
    );
    if (last) this.images.splice(this.images.indexOf(image), this.images.length > 1 ? 1 : 0);
  }

  private rebase(): void {
    const image = this.#image();
    const { options, name } = this.#named(image);
    const below = this.#image();
    const args = [
      'rebase',
      ...options,
      ...this.#some([0.35, () => '-u'], [0.1, () => '-p'], [0.05, () => '-c']),
    ];
    if (this.#chance(0.8)) args.push('-F', below.format);
    args.push('-b', this.#chance(0.25) ? '' : below.name);
    this.#line([...args, name], false, image.name);
  }

  private commit(): void {
    const image = this.#image();
    const { options, name } = this.#named(image);
    const args = ['commit', ...options, ...this.#some([0.25, () => '-d'], [0.15, () => '-p'])];
    if (this.#chance(0.15)) args.push('-b', this.#image().name);
    this.#line([...args, name], false, image.name);
  }

  private snapshot(): void {
    const { options, name } = this.#named(this.#image());
    const what = this.#pick(['-l'], ['-c', 's'], ['-a', 's'], ['-d', 's']);
    this.#line(['snapshot', ...options, ...what, name], what[0] === '-l');
  }

  private amend(): void {
    const image = this.#image();
    const { options, name } = this.#named(image);
    const set = this.#options(image.format);
    this.#line(
      ['amend', ...options, '-o', set.length === 0 ? 'size=8M' : set.join(','), name],
      false,
      image.name,
    );
  }

  private bitmap(): void {
    const { options, name } = this.#named(this.#image());
    const what = this.#pick(['--add'], ['--remove'], ['--clear'], ['--add', '--disable'], ['--enable']);
    this.#line(['bitmap', ...options, ...what, name, 'b0'], false);
  }

  private compare(): void {
    const [one, other] = [this.#image(), this.#image()];
    const args = ['compare'];
    if (this.#chance(0.7)) args.push('-f', one.format);
    if (this.#chance(0.7)) args.push('-F', other.format);
    args.push(...this.#some([0.4, () => '-s'], [0.1, () => '-p'], [0.1, () => '-q']));
    this.#line([...args, one.name, other.name], true);
  }

  private help(): void {
    const format = this.#chance(0.2) ? this.#pick(...READ_ONLY) : this.#pick(...CREATABLE);
    const what = this.#random();
    if (what < 0.5)
      this.#line(['create', '-f', format, '-o', 'help', ...this.#some([0.5, () => 'x.img'])], true);
    else if (what < 0.75)
      this.#line(['amend', '-f', format, '-o', 'help', ...this.#some([0.5, () => 'x.img'])], true);
    else
      this.#line(
        ['convert', '-O', format, '-o', 'help', ...this.#some([0.5, () => 'a b'])].flatMap((arg) =>
          arg.split(' '),
        ),
        true,
      );
  }

  private swap(): void {
    this.steps.push({ kind: 'swap' });
  }
}

const STEPS = [
  'create',
  'create',
  'create',
  'io',
  'io',
  'io',
  'io',
  'io',
  'info',
  'info',
  'info',
  'map',
  'map',
  'check',
  'check',
  'measure',
  'convert',
  'convert',
  'convert',
  'convert',
  'dd',
  'resize',
  'resize',
  'resize',
  'rebase',
  'rebase',
  'commit',
  'commit',
  'snapshot',
  'amend',
  'bitmap',
  'compare',
  'help',
  'swap',
  'swap',
] as const;
