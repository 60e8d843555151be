/** Runs an operation on an image in memory, records it, and looks at every state that a crash could have left. */
import { expect } from 'vitest';
import type { FormatDriver } from '../../src/engine/node/driver.js';
import type { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { type Expectation, type Found, GuestHistory, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { createOn, DATA, type Files, IMAGE, openCrashed, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';

/** Guest bytes that tell where they are and which write they come from. */
export function pattern(at: number, length: number, salt: number): Uint8Array {
  const out = new Uint8Array(length);
  for (let index = 0; index < length; index++) {
    const sector = Math.floor((at + index) / 512);
    out[index] = (sector * 37 + salt * 71 + (index & 7) + 1) & 0xff;
  }
  return out;
}

/** The guest of an image under test: what it writes is remembered in the history. */
export class Guest {
  readonly image: ImageNode;
  readonly history: GuestHistory;

  constructor(image: ImageNode, history: GuestHistory) {
    this.image = image;
    this.history = history;
  }

  write(at: number, length: number, salt: number): Promise<void> {
    const data = pattern(at, length, salt);
    return this.history.write(at, data, () => this.image.write(at, data));
  }

  zero(at: number, length: number, unmap = false): Promise<void> {
    const run = (): Promise<void> => this.image.zero({ at, length }, { unmap });
    return this.history.write(at, new Uint8Array(length), run);
  }

  /** Whole units of an image without backing file: these read as zeros after. */
  discard(at: number, length: number): Promise<void> {
    return this.history.write(at, new Uint8Array(length), () => this.image.discard({ at, length }));
  }

  async pack(at: number, salt: number): Promise<void> {
    const { pack } = this.image.format;
    const data = pattern(at, pack!.unit, salt);
    const packed = await pack!.compress(data);
    if (packed === undefined) throw new Error('the pattern does not compress');
    await this.history.write(at, data, () => this.image.writePacked(at, packed));
  }

  flush(): Promise<void> {
    return this.history.flush(() => this.image.flush());
  }
}

export interface Scenario {
  readonly size: number;
  /** qcow2 where absent. */
  readonly driver?: FormatDriver;
  readonly options?: OptionValues;
  /** Bytes of the backing file. */
  readonly backing?: Uint8Array;
  /** What is in the image before the recording begins. */
  before?(guest: Guest): Promise<void>;
  /** Changes the closed image before the recording begins. */
  between?(image: PagedStorage): void;
  /** The size that `act` makes the image grow to. */
  readonly grown?: number;
  /** What is recorded; it is followed by a flush and a close. */
  act(guest: Guest): Promise<void>;
  readonly seed?: number;
  readonly samples?: number;
  /** What a check found, as it is to be taken: for formats whose check calls a crash's harmless traces errors. */
  readonly judge?: (found: Found) => Found;
}

async function content(image: ImageNode): Promise<Uint8Array> {
  const bytes = new Uint8Array(image.size);
  await image.read(0, bytes);
  return bytes;
}

/** What was recorded of a scenario, and what must hold in its crash states. */
export interface Recording {
  readonly log: CrashLog;
  readonly start: Map<string, PagedStorage>;
  readonly expected: Expectation;
}

export async function record(scenario: Scenario): Promise<Recording> {
  const { size, options = {} } = scenario;
  const kind = scenario.driver === undefined ? {} : { driver: scenario.driver };
  const image = new PagedStorage(IMAGE);
  const data = options.data_file === undefined ? undefined : new PagedStorage(DATA);
  const backing = scenario.backing === undefined ? undefined : new PagedStorage('backing', scenario.backing);
  const plain: Files = { image, data, backing };
  if (scenario.driver === undefined) await createOn(plain, size, { cluster_size: 512, ...options });
  else await createOn(plain, size, options, scenario.driver);
  if (scenario.before !== undefined) {
    const node = await openOn(plain, { writable: true, ...kind });
    await scenario.before(new Guest(node, new GuestHistory(new CrashLog(), await content(node))));
    await node.close();
  }
  scenario.between?.(image);

  const log = new CrashLog();
  const start = new Map([[IMAGE, image.fork()]]);
  if (data !== undefined) start.set(DATA, data.fork());
  const recorded: Files = {
    image: new RecordingStorage(image, log, IMAGE),
    data: data === undefined ? undefined : new RecordingStorage(data, log, DATA),
    backing,
  };
  const node = await openOn(recorded, { writable: true, ...kind });
  const initial = new Uint8Array(scenario.grown ?? size);
  initial.set(await content(node));
  const history = new GuestHistory(log, initial);
  const guest = new Guest(node, history);
  await scenario.act(guest);
  await guest.flush();
  await history.flush(() => node.close());
  return {
    log,
    start,
    expected: { open: (state) => openCrashed(state.files, backing, kind), history, oldSize: size },
  };
}

function judgedBy(judge: NonNullable<Scenario['judge']>, expected: Expectation): Expectation {
  return {
    ...expected,
    async open(state) {
      const image = await expected.open(state);
      const { check } = image;
      return check === undefined ? image : { ...image, check: async () => judge(await check()) };
    },
  };
}

/** Fails where any crash state breaks an invariant. Returns how many there were. */
export async function survives(scenario: Scenario): Promise<number> {
  const { log, start, expected } = await record(scenario);
  const { seed = 1, samples = 150, judge } = scenario;
  const judged = judge === undefined ? expected : judgedBy(judge, expected);
  const { states, violations } = await verifyCrashes(log, start, judged, {
    seed,
    samples: sampleCount(samples),
    torn: true,
  });
  expect(violations).toEqual([]);
  return states;
}
