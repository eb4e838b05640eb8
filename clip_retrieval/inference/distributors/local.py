"""Workers on this machine: in this process for one device, a process each for several."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence

from clip_retrieval.errors import WorkerError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.live import Live, News
from clip_retrieval.inference.sources import Source
from clip_retrieval.inference.worker import run_worker
from clip_retrieval.options import to_json
from clip_retrieval.subprocesses import module_command, module_environment


def run_local(
    config: InferenceConfig, source: Source, partition_ids: Sequence[int], devices: Sequence[str], live: Live
) -> None:
    """Make the partitions on these devices; raises what a worker raised, as one sentence."""
    used = devices[: max(1, len(partition_ids))]
    if len(used) == 1:
        run_worker(config, partition_ids, used[0], live.teller(), source)
        return
    workers = [Worker(config, partition_ids[i :: len(used)], device, live) for i, device in enumerate(used)]
    try:
        for worker in workers:
            worker.thread.join()
    finally:
        for worker in workers:
            worker.stop()
    errors = [worker.error for worker in workers if worker.error]
    if errors:
        raise WorkerError("; ".join(errors))


class Worker:
    """One worker process, and the thread that listens to it."""

    def __init__(self, config: InferenceConfig, partition_ids: Sequence[int], device: str, live: Live) -> None:
        self.device, self.live = device, live
        self.error: str | None = None
        self.partition_ids = partition_ids
        self.process = subprocess.Popen(
            module_command("clip_retrieval.inference.worker_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=module_environment(),
        )
        assert self.process.stdin is not None
        task = {"config": to_json(config), "partition_ids": list(partition_ids), "device": device}
        self.process.stdin.write(json.dumps(task))
        self.process.stdin.close()
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        assert self.process.stdout is not None
        is_finished = False
        for line in self.process.stdout:
            message = json.loads(line)
            if "news" in message:
                self.live.hear(self.process.pid, News(**message["news"]))
            elif "error" in message:
                self.error = message["error"]
            is_finished = is_finished or message.get("finished", False)
        code = self.process.wait()
        if not is_finished and self.error is None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self.error = (
                f"the worker on {self.device} {how} while it made partitions {list(self.partition_ids)}; finished "
                "partitions are kept, run the same command to go on"
            )

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
