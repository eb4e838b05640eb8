"""Reader processes that really hang, for tests of what becomes of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, Path]:
    """Give a picture over which Pillow sleeps in reader processes, and the file that appears when one begins to.

    Holds for readers of this process, and of commands that it starts.
    """
    folder, picture = tmp_path / "startup", b"this picture hangs"
    folder.mkdir()
    begun = folder / "begun"
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'readers.process' in ' '.join(sys.orig_argv):\n"
        "    import pathlib, time\n"
        "    from PIL import Image\n"
        "    open_picture = Image.open\n"
        "    def open_or_hang(file, *arguments, **options):\n"
        f"        if file.getvalue() == {picture!r}:\n"
        f"            pathlib.Path({str(begun)!r}).touch()\n"
        "            time.sleep(120)\n"
        "        return open_picture(file, *arguments, **options)\n"
        "    Image.open = open_or_hang\n"
    )
    monkeypatch.syspath_prepend(folder)  # start_module hands sys.path on
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep))
    return picture, begun
