/** What a qcow2 header says that matters to whoever gets the image from somebody else: also where it is refused on opening. */
import type { Finding } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { cString } from './header.js';
import {
  ExtensionHeader,
  ExtensionType,
  HeaderV2,
  HeaderV3,
  Incompatible,
  KNOWN_INCOMPATIBLE,
  MAX_BACKING_NAME,
  V2_HEADER_LENGTH,
} from './layout.js';

/** Headers are short; the names that are looked for are in the first cluster. */
const LOOKED_AT = 65536;

export async function inspectQcow2(file: Storage): Promise<readonly Finding[]> {
  const head = new Uint8Array(LOOKED_AT);
  await file.read(0, head);
  const v2 = HeaderV2.decode(head);
  const isV3 = v2.version >= 3;
  const v3 = isV3 ? HeaderV3.decode(head, V2_HEADER_LENGTH) : undefined;
  const bits = v3?.incompatible ?? 0n;
  const findings: Finding[] = [];

  const unknown = bits & ~KNOWN_INCOMPATIBLE;
  const damaged = (bits & Incompatible.corrupt) !== 0n;
  const extended = (bits & Incompatible.extendedL2) !== 0n ? ' (extended L2 entries are)' : '';
  findings.push(
    unknown !== 0n
      ? { check: 'features', status: 'fail', text: `incompatible features 0x${unknown.toString(16)}` }
      : damaged
        ? { check: 'features', status: 'warn', text: 'marked as corrupt' }
        : { check: 'features', status: 'pass', text: `none that is not known${extended}` },
  );

  // Any offset counts, though the name be empty: nothing that has none needs one.
  if (v2.backingFileOffset !== 0n) {
    const at = v2.backingFileOffset < BigInt(LOOKED_AT) ? Number(v2.backingFileOffset) : LOOKED_AT;
    const name = cString(head.subarray(at, at + Math.min(v2.backingFileSize, MAX_BACKING_NAME)));
    findings.push({ check: 'backing-file', status: 'fail', text: 'refers to a backing file', names: [name] });
  } else findings.push({ check: 'backing-file', status: 'pass', text: 'no backing file' });

  const dataFile = extensionName(head, v3?.headerLength ?? V2_HEADER_LENGTH);
  if ((bits & Incompatible.dataFile) !== 0n || dataFile !== undefined) {
    const names = dataFile === undefined ? [] : [dataFile];
    findings.push({ check: 'data-file', status: 'fail', text: 'keeps its data in another file', names });
  } else findings.push({ check: 'data-file', status: 'pass', text: 'no data file' });
  findings.push({ check: 'extents', status: 'pass', text: 'no extents' });
  if (v2.cryptMethod !== 0) {
    findings.push({
      check: 'encryption',
      status: 'warn',
      text: 'encrypted: what is inside cannot be looked at',
    });
  } else findings.push({ check: 'encryption', status: 'pass', text: 'not encrypted' });
  return findings;
}

/** What the data file's extension holds, if there is one among those that make sense. */
function extensionName(head: Uint8Array, start: number): string | undefined {
  for (let at = start; at + ExtensionHeader.size <= head.length; ) {
    const { type, length } = ExtensionHeader.decode(head, at);
    at += ExtensionHeader.size;
    if (type === ExtensionType.end || at + length > head.length) return undefined;
    if (type === ExtensionType.dataFile) return cString(head.subarray(at, at + length));
    at += Math.ceil(length / 8) * 8;
  }
  return undefined;
}
