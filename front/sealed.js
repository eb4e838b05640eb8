// A vite plugin for pages of one file: a Content-Security-Policy of hashes, so only the page's own script runs, for any
// caption, and nothing is fetched. Pictures may be data, or files next to the page.
import { createHash } from "node:crypto";

const digest = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
const bodies = (html, tag) => [...html.matchAll(new RegExp(`<${tag}\\b([^>]*)>([\\s\\S]*?)</${tag}>`, "g"))];

export function policyOf(html) {
  const scripts = bodies(html, "script").filter(([, attributes]) => !attributes.includes("application/json"));
  const rules = {
    "default-src": ["'none'"],
    "script-src": scripts.map(([, , body]) => digest(body)),
    "style-src": bodies(html, "style").map(([, , body]) => digest(body)),
    "img-src": ["data:", "file:", "'self'"],
    "base-uri": ["'none'"],
    "form-action": ["'none'"],
  };
  return Object.entries(rules).map(([name, values]) => [name, ...values].join(" ")).join("; ");
}

export function sealed() {
  return {
    name: "sealed",
    enforce: "post",
    generateBundle: {
      order: "post", // after everything was put into the page
      handler(_, bundle) {
        for (const file of Object.values(bundle)) {
          if (!file.fileName.endsWith(".html")) continue;
          const policy = `<meta http-equiv="Content-Security-Policy" content="${policyOf(file.source)}">`;
          file.source = file.source.replace("<head>", () => `<head>\n    ${policy}`);
        }
      },
    },
  };
}
