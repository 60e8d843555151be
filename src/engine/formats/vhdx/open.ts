/** From a file to an image: identifier, headers, log, regions, metadata, BAT. */
import type { FormatNode, OpenContext } from '../../node/driver.js';
import { Bat } from './bat.js';
import { checkBat } from './check.js';
import { Headers } from './header.js';
import { BAT_ENTRY_SIZE, batEntries, FILE_SIGNATURE, invalid, sameBytes } from './layout.js';
import { readMetadata } from './metadata.js';
import { VhdxNode } from './node.js';
import { readRegions } from './regions.js';
import { replayLog } from './replay.js';
import { Writer } from './write.js';

export async function openVhdx(context: OpenContext): Promise<FormatNode> {
  const { file, writable, forCheck } = context;
  const { filename } = file;
  const complain = (text: string): void => context.say?.(`qemu-img: ${text}`);
  const signature = new Uint8Array(FILE_SIGNATURE.length);
  await file.read(0, signature);
  if (!sameBytes(signature, FILE_SIGNATURE)) throw invalid(filename, 'signature');
  const headers = await Headers.read(file);
  const log = { at: headers.logOffset, length: headers.fields.logLength };
  const replayed = await replayLog(file, headers, log, writable);
  const { bat: region, metadata: metadataRegion, taken } = await readRegions(file, log, complain);
  const metadata = await readMetadata(file, metadataRegion);
  const { size, blockSize } = metadata;
  const entries = batEntries(metadata.diskSize, blockSize);
  if (entries * BAT_ENTRY_SIZE > region.length) throw invalid(filename, 'BAT length');
  const parts = { file, bat: region, taken, metadata };
  if (!forCheck) {
    let sound = true;
    await checkBat(parts, (line) => {
      complain(line);
      sound = false;
      return false;
    });
    if (!sound) throw invalid(filename, 'BAT');
  }
  const bat = new Bat(file, region.at, entries);
  const writer = writable ? new Writer({ file, headers, log, bat, size, blockSize }) : undefined;
  return new VhdxNode(parts, bat, writer, replayed);
}
