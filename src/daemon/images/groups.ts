/** The throttle groups of the engine thread: each is shared by all held nodes that name it. */
import { ImageError } from '../../engine/error.js';
import { ThrottleGroup } from '../../engine/node/throttle-group.js';
import type { UserObject } from '../../protocol/commands/common.js';
import type { HeldNode } from './graph.js';

export class Groups {
  readonly byId = new Map<string, ThrottleGroup>();

  constructor(objects: readonly UserObject[]) {
    for (const object of objects) this.add(object);
  }

  add(object: UserObject): void {
    this.byId.set(object.id, new ThrottleGroup(object));
  }

  remove(id: string, nodes: Iterable<HeldNode>): void {
    for (const { settings, file } of nodes) {
      if (settings.driver === 'throttle' && file?.name.options['throttle-group'] === id) {
        throw new ImageError('locked', `object '${id}' is in use, can not be deleted`);
      }
    }
    this.byId.delete(id);
  }

  /** No request waits for the limits of any of them until what this returns is called. */
  lift(): () => void {
    const lifted = [...this.byId.values()].map((group) => group.lift());
    return () => {
      for (const over of lifted) over();
    };
  }
}
