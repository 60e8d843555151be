/** The one list of formats, raw last. A driver's code is loaded when it is first needed. */
import type { FormatDriver } from '../node/driver.js';

interface FormatEntry {
  readonly name: string;
  load(): Promise<FormatDriver>;
}

export const formats: readonly FormatEntry[] = [
  { name: 'qcow2', load: async () => (await import('./qcow2/index.js')).qcow2 },
  { name: 'vmdk', load: async () => (await import('./vmdk/index.js')).vmdk },
  { name: 'dmg', load: async () => (await import('./dmg/index.js')).dmg },
  { name: 'vdi', load: async () => (await import('./vdi/index.js')).vdi },
  { name: 'parallels', load: async () => (await import('./parallels/index.js')).parallels },
  { name: 'vpc', load: async () => (await import('./vpc/index.js')).vpc },
  { name: 'bochs', load: async () => (await import('./bochs/index.js')).bochs },
  { name: 'cloop', load: async () => (await import('./cloop/index.js')).cloop },
  { name: 'qed', load: async () => (await import('./qed/index.js')).qed },
  { name: 'qcow', load: async () => (await import('./qcow/index.js')).qcow },
  { name: 'vhdx', load: async () => (await import('./vhdx/index.js')).vhdx },
  { name: 'raw', load: async () => (await import('./raw/index.js')).raw },
];

export const driverNames: readonly string[] = formats.map((format) => format.name);

const loaded = new Map<string, Promise<FormatDriver>>();

/** The driver of that name, or undefined. */
export function loadDriver(name: string): Promise<FormatDriver | undefined> {
  const entry = formats.find((format) => format.name === name);
  if (entry === undefined) return Promise.resolve(undefined);
  let driver = loaded.get(name);
  if (driver === undefined) {
    driver = entry.load();
    loaded.set(name, driver);
  }
  return driver;
}
