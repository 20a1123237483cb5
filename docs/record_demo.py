"""Runs `tunesmith demo` and records what it prints, from the training on, as the picture in README.

python docs/record_demo.py    # four minutes; writes docs/demo.svg
"""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demo.svg")
WIDTH = 80


def printed() -> str:
    """The demo's output with its colors, without the animation of the bars."""
    colors = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "tunesmith", "demo", "--directory", "runs/demo"]
        done = subprocess.run(
            command, cwd=directory, env={**os.environ, **colors}, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.replace(f"{directory}/", "")


def main() -> None:
    """Write the picture."""
    lines = printed().splitlines()
    first = next(number for number, line in enumerate(lines) if "2. Training" in line)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(Text.from_ansi("$ tunesmith demo\n…\n" + "\n".join(lines[first:])))
    console.save_svg(str(PICTURE), title="tunesmith demo")


if __name__ == "__main__":
    main()
