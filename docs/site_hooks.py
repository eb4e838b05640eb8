"""For mkdocs: pages of the repository outside of docs/ become pages of the site, and links to them lead there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "measurements.md",
    "clip_retrieval/demo/model/README.md": "demo-model.md",
    "packaging/light/README.md": "light.md",
}
SOURCE_OF = {page: source for source, page in OUTSIDE.items()}
LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"(!\[[^\]]*\])\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are outside of docs/, and a list of the decisions."""
    from mkdocs.structure.files import File  # only `make docs` has mkdocs

    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "decisions/index.md", content=list_decisions()))
    return files


def list_decisions() -> str:
    """Return a page with a link to each decision."""
    lines = []
    for path in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"* [{title}]({path.name})")
    return "\n".join(["# Why it is so", "", *lines, ""])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to pages of the site; links to other files of the repository become plain text."""
    name = page.file.src_uri
    source = SOURCE_OF.get(name, f"docs/{name}")
    markdown = PICTURE.sub(lambda found: f"{found[1]}({relative(found[2], source, name) or found[2]})", markdown)
    return LINK.sub(lambda found: rewrite(found, source, name), markdown)


def rewrite(found: re.Match[str], source: str, name: str) -> str:
    words, target, anchor = found[1], found[2], found[3] or ""
    if "://" in target or target.startswith("mailto:"):
        return found[0]
    link = relative(target, source, name)
    return words if link is None else f"[{words}]({link}{anchor})"


def relative(target: str, source: str, name: str) -> str | None:
    """Return the link from a page of the site to the target of a repository link; None if that is not a page."""
    if "://" in target:
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path == "docs/decisions":
        path = "docs/decisions/index.md"
    page = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    return None if page is None else posixpath.relpath(page, posixpath.dirname(name) or ".")
