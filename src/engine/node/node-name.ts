/** What a node is called: a plain name where one says all, else its options as JSON. */
import { flatJson } from '../../protocol/dictionary.js';
import type { FlatOptions, FlatValue } from './flat-options.js';
import type { NodeName } from './image.js';

/** The name as `info` and messages show it. */
export function shownName(name: NodeName): string {
  return name.plain ?? `json:${flatJson(name.options)}`;
}

/** A host file, or anything else that a filename alone opens. */
export function fileName(driver: string, filename: string): NodeName {
  return { plain: filename, options: { driver, filename }, home: filename };
}

/** Options of formats that change what the guest sees: with these, the file's name alone is another image. */
const TELLING = ['offset', 'size', 'force_size_calc', 'key-secret', 'encrypt.key-secret'];

/** A format on its file: called as the file, where that is no other image and no option matters. */
export function imageName(driver: string, file: NodeName, flat: FlatOptions, onImage: boolean): NodeName {
  const own: Record<string, FlatValue> = {};
  for (const [key, value] of flat.entries()) if (TELLING.includes(key)) own[key] = value;
  return {
    plain: onImage || Object.keys(own).length > 0 ? undefined : file.plain,
    options: { ...own, driver, file: file.options },
    home: file.home,
  };
}
