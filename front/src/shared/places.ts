// The place of a picture in its file: a page of a PDF, a frame of a video. clip_retrieval/media/places.py writes the paths.

export type Place = { kind: "page" | "moment"; file: string; fragment: string; words: string };

/** Return the place in a path, as browsers open it (#page=3, #t=12.5) and in words (page 3, 0:12.5); null if it has none. */
export function placeIn(path: unknown): Place | null {
  const found = /^(.*\.\w+)(#(?:page=(\d+)|t=(\d+)(\.\d+)?))$/s.exec(typeof path === "string" ? path : "");
  if (!found) return null;
  const [, file, fragment, page, seconds, rest] = found as unknown as string[];
  const words = page ? `page ${page}` : `${clock(Number(seconds))}${rest ?? ""}`;
  return { kind: page ? "page" : "moment", file: file!, fragment: fragment!, words };
}

/** Return the label of a button that opens the place. */
export const leadTo = ({ kind, words }: Place): string => (kind === "page" ? `Page ${words.slice(5)}` : `Play at ${words}`);

/** Return the last part of a path after its place: "0:12.5 · film.mp4"; a long name may be cut off. */
export function lastPart(path: string): string {
  const place = placeIn(path);
  const part = (place?.file ?? path).split(/[/\\]/).filter(Boolean).pop() ?? "";
  return place && part ? `${place.words} · ${part}` : part;
}

function clock(seconds: number): string {
  const pad = (value: number) => String(value).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}
