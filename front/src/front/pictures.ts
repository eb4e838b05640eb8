// Pictures that are dropped or pasted: made small before they are sent, and kept for this tab.

import { toBase64 } from "./vectors";

const LONGEST_SIDE = 768; // pixels; models look at 224 to 448
const THUMBNAIL_SIDE = 96;
const MOST_KEPT = 12;
const PREFIX = "clip-retrieval picture ";

export type Prepared = { base64: string; thumbnail: string | null };

/** Return a picture file as base64, no larger than models need; unchanged if this browser cannot read it. */
export async function preparePicture(file: Blob): Promise<Prepared> {
  let picture: ImageBitmap;
  try {
    picture = await createImageBitmap(file);
  } catch {
    return { base64: toBase64(new Uint8Array(await file.arrayBuffer())), thumbnail: null };
  }
  try {
    const large = draw(picture, LONGEST_SIDE).toDataURL("image/jpeg", 0.92);
    const small = draw(picture, THUMBNAIL_SIDE).toDataURL("image/jpeg", 0.8);
    return { base64: large.slice(large.indexOf(",") + 1), thumbnail: small };
  } finally {
    picture.close();
  }
}

function draw(picture: ImageBitmap, side: number): HTMLCanvasElement {
  const scale = Math.min(1, side / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const context = canvas.getContext("2d")!;
  context.fillStyle = "#fff"; // transparent parts become white, as in the encoder
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Keep a thumbnail or embedding for this tab; the oldest are dropped. */
export function keepPicture(key: string, value: string): void {
  try {
    const kept = Object.keys(sessionStorage).filter((name) => name.startsWith(PREFIX));
    const order = JSON.parse(sessionStorage.getItem("clip-retrieval order") ?? "[]") as string[];
    const keys = [...order.filter((name) => name !== key), key].slice(-MOST_KEPT);
    for (const name of kept) if (!keys.includes(name.slice(PREFIX.length))) sessionStorage.removeItem(name);
    sessionStorage.setItem("clip-retrieval order", JSON.stringify(keys));
    sessionStorage.setItem(PREFIX + key, value);
  } catch {
    // full, or not allowed: then the chip has no thumbnail
  }
}

export function keptPicture(key: string): string | null {
  try {
    return sessionStorage.getItem(PREFIX + key);
  } catch {
    return null;
  }
}

/** Return a short name for a long text (FNV-1a in two lanes; crypto.subtle is missing on plain http). */
export function digest(text: string): string {
  let one = 0x811c9dc5;
  let two = 0x01000193;
  for (let at = 0; at < text.length; at++) {
    one = Math.imul(one ^ text.charCodeAt(at), 0x01000193);
    two = Math.imul(two ^ text.charCodeAt(at), 0x85ebca6b);
  }
  return (one >>> 0).toString(36) + (two >>> 0).toString(36);
}
