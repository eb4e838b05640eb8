// A zip of pictures, written in the browser as they arrive.

import { Zip, ZipPassThrough } from "fflate";
import type { Hit } from "../api/back";
import { Problem } from "../api/http";
import { asJson } from "./rows";

const AT_ONCE = 4;
const SUFFIXES: Record<string, string> = {
  "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif", "image/bmp": "bmp",
  "image/tiff": "tif", "image/avif": "avif", "image/x-icon": "ico",
};

export type Fetch = (hit: Hit) => Promise<Blob>;

/** Return a zip of the hits' pictures and hits.json; pictures that are not available are listed in missing.txt. */
export async function zipPictures(
  hits: Hit[],
  fetch: Fetch,
  tell: (done: number) => void,
  signal: AbortSignal,
): Promise<{ zip: Blob; missing: number }> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  const missing: string[] = [];
  let fault: Error | null = null;
  const zip = new Zip((error, part) => {
    if (error) fault = error;
    else parts.push(part as Uint8Array<ArrayBuffer>);
  });
  const put = (name: string, bytes: Uint8Array) => {
    const file = new ZipPassThrough(name); // pictures are already compressed
    zip.add(file);
    file.push(bytes, true);
  };
  let next = 0;
  let done = 0;
  async function work(): Promise<void> {
    for (let place = next++; place < hits.length; place = next++) {
      signal.throwIfAborted();
      const hit = hits[place]!;
      try {
        const picture = await fetch(hit);
        const bytes = new Uint8Array(await picture.arrayBuffer());
        const suffix = SUFFIXES[picture.type.split(";")[0]!] ?? "bin";
        put(`${String(place + 1).padStart(5, "0")}_${hit.id}.${suffix}`, bytes);
      } catch (error) {
        if (signal.aborted || !(error instanceof Problem) || error.kind === "away") throw error;
        missing.push(`${hit.id}\t${error.message}\n`);
      }
      tell(++done);
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  const encode = (text: string) => new TextEncoder().encode(text);
  put("hits.json", encode(asJson(hits)));
  if (missing.length) put("missing.txt", encode(missing.join("")));
  zip.end();
  if (fault) throw fault as Error;
  return { zip: new Blob(parts, { type: "application/zip" }), missing: missing.length };
}
