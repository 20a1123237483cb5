"""Feedback on responses: kept in a file, each with what was asked and answered, as rows to learn from later."""

import json
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError

MOST_BYTES = 64_000_000
"""Of recent responses in memory; feedback on older ones comes too late."""


class Feedback:
    """Args:
    file: JSONL, to which feedback is appended.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._recent: OrderedDict[str, str] = OrderedDict()
        self._bytes = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open("a").close()
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}.") from None

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

    def store(self, identity: str, client: str, opinion: dict[str, Any]) -> bool:
        """Append feedback, with the response that it is about.

        Args:
            identity: of the response.
            client: whose key it came with.
            opinion: thumb, better answer, comment.

        Returns:
            Whether the response is known, and is this client's.
        """
        text = self._recent.get(identity)
        response = None if text is None else json.loads(text)
        if response is None or response["client"] != client:
            return False
        row = {"id": identity, **response, **opinion, "feedback_time": int(time.time())}
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        return True
