"""Pages of PDFs: CPU milliseconds to count, draw, resize and read the text of one, dense text and scans.

python benchmarks/pdf.py
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.pictures import fit_picture
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.media.pdf import Document, count_pages

PAGES, ROUNDS, LINES = 20, 5, 50
PREPROCESS = Preprocess(224, (0.5,) * 3, (0.5,) * 3)
LINE = "The quick brown fox jumps over the lazy dog while nobody counts the letters of it"


def text_pdf() -> bytes:
    """Return a PDF of A4 pages, full of text of 10 points."""
    lines = "".join(f"1 0 0 1 40 {800 - 15 * line} Tm ({line} {LINE}) Tj " for line in range(LINES))
    drawn = f"BT /F 10 Tf {lines} ET"
    kids = " ".join(f"{5 + place} 0 R" for place in range(PAGES))
    page = "<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F 3 0 R>>>>/Contents 4 0 R>>"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {PAGES}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream",
        *[page] * PAGES,
    ]
    body = "".join(f"{number} 0 obj\n{content}\nendobj\n" for number, content in enumerate(objects, 1))
    return f"%PDF-1.4\n{body}trailer<</Root 1 0 R>>\n".encode()  # without a table: pdfium makes it


def scanned_pdf() -> bytes:
    """Return a PDF of A4 pages that are JPEGs of 150 dots an inch."""
    coarse = np.random.default_rng(0).integers(0, 256, (44, 31, 3), dtype=np.uint8)
    scan = Image.fromarray(coarse).resize((1240, 1754))
    file = io.BytesIO()
    scan.save(file, "PDF", save_all=True, append_images=[scan] * (PAGES - 1), resolution=150)
    return file.getvalue()


def milliseconds(action: Callable[[int], object], pages: int = PAGES) -> float:
    """Return the CPU time for each page, the least of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for page in range(1, pages + 1):
            action(page)
        best = min(best, (time.process_time() - start) / pages * 1000)
    return best


def main() -> None:
    print("| | count the pages | draw | resize | text |\n|---|---|---|---|---|")
    for name, data in (("text", text_pdf()), ("scans", scanned_pdf())):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "a.pdf"
            path.write_bytes(data)
            counting = milliseconds(lambda _, path=path: count_pages(str(path)))
        document = Document(data)
        image = document.render(1, PREPROCESS.least_size)
        drawing = milliseconds(lambda page, document=document: document.render(page, PREPROCESS.least_size))
        fitting = milliseconds(lambda _, image=image: fit_picture(image, PREPROCESS, PictureConfig()))
        reading = milliseconds(lambda page, document=document: document.text(page))
        print(f"| {name} | {counting:.2f} | {drawing:.2f} | {fitting:.2f} | {reading:.2f} |")
        document.close()


if __name__ == "__main__":
    main()
