// The pages, each a folder of src/ with an index.html. `front` is served as separate files, since its
// Content-Security-Policy allows no inline script; every other page becomes one file that opens from a disk.
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { viteSingleFile } from "vite-plugin-singlefile";
import { sealed } from "./sealed.js";

const SERVED = ["front"];

export function pageConfig(page, outDir) {
  const isServed = SERVED.includes(page);
  return {
    configFile: false,
    root: new URL(`src/${page}/`, import.meta.url).pathname,
    publicDir: isServed ? "public" : false,
    base: "./",
    logLevel: "warn",
    plugins: [svelte({ compilerOptions: { runes: true } }), ...(isServed ? [] : [viteSingleFile(), sealed()])],
    build: {
      outDir: isServed ? `${outDir}/${page}` : outDir,
      emptyOutDir: isServed,
      target: "es2022",
      modulePreload: false,
      assetsInlineLimit: isServed ? 0 : undefined,
      reportCompressedSize: false,
      rolldownOptions: {
        input: new URL(`src/${page}/index.html`, import.meta.url).pathname,
        output: isServed
          ? { entryFileNames: `${page}.js`, chunkFileNames: "[name].js", assetFileNames: "[name][extname]" }
          : {},
      },
    },
  };
}

// What vitest reads.
export default { plugins: [svelte()], test: { include: ["tests/**/*.test.ts"], css: true, testTimeout: 60_000 } };
