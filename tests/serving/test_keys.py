"""Keys: who is who, and how many tokens are left to each."""

from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.serving.keys import Client, Keys, add_key, read_keys, remove_key

HASH = "0123456789abcdef" * 4
"""Of a key, in hexadecimal."""


class Clock:
    """A time that passes when it is asked to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_tokens_of_a_minute_come_back_by_the_second() -> None:
    clock = Clock()
    client = Client("mine", None, 120, clock)  # two a second
    assert client.reserve(120) is None
    assert client.reserve(1) == 1
    assert client.reserve(7) == 4
    clock.seconds += 3.5
    assert client.reserve(8) == 1
    assert client.reserve(7) is None
    client.give_back(5)
    assert client.reserve(6) == 1
    assert client.reserve(5) is None
    clock.seconds += 10_000
    assert client.reserve(121) is None, "a minute's tokens pay for one that needs more"
    assert client.reserve(1) == 1
    clock.seconds += 10_000
    client.give_back(1000)
    assert client.reserve(60) is None
    assert client.reserve(61) == 1, "no more than a minute's tokens are kept"


def test_without_a_limit_tokens_are_not_counted() -> None:
    client = Client()
    assert [client.reserve(10**9) for _ in range(3)] == [None] * 3
    assert client.may_use("anything")
    assert [Client(models=("one",)).may_use(name) for name in ("one", "two")] == [True, False]


def test_a_key_is_known_by_its_hash_in_a_bearer_header(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key, other = add_key(file, "mine", ("llama",), 500), add_key(file, "other")
    assert key.startswith("ts-")
    assert len(key) > 40
    keys = Keys(read_keys(file))
    assert not keys.are_none
    for header in (f"Bearer {key}", f"bearer  {key} "):
        client = keys.client(header)
        assert client is not None
        assert (client.name, client.models, client.tokens_per_minute) == ("mine", ("llama",), 500)
        assert client is keys.client(f"Bearer {key}"), "its tokens are counted together"
    found = keys.client(f"Bearer {other}")
    assert found is not None
    assert (found.name, found.models, found.tokens_per_minute) == ("other", None, None)
    for header in (None, "", key, f"Basic {key}", f"Bearer {key}x", "Bearer"):
        assert keys.client(header) is None
    assert Keys().are_none
    assert Keys().client(None) is not None


def test_a_removed_key_is_not_known_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    for name in ("one", "two", "three"):
        add_key(file, name)
    remove_key(file, "two")
    assert [each.name for each in read_keys(file)] == ["one", "three"]
    with pytest.raises(UserError, match=r"keys\.json has no key named two\. It has: one, three\.$"):
        remove_key(file, "two")
    with pytest.raises(UserError, match=r"has a key named one already\. Remove it first, or choose another name\.$"):
        add_key(file, "one")
    assert [each.name for each in read_keys(file)] == ["one", "three"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"keys\.json cannot be read: No such file or directory\. Make it with: tunesmith keys add \S+ NAME$"),
        ("{", r"cannot be read: Invalid JSON.* Make it with"),
        ('[{"name": "a", "sha256": "b"}]', r"cannot be read: String should match pattern"),
        (f'[{{"name": "a", "sha256": "{HASH}", "right": 1}}]', r"cannot be read: Extra inputs are not permitted"),
        (
            f'[{{"name": "a", "sha256": "{HASH}", "tokens_per_minute": 0}}]',
            r"cannot be read: Input should be greater than or equal to 1",
        ),
        ("[]", r"keys\.json has no key\. Add one with: tunesmith keys add \S+ NAME$"),
    ],
)
def test_a_file_without_keys_is_refused(content: str | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=reason):
        read_keys(file)
