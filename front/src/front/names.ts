// The name of a hit: its caption, else the name of its file, else its id.

import type { Hit } from "./api/back";
import { lastPart, placeIn } from "../shared/places";

/** Return the last part of a path or address, and of a name in a tar, with the page or time; "" if there is none. */
export function fileOf(hit: Hit): string {
  for (const name of ["image_path", "url", "key"]) {
    const value = hit.metadata[name];
    if (typeof value !== "string") continue;
    const file = lastPart(/^https?:/i.test(value) && !placeIn(value) ? value.replace(/[?#].*$/, "") : value);
    if (file) return file;
  }
  return "";
}

export function nameOfHit(hit: Hit): string {
  return captionOf(hit) || fileOf(hit) || `picture ${hit.id}`;
}

export function captionOf(hit: Hit): string {
  for (const name of ["caption", "title", "text", "TEXT", "alt"]) {
    const value = hit.metadata[name];
    if (typeof value === "string" && value.trim()) return value;
  }
  return "";
}
