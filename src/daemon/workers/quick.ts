/**
 * Quick jobs share a thread, several at a time: a thread for each would spend its time on waking up. What they share they also
 * may lose: where the thread dies, or does not get on, its jobs are started again elsewhere. They only read, so they can be.
 */
import { give, type Member, repeat, type Work } from './member.js';

/** So many of them have a thread at once. */
const MAX_SHARED = 64;
/** So many threads at once for what shares them. */
const MAX_THREADS = 4;
/** A thread whose oldest job is so old gets no more of them. */
const SLOW_MS = 250;
/** And then its other jobs are started again elsewhere: a file system that hangs keeps the thread. */
const STUCK_MS = 1000;
/** What has been started again so often is not what hangs. */
const MAX_AGAIN = 3;

export class QuickJobs {
  readonly #members: ReadonlySet<Member>;
  readonly #fresh: () => Member;
  /** Jobs of a thread that died: one of them may have killed it, so each gets a thread for itself. */
  readonly #suspects: Work[] = [];
  readonly #alone = new Set<Work>();
  #timer: NodeJS.Timeout | undefined;

  /** @param fresh a thread without work that has had nothing but quick jobs. */
  constructor(members: ReadonlySet<Member>, fresh: () => Member) {
    this.#members = members;
    this.#fresh = fresh;
  }

  run(work: Work): void {
    this.#give(this.#thread() ?? this.#leastBusy(), work);
  }

  /** Told of each job that has come to its end. */
  ended(work: Work): void {
    if (this.#alone.delete(work)) this.#nextSuspect();
  }

  /** The thread is being ended over this one job: the others go on elsewhere. */
  spareOthers(member: Member, than: Work): void {
    for (const work of [...member.work.values()]) {
      if (work === than || this.#move(work)) continue;
      this.#leave(work);
      this.#suspects.push(work);
    }
    this.#nextSuspect();
  }

  /** The thread has died, and had several. */
  died(works: Iterable<Work>): void {
    this.#suspects.push(...works);
    this.#nextSuspect();
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#suspects.length = 0;
  }

  #give(member: Member, work: Work): void {
    member.quick = true;
    member.lastQuick = performance.now();
    give(member, work);
    this.#timer ??= setTimeout(() => this.#look(), STUCK_MS).unref();
  }

  #threads(): Member[] {
    return [...this.#members].filter((member) => member.quick && member.killed === undefined);
  }

  /** One that gets on and has room; undefined where there are too many that do not. */
  #thread(): Member | undefined {
    const threads = this.#threads();
    const fit = threads.find(
      (member) => member.work.size < MAX_SHARED && oldest(member, SLOW_MS) === undefined,
    );
    if (fit !== undefined) return fit;
    return threads.length < MAX_THREADS ? this.#fresh() : undefined;
  }

  #leastBusy(): Member {
    return this.#threads().reduce((least, each) => (each.work.size < least.work.size ? each : least));
  }

  #look(): void {
    this.#timer = undefined;
    let busy = false;
    for (const member of this.#threads()) {
      const stuck = oldest(member, STUCK_MS);
      if (stuck !== undefined) {
        for (const work of [...member.work.values()]) {
          if (work !== stuck && !work.paused && work.again < MAX_AGAIN) this.#move(work);
        }
      }
      busy ||= member.work.size > 0;
    }
    if (busy) this.#timer ??= setTimeout(() => this.#look(), STUCK_MS).unref();
  }

  /** False where no thread has room. */
  #move(work: Work): boolean {
    const thread = this.#thread();
    if (thread === undefined) return false;
    this.#leave(work);
    this.#give(thread, work);
    repeat(work);
    return true;
  }

  /** What the thread still says of it is not listened to. */
  #leave(work: Work): void {
    work.again++;
    work.member?.work.delete(work.message.job);
  }

  #nextSuspect(): void {
    while (this.#alone.size < MAX_THREADS) {
      const work = this.#suspects.shift();
      if (work === undefined) return;
      this.#alone.add(work);
      work.again++;
      const member = this.#fresh();
      // Nothing else is put beside it.
      member.quick = false;
      give(member, work);
      repeat(work);
    }
  }
}

/** The job that the thread has had for longest, if for so long. */
function oldest(member: Member, ms: number): Work | undefined {
  const before = performance.now() - ms;
  for (const work of member.work.values()) if (!work.paused && work.since <= before) return work;
  return undefined;
}
