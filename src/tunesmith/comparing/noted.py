"""What a comparison measured once, such as the time to index, for a later call that finds the work done."""

import json
from dataclasses import dataclass
from pathlib import Path

from tunesmith.run import atomic_write


@dataclass(frozen=True, slots=True)
class Noted:
    """Values by name in a file.

    Attributes:
        file: in JSON; it need not exist.
    """

    file: Path

    def __getitem__(self, name: str) -> float:
        """The value; 0 if there is none."""
        return self._values().get(name, 0.0)

    def note(self, name: str, value: float) -> None:
        """Keep a value, in place of the one that there is.

        Args:
            name: of the value.
            value: to keep.
        """
        values = {**self._values(), name: value}
        with atomic_write(self.file) as out:
            json.dump(values, out, indent=2)

    def note_longest(self, name: str, seconds: float) -> None:
        """Keep how long something took, unless it took longer once: then a cache had some of it this time.

        Args:
            name: of what took this long.
            seconds: that it took.
        """
        self.note(name, max(seconds, self[name]))

    def _values(self) -> dict[str, float]:
        return dict(json.loads(self.file.read_text(encoding="utf-8"))) if self.file.exists() else {}
