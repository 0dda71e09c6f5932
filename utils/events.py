"""TensorBoard's event files. A disk that is full, or a folder that was removed, costs these curves and not the run: metrics.jsonl has them too."""

import io
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from utils.files import append

log = logging.getLogger("neus")


class Events:
    """Appends scalars and pictures to a file in `folder`; each call reaches the file, or is dropped as a whole."""

    def __init__(self, folder: Path):
        self.path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.0"
        self.warned = False

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from torch.utils.tensorboard.summary import scalar  # slow to import, used in training only

        self._write(step, [scalar(key, value) for key, value in values.items()])

    def image(self, name: str, picture: Any, step: int) -> None:
        """picture: [H, W, 3] uint8."""
        from torch.utils.tensorboard.summary import image

        self._write(step, [image(name, picture, dataformats="HWC")])

    def _write(self, step: int, summaries: list) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = io.BytesIO()
        records, now = RecordWriter(buffer), time.time()
        if not self.path.exists():
            records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for summary in summaries:
            records.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
        try:
            append(self.path, buffer.getvalue())
        except OSError as error:
            if not self.warned:
                log.warning(
                    "%s: cannot be written (%s); the curves of TensorBoard have gaps, metrics.jsonl has all", self.path, error.strerror
                )
            self.warned = True
