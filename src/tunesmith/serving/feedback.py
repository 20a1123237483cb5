"""Feedback on responses: kept in a file, each with what was asked and answered, as rows to learn from later."""

import json
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tunesmith.run import writing

MOST_BYTES = 64_000_000
"""Of recent responses in memory; feedback on older ones comes too late."""

MOST_FILE_BYTES = 1_000_000_000
"""Of the file: clients cannot fill the disk."""


class Feedback:
    """Args:
    file: JSONL, to which feedback is appended; only its owner can read it if it is made here.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._recent: OrderedDict[str, str] = OrderedDict()
        self._bytes = 0
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())

    def _open(self) -> int:
        return os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def remember(self, identity: str, response: dict[str, Any]) -> None:
        """Keep a response in memory for a while.

        Args:
            identity: of the response.
            response: what was asked and answered.
        """
        text = json.dumps(response, ensure_ascii=False)
        self._recent[identity] = text
        self._bytes += len(text)
        while self._bytes > MOST_BYTES and len(self._recent) > 1:
            self._bytes -= len(self._recent.popitem(last=False)[1])

    def row(self, identity: str, client: str, opinion: dict[str, Any]) -> dict[str, Any] | None:
        """Feedback with the response that it is about.

        Args:
            identity: of the response.
            client: whose key it came with.
            opinion: thumb, better answer, comment.

        Returns:
            The row; None if the response is not known, or not this client's.
        """
        text = self._recent.get(identity)
        response = None if text is None else json.loads(text)
        if response is None or response["client"] != client:
            return None
        return {"id": identity, **response, **opinion, "feedback_time": int(time.time())}

    def append(self, row: dict[str, Any]) -> bool:
        """Append a row to the file. To be called on one thread.

        Args:
            row: from `row`.

        Returns:
            Whether the file has room for it.
        """
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with os.fdopen(self._open(), "ab") as out:
            if out.tell() + len(line) > MOST_FILE_BYTES:
                return False
            out.write(line)
            out.flush()
            os.fsync(out.fileno())
        return True
