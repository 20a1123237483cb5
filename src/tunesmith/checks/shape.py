"""What a text has, in a microsecond per kilobyte: whether a slower search can find anything."""

_NO_DIGIT = bytes(code for code in range(256) if not 48 <= code <= 57)

_TOKEN = (
    bytes(ord("w") if chr(code).isalnum() or chr(code) in "+/_-.=" else ord(" ") for code in range(128)) + b" " * 128
)


def digits(text: str) -> int:
    """How many ASCII digits a text has.

    Args:
        text: any text.
    """
    return len(text.encode("latin-1", "replace").translate(None, _NO_DIGIT))


def has_long_token(text: str, length: int) -> bool:
    """Whether a text has a run of ASCII letters, digits and `+/_-.=`.

    Args:
        text: any text.
        length: of the run, at least.
    """
    return b"w" * length in text.encode("latin-1", "replace").translate(_TOKEN)
