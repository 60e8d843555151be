/** What a disk's first two sectors say of its partitions. Sources: UEFI specification 5.2.3 (protective MBR), 5.3.2 (GPT header). */
import type { SafetyCheck } from '../../protocol/commands/image-inspect.js';

export const SECTOR = 512;
const SIGNATURE = 510;
const ENTRIES = 446;
const ENTRY = 16;
const PROTECTIVE = 0xee;

/** Boot sectors of file systems have the same signature. */
function isFileSystem(sector: Buffer): boolean {
  const text = (at: number, length: number): string => sector.toString('latin1', at, at + length);
  return text(54, 3) === 'FAT' || text(82, 3) === 'FAT' || text(3, 4) === 'NTFS' || text(3, 5) === 'EXFAT';
}

/** @param sectors the guest's first two, @param size of the guest's disk in bytes. Never worse than a warning: a disk may hold anything. */
export function partitionTable(sectors: Buffer, size: number): Pick<SafetyCheck, 'status' | 'text'> {
  const gpt = sectors.toString('latin1', SECTOR, SECTOR + 8) === 'EFI PART';
  if (sectors.readUInt16LE(SIGNATURE) !== 0xaa55) {
    return gpt
      ? { status: 'warn', text: 'a GPT without its protective MBR' }
      : { status: 'pass', text: 'no partition table' };
  }
  if (isFileSystem(sectors)) return { status: 'pass', text: 'a file system without partitions' };
  const entries = [0, 1, 2, 3].map((index) => {
    const at = ENTRIES + index * ENTRY;
    return {
      boot: sectors[at]!,
      type: sectors[at + 4]!,
      first: sectors.readUInt32LE(at + 8),
      count: sectors.readUInt32LE(at + 12),
    };
  });
  const used = entries.filter(({ type }) => type !== 0);
  const wrong: string[] = [];
  if (entries.some(({ boot }) => boot !== 0 && boot !== 0x80)) wrong.push('a boot indicator that is none');
  const isProtective = used.some(({ type }) => type === PROTECTIVE);
  if (isProtective) {
    if (entries[0]!.type !== PROTECTIVE || entries[0]!.first !== 1)
      wrong.push('a protective entry out of its place');
    if (used.length > 1) wrong.push('partitions beside the protective one (a hybrid MBR)');
    if (!gpt) wrong.push('a protective MBR without a GPT');
  } else {
    if (used.length === 0) wrong.push('no partition in it');
    if (gpt) wrong.push('a GPT that it does not protect');
    const sectorsOfDisk = Math.ceil(size / SECTOR);
    if (used.some(({ first, count }) => first + count > sectorsOfDisk))
      wrong.push('a partition beyond the disk');
  }
  if (wrong.length > 0) return { status: 'warn', text: `an MBR with ${wrong.join(', ')}` };
  return { status: 'pass', text: isProtective ? 'a GPT and its protective MBR' : 'an MBR' };
}
