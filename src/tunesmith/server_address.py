"""How a model on a server is named: `http://HOST:PORT/v1#MODEL`, or without `#MODEL` the first one that it lists."""


def is_address(name: str) -> bool:
    """Whether a model's name is that of one on a server.

    Args:
        name: as a user gives it.
    """
    return name.startswith(("http://", "https://"))


def address_and_model(name: str) -> tuple[str, str | None]:
    """The two parts of such a name.

    Args:
        name: as a user gives it.

    Returns:
        The server's address, and the model's name there; None: its first one.
    """
    address, _, model = name.partition("#")
    return address, model or None
