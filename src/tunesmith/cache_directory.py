"""Where this machine keeps what Tunesmith can make again."""

import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """The user's cache directory for Tunesmith. It may not exist yet.

    Returns:
        `$TUNESMITH_CACHE`, else `tunesmith` under `$XDG_CACHE_HOME`, else under the platform's own place: `~/.cache`,
        `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows.
    """
    if path := os.environ.get("TUNESMITH_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or _platform_caches()) / "tunesmith"


def _platform_caches() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".cache"
