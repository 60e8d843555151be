/** What the names of nodes mean to whoever opens images: the daemon's held images, or nothing. */

import type { Permissions } from '../storage/permissions.js';
import type { Storage } from '../storage/storage.js';
import type { FormatNode } from './driver.js';
import type { FlatOptions } from './flat-options.js';
import type { ImageNode } from './image.js';
import type { OpenOptions } from './open-storage.js';
import type { Lockable, OpenedFile } from './opened-file.js';

/** A node of a graph that is being built, before and after it is there. */
export interface GraphNode {
  readonly name: string;
}

/** What a node's own options say of it; names as in QAPI. */
export interface NodeSettings {
  readonly nodeName: string | undefined;
  readonly driver: string;
  readonly readOnly: boolean;
  readonly forceShare: boolean;
  readonly direct: boolean;
  readonly noFlush: boolean;
  readonly discard: 'ignore' | 'unmap' | undefined;
  readonly detectZeroes: 'off' | 'on' | 'unmap';
}

export interface FileReopen {
  readonly writable: boolean;
  readonly direct: boolean;
  readonly noFlush: boolean;
  readonly discard: 'ignore' | 'unmap' | undefined;
}

export interface LayerParts {
  readonly image: ImageNode;
  /** What its file is locked for; undefined where that is whatever its users need (raw). */
  readonly passes: boolean;
  /** Locks the file for what users of the image need, where it passes that on. */
  lockFile(permissions: Permissions): void;
  /** Opens the format anew on the file that is there; what it had open is closed. */
  reload(change: LayerReload): Promise<void>;
  /** The format on another storage of the same bytes, for writing, beside the one that is held. */
  rehearse(file: Storage): Promise<FormatNode>;
}

export interface LayerReload {
  /** The driver's own options; the ones that it was opened with where absent. */
  readonly options?: FlatOptions;
  readonly writable: boolean;
  /** Whether its backing file is opened anew too, as the image or the options say now. */
  readonly backing: 'keep' | 'open';
}

export interface NodeScope {
  /** A held node as an operation's image; closing it lets go of it and no more. */
  image(name: string, options: OpenOptions): Promise<ImageNode>;
  /** A held node as the bytes below another. */
  storage(
    name: string,
    use: { readonly child: string; readonly writable: boolean; readonly parent: GraphNode | undefined },
  ): Promise<OpenedFile>;
  /** A held node as the backing file of another. */
  backing(name: string, parent: GraphNode | undefined): Promise<ImageNode>;
  /** What is locked for the use of a view (of `backing`, or of the builder's): the node that it is of. */
  lockables(view: ImageNode): readonly Lockable[];
  /** Present while nodes that are to be held are opened: told of each, children first. */
  readonly builder?: GraphBuilder;
}

export interface GraphBuilder {
  /** A node is about to be opened. Throws where its name is taken or is none. */
  begin(settings: NodeSettings): GraphNode;
  /** A storage was opened; gives what the node above is to use in its place. */
  storage(
    node: GraphNode,
    opened: OpenedFile,
    how: {
      readonly child: string;
      readonly parent: GraphNode | undefined;
      /** Opens the file anew, in place of `from`. */
      readonly reopen?: (
        to: FileReopen,
        locks: Permissions,
        from: OpenedFile['storage'],
      ) => Promise<OpenedFile['storage']>;
    },
  ): OpenedFile;
  /** A layer's file is there, its backing file not yet. */
  place(node: GraphNode): void;
  layer(node: GraphNode, parts: LayerParts): void;
  /** A child of the node that holds guest data and nothing else. */
  data(node: GraphNode, child: string, lockables: readonly Lockable[]): void;
  /** The layer as the backing file, or as the file, of a node above. */
  view(node: GraphNode, child: string, parent: GraphNode | undefined): ImageNode;
}
