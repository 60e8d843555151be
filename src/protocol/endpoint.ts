/** Where daemon and clients meet when nobody says otherwise. Pure, so that both sides ask the same function. */

/**
 * Path of the Unix socket: `IMGD_SOCKET`; for root `/run/imgd/imgd.sock`; for others `imgd/imgd.sock` in XDG_RUNTIME_DIR.
 * Undefined where there is no such folder: then a path must be given.
 */
export function defaultSocketPath(
  env: Readonly<Record<string, string | undefined>>,
  uid: number | undefined,
): string | undefined {
  if (env.IMGD_SOCKET) return env.IMGD_SOCKET;
  if (uid === 0) return '/run/imgd/imgd.sock';
  const runtime = env.XDG_RUNTIME_DIR;
  return runtime?.startsWith('/') ? `${runtime.replace(/\/+$/, '')}/imgd/imgd.sock` : undefined;
}
