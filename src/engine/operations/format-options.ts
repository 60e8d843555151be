/** format-options: what `create -o` takes. */
import type { FormatOptionsParams, FormatOptionsResult } from '../../protocol/commands/format-options.js';
import type { OperationContext } from './context.js';
import { creatableDriver, creatablePath, createTable } from './create-options.js';

/** By name. With a filename, what its protocol adds is there too. */
export async function formatOptions(
  params: FormatOptionsParams,
  _context: OperationContext,
): Promise<FormatOptionsResult> {
  const driver = await creatableDriver(params.format);
  if (params.filename !== undefined) creatablePath(params.filename);
  const table = params.filename === undefined ? driver.createOptions : createTable(driver);
  // Defaults are not told: the reference's own list, whose form this has, shows none.
  const options = table.map(({ name, type, help }) => ({ name, type, help }));
  return { options: options.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)) };
}
