"""Pictures whose bytes end with words hold or kill the worker of Spark or Ray that opens them, while a file says so.

`poison /folder` kills it, `hold /folder` makes it wait and leave its process id, while that folder has a file `poison`,
or `hold`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

if any(name in word for word in sys.orig_argv for name in ("pyspark.daemon", "default_worker.py")):
    from PIL import Image

    open_picture: Any = Image.open

    def open_or_not(file: Any, *arguments: Any, **options: Any) -> Any:
        last = file.getvalue()[-400:].split(b"\n")[-1].decode(errors="replace") if hasattr(file, "getvalue") else ""
        word, _, folder = last.partition(" /")
        while word in ("poison", "hold") and Path("/", folder, word).exists():
            Path("/", folder, f"{word}-{os.getpid()}").touch()
            if word == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)
        return open_picture(file, *arguments, **options)

    vars(Image)["open"] = open_or_not
