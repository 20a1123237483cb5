"""Whether compiled kernels are of the sources beside them. An editable install has the sources of today, and kernels of
the day on which it was installed. Standard library only: the build runs this file by itself."""

import ctypes
import logging
import zlib
from pathlib import Path

logger = logging.getLogger("tunesmith")


def checksum(directory: Path) -> int:
    """The CRC-32 of the C sources in a directory.

    Args:
        directory: with a kernels.c.
    """
    found = 0
    for source in sorted([*directory.glob("*.c"), *directory.glob("*.h")]):
        found = zlib.crc32(source.read_bytes(), found)
    return found


def are_current(loaded: ctypes.CDLL, directory: Path) -> bool:
    """Whether kernels were compiled from the sources in a directory; logs a warning if not.

    Args:
        loaded: the library.
        directory: where it is.
    """
    if not (directory / "kernels.c").exists():  # an install without sources
        return True
    function = getattr(loaded, "source_checksum", None)
    if function is not None:
        function.restype = ctypes.c_uint32
        if function() == checksum(directory):
            return True
    logger.warning(
        "%s was built from other sources, so it is not used, and Tunesmith is slower. Install Tunesmith again.",
        directory,
    )
    return False
