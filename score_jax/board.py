"""A TensorBoard event file of scalars, each written at once.

tensorboardX's own writer hands events to a thread, which ends if the disk is full, and the program
then waits for it for ever. The file is a sequence of TFRecords: length, its checksum, data, their
checksum.
"""

import os
import socket
import struct
import time
from pathlib import Path

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from score_jax import files


class Board:
    """Appends to a new event file in a folder.

    Args:
      start: the last step that counts; what earlier files have after it, TensorBoard does not show.
    """

    def __init__(self, folder: Path, start: int):
        with files.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(file_version="brain.Event:2")
        self._write(step=start + 1, session_log=began)

    def add(self, step: int, values: dict[str, float]):
        """Writes a step's scalars."""
        for name, value in values.items():
            self._write(step=step, summary=summary.scalar(name, value))

    def _write(self, **event):
        data = event_pb2.Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        files.append(self._path, length + next(checksums) + data + next(checksums))
