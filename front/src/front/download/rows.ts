// Hits as files: json, csv, ids.

import type { Hit } from "../api/back";

export function flat(hit: Hit): Record<string, unknown> {
  const { id, similarity, surprise, metadata } = hit;
  const found = similarity === null ? {} : { similarity };
  return { ...metadata, id, ...found, ...(surprise === undefined ? {} : { surprise }) };
}

export function asJson(hits: Hit[]): string {
  return `[\n${hits.map((hit) => JSON.stringify(flat(hit))).join(",\n")}\n]\n`;
}

export function asIds(hits: Hit[]): string {
  return hits.map(({ id }) => `${id}\n`).join("");
}

/** Return RFC 4180 CSV with a line of names; lists and objects are JSON. */
export function asCsv(hits: Hit[]): string {
  const rows = hits.map(flat);
  const names = [...new Set(["id", "similarity", ...rows.flatMap(Object.keys)])];
  const lines = [names, ...rows.map((row) => names.map((name) => row[name]))];
  return lines.map((line) => line.map(asField).join(",")).join("\r\n") + "\r\n";
}

function asField(value: unknown): string {
  if (value === null || value === undefined) return "";
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

export function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
