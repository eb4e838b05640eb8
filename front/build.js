// node build.js [FOLDER]: builds every page into the Python package, or into FOLDER. The same sources give the same bytes.
import { existsSync, readdirSync, renameSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { resolve } from "node:path";
import { build } from "vite";
import { pageConfig } from "./vite.config.js";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = resolve(process.argv[2] ?? `${here}/../clip_retrieval/pages`);
const pages = readdirSync(`${here}/src`).filter((name) => existsSync(`${here}/src/${name}/index.html`));

for (const page of pages.sort()) {
  await build(pageConfig(page, out));
  if (existsSync(`${out}/index.html`)) renameSync(`${out}/index.html`, `${out}/${page}.html`); // a page of one file
}
