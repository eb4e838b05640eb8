// What a hit is called: its caption, else the name of its file, else its id.

import type { Hit } from "./api/back";

/** Return the last part of a path or address, and of a name in a tar; "" where there is none. */
export function fileOf(hit: Hit): string {
  for (const name of ["image_path", "url", "key"]) {
    const value = hit.metadata[name];
    if (typeof value !== "string") continue;
    const path = /^https?:/i.test(value) ? value.replace(/[?#].*$/, "") : value;
    const file = path.split(/[/\\]/).filter(Boolean).pop();
    if (file) return file;
  }
  return "";
}

/** Return where in its file a hit's picture is, as browsers open it (#page=3, #t=12.5), and in words; null for others. */
export function placeOf(hit: Hit): { fragment: string; words: string } | null {
  const found = /\.\w+(#(?:page=(\d+)|t=(\d+)(?:\.\d+)?))$/.exec(String(hit.metadata.image_path ?? ""));
  if (!found) return null;
  const [, fragment, page, seconds] = found;
  return { fragment: fragment!, words: page ? `Page ${page}` : `Play at ${clock(Number(seconds))}` };
}

function clock(seconds: number): string {
  const pad = (value: number) => String(value).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
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
