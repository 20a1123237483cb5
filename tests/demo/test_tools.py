"""Tool definitions from Python functions: types, docstrings, rows without leakage, and metrics of answers."""

import json
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
from transformers.utils import get_json_schema

from tunesmith.demo.docstrings import is_held_out, split
from tunesmith.demo.functions import packages
from tunesmith.demo.json_types import documented_type
from tunesmith.demo.tools import (
    LONGEST_ROW,
    TOOL_METRICS,
    Row,
    as_text,
    definition,
    question,
    rows,
    write_rows,
)
from tunesmith.errors import UserError


def properties(source: str) -> dict[str, Any]:
    return dict(definition(source)["parameters"]["properties"])


INTEGERS = {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("int", {"type": "integer"}),
        ("float", {"type": "number"}),
        ("bool", {"type": "boolean"}),
        ("str", {"type": "string"}),
        ("pathlib.Path", {"type": "string"}),
        ("os.PathLike[str]", {"type": "string"}),
        ("list", {"type": "array"}),
        ("List[int]", INTEGERS),
        ("collections.abc.Sequence[int]", INTEGERS),
        ("set[int]", INTEGERS),
        ("tuple[int, ...]", INTEGERS),
        ("tuple[int, str]", {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}),
        ("list[list[int]]", {"type": "array", "items": INTEGERS}),
        ("np.ndarray", {"type": "array"}),
        ("dict", {"type": "object"}),
        ("Mapping[str, int]", {"type": "object", "additionalProperties": {"type": "integer"}}),
        ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}),
        ("Literal['a', 1]", {"type": ["string", "integer"], "enum": ["a", 1]}),
        ("Optional[int]", {"type": "integer", "nullable": True}),
        ("int | None", {"type": "integer", "nullable": True}),
        ("Union[str, int]", {"type": ["integer", "string"]}),
        ("list[int] | str", {"anyOf": [INTEGERS, {"type": "string"}]}),
        ("str | Tensor", {"type": "string"}),
        ("'int | None'", {"type": "integer", "nullable": True}),
        ("Annotated[int, Option()]", {"type": "integer"}),
        ("Any", {}),
        ("Tensor", {}),
        ("list[Tensor]", {}),
        ("Callable[[int], int]", {}),
    ],
)
def test_a_type_is_that_of_the_annotation(annotation: str, expected: dict[str, Any]) -> None:
    assert properties(f"def f(x: {annotation})") == {"x": expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int, optional", {"type": "integer"}),
        ("`int`, *optional*, defaults to 5", {"type": "integer"}),
        ("float or None, default=None", {"type": "number", "nullable": True}),
        ("{'a', 'b'}, default 'a'", {"type": "string", "enum": ["a", "b"]}),
        ("list of str", {"type": "array", "items": {"type": "string"}}),
        ("list[int] or str", {"anyOf": [INTEGERS, {"type": "string"}]}),
        ("array-like of shape (n, m)", {"type": "array"}),
        ("{array-like, sparse matrix} of shape (n,)", {"type": "array"}),
        ("int, RandomState instance or None", {"type": "integer", "nullable": True}),
        ("callable", None),
        ("", None),
        ("what you like", None),
    ],
)
def test_a_type_is_read_from_a_docstring(text: str, expected: dict[str, Any] | None) -> None:
    assert documented_type(text) == expected


GOOGLE = '''
def f(x, size=2):
    """Do a thing. And more.

    Args:
        x (int): The first :class:`~a.b.Number`
            of two. Not this.
        size: How large, e.g. 3.

    Returns:
        Nothing.
    """
'''
NUMPY = '''
def f(x, size=2):
    """
    Do a thing.

    Parameters
    ----------
    x : int
        The first ``a.b.Number`` of two.
        Not this.
    size
        How large, e.g. 3.

    Returns
    -------
    None
    """
'''
SPHINX = '''
def f(x, size=2):
    """Do a thing.

    :param int x: The first *a.b.Number* of two. Not this.
    :param size: How large, e.g. 3.
    :returns: Nothing.
    """
'''


@pytest.mark.parametrize("source", [GOOGLE, NUMPY, SPHINX])
def test_descriptions_are_first_sentences_in_each_docstring_style(source: str) -> None:
    assert definition(source) == {
        "name": "f",
        "description": "Do a thing.",
        "parameters": {
            "type": "object",
            "properties": {
                "x": {"type": "integer", "description": "The first a.b.Number of two."},
                "size": {"type": "integer", "description": "How large, e.g. 3.", "default": 2},
            },
            "required": ["x"],
        },
    }


@pytest.mark.parametrize("source", [GOOGLE, NUMPY, SPHINX])
def test_the_question_has_the_parameters_but_not_the_rest_of_the_docstring(source: str) -> None:
    text = question(f"{source}    secret_body()\n")
    assert "def f(x, size=2):\n" in text
    for part in ("Do a thing.", "Not this.", "How large"):
        assert part in text
    for part in ("Returns", ":returns", "Nothing", "secret_body"):
        assert part not in text


def test_the_docstring_types_a_parameter_before_its_default_does() -> None:
    assert properties('def f(x=1):\n    """\n    :param float x: text\n    """')["x"]["type"] == "number"
    assert properties("def f(x=1, y=None, z=[], w={}, v=a.b)") == {
        "x": {"type": "integer", "default": 1},
        "y": {},
        "z": {"type": "array"},
        "w": {"type": "object"},
        "v": {},
    }


def test_only_parameters_without_default_are_required() -> None:
    tool = definition("def f(a: int, /, b: str = 'x', *args, c: float, d: float = -0.5, e: int | None = None, **more)")
    assert tool["parameters"]["required"] == ["a", "c"]
    given = tool["parameters"]["properties"]
    assert list(given) == ["a", "b", "c", "d", "e"]
    assert {name: schema["default"] for name, schema in given.items() if "default" in schema} == {"b": "x", "d": -0.5}
    assert "required" not in definition("def f(a=1)")["parameters"]


def test_a_method_has_no_self_but_an_annotated_self_is_a_parameter() -> None:
    assert list(properties("    @classmethod\n    async def f(cls, a: int): return a")) == ["a"]
    assert list(properties("def f(self, a: int = 1)")) == ["a"]
    assert list(properties("def f(self: int)")) == ["self"]


@pytest.mark.parametrize(
    "source",
    ["def f(x: int)", "def f(x: int):", "def f(x: int): ...", "def f(x: int):\n    return x", "  def f(x: int)"],
)
def test_a_function_needs_no_body(source: str) -> None:
    text = (
        '{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}'
    )
    assert as_text(definition(source)) == text
    assert "```python\ndef f(x: int): ...\n```" in question(source)


@pytest.mark.parametrize(
    "source",
    ["", "hello there", "x = 1", "class A: pass", "lambda x: x", "def f(x", "def f(): ...\ndef g(): ...", "f(x)", "\0"],
)
def test_anything_but_one_function_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(UserError, match=r"Give one.*def add") as error:
        definition(source)
    assert "\n" not in str(error.value)


def test_a_name_that_no_client_accepts_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be the name of a tool"):
        definition(f"def {'f' * 65}(x: int)")


ANNOTATED = '''
def f(
    a: int, b: float, c: str, d: bool, e: list[str], g: dict[str, int], h: Optional[int], i: Literal["x", "y"],
    j: Union[int, str], k: tuple[int, str], l: Any, m: list[int] | str | None = None, n: int = 3,
):
    """Describe it

    Args:
        a: One
        b: Two
        c: Three
            on two lines
        d: Four
        e: Five
        g: Six
        h: Seven
        i: Eight
        j: Nine
        k: Ten
        l: Eleven
        m: Twelve
        n: Thirteen

    Returns:
        Nothing
    """
'''


def test_definitions_are_those_of_transformers_plus_default_values() -> None:
    scope: dict[str, Any] = {"Optional": Optional, "Literal": Literal, "Union": Union, "Any": Any}
    exec(ANNOTATED, scope)
    expected = get_json_schema(scope["f"])["function"]
    expected["parameters"]["properties"]["n"]["default"] = 3
    assert json.loads(as_text(definition(ANNOTATED))) == expected


MODULE = '''
class Box:
    def resize(self, size: int, unit: str = "cm") -> None:
        """Change the size of the {word} box.

        Args:
            size: The new size.
            unit: What it is measured in.
        """

    @property
    def size(self, x: int = 1):
        """A property is not called.

        Args:
            x: A number.
        """

    def __eq__(self, x: int):
        """A special method is not called by name.

        Args:
            x: A number.
        """

if True:
    def load_{word}(path: Path, *, strict=False):
        """Load the thing. More.

        Args:
            path: Where it is.
            strict: Whether to check it.
        """

def copied(source: str) -> str:
    """Return the same in every package.

    Args:
        source: The text.
    """

def undocumented(a: int, b: int):
    """Describe the function, which describes no parameter."""

def bare(a: int): ...

def partly(a: int, b: int):
    """Describe the function and one of its two parameters.

    Args:
        a: A number.
    """

def empty(*args):
    """Describe a function without named parameters.

    Args:
        *args: Anything.
    """

def untyped(a, b):
    """Describe parameters of unknown types.

    Args:
        a: A thing.
        b: A thing.
    """

def broken(a: int):
    """See :class:

    Args:
        a: A number.
    """

def long(a: int):
    """Describe the function with a very long part about its parameter.

    Args:
        a: {long}
    """
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for number in range(40):
        package = tmp_path / "place" / f"package{number}"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "module.py").write_text(MODULE.replace("{word}", f"w{number}").replace("{long}", "The box. " * 100))
    (package / "tests").mkdir()
    (package / "tests" / "module.py").write_text(
        'def tested(number: int):\n    """A function of a test is left out.\n\n    :param number: A number.\n    """'
    )
    (tmp_path / "place" / "single.py").write_text(
        'def alone(number: int):\n    """Stand alone in a module.\n\n    :param number: A number.\n    """'
    )
    (tmp_path / "place" / "not_python").mkdir()
    (tmp_path / "place" / "broken.py").write_text("def (")
    return tmp_path / "place"


def written(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_rows_are_of_ordinary_functions_and_methods(place: Path) -> None:
    found = rows(packages([place]))
    names = {row.name for row in found}
    assert {name for name in names if "package7." in name} <= {
        "package7.module.resize",
        "package7.module.load_w7",
        "package7.module.copied",
    }
    assert {"package7.module.resize", "package7.module.load_w7", "single.alone"} <= names
    assert sum(name.endswith(".copied") for name in names) == 1
    assert not any("tested" in name for name in names)
    row = next(row for row in found if row.name == "package7.module.resize")
    assert row.module == "package7.module"
    assert json.loads(row.answer) == definition(row.question.split("```python\n")[1].removesuffix("```"))


def test_no_package_is_on_both_sides_and_no_held_out_answer_is_trained(place: Path, tmp_path: Path) -> None:
    train, held_out, counts = write_rows(tmp_path / "data", found=packages([place]))
    sides = [written(train), written(held_out)]
    tops = [{row["module"].partition(".")[0] for row in side} for side in sides]
    assert tops[0]
    assert tops[1]
    assert not tops[0] & tops[1]
    assert all(is_held_out(top, 0.2) for top in tops[1])
    assert not {row["answer"] for row in sides[0]} & {row["answer"] for row in sides[1]}
    assert [len(side) for side in sides] == [counts["train"], counts["held_out"]]
    assert [len(side) for side in tops] == [counts["train_packages"], counts["held_out_packages"]]


def test_a_held_out_row_whose_answer_is_trained_is_removed() -> None:
    held_out = next(name for name in map("p{}".format, range(100)) if is_held_out(name, 0.2))
    trained = next(name for name in map("p{}".format, range(100)) if not is_held_out(name, 0.2))
    same, other = Row("q", '{"name": "F"}', f"{held_out}.a", "f"), Row("q", '{"name": "g"}', held_out, "g")
    row = Row("q", '{"name": "f"}', trained, "f")
    assert split([same, row, other], 0.2) == ([row], [other], 1)


def test_the_counts_add_up(place: Path, tmp_path: Path) -> None:
    _, _, counts = write_rows(tmp_path / "data", found=packages([place]))
    left_out = {name: count for name, count in counts.items() if name.startswith("left out: ")}
    assert counts["rows"] == counts["train"] + counts["held_out"] + counts["held_out_removed"]
    *few, fewer = write_rows(tmp_path / "few", found=packages([place]), most_held_out=2, most_train=3)
    assert [len(written(file)) for file in few] == [fewer["train"], fewer["held_out"]] == [3, 2]
    assert fewer["train_not_written"] == counts["train"] - 3
    assert fewer["held_out_not_written"] == counts["held_out"] - 2
    assert counts["functions"] == counts["rows"] + sum(left_out.values()) == 40 * 8 + 1
    assert left_out == {
        "left out: a description that is not one plain sentence": 40,
        "left out: a parameter without a JSON type": 40,
        f"left out: more than {LONGEST_ROW} characters": 40,
        "left out: without a description, or with a parameter that has none": 40,
        "left out: without parameters": 40,
        "left out: the same function again": 39,
    }


def test_the_same_installation_gives_the_same_files(place: Path, tmp_path: Path) -> None:
    files = [write_rows(tmp_path / name, found=packages([place]))[:2] for name in ("a", "b")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    first = [row["module"].partition(".")[0] for row in written(files[0][0])][:20]
    assert len(set(first)) > 10  # the packages are mixed


def test_training_rows_have_one_two_and_more_parameters_in_turn_while_there_are_such(
    place: Path, tmp_path: Path
) -> None:
    (place / "wide.py").write_text(
        'def wide(a: int, b: int, c: int, d: int):\n    """Add four numbers.\n\n    Args:\n'
        '        a: One.\n        b: Two.\n        c: Three.\n        d: Four.\n    """'
    )
    train, _, _ = write_rows(tmp_path / "data", share=0, found=packages([place]))
    counts = [len(json.loads(row["answer"])["parameters"]["properties"]) for row in written(train)]
    assert counts[:7] == [1, 2, 4, 1, 2, 2, 2]


def test_a_large_package_gives_a_limited_number_of_rows(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "".join(f'def f{n}(x: int):\n    """Describe {n}.\n\n    :param x: A number.\n    """\n' for n in range(400))
    )
    assert len(rows(packages([tmp_path]))) == 150


def test_rows_of_this_installation_are_definitions_with_types_and_plain_descriptions() -> None:
    names = {"rich", "peft", "sklearn", "transformers"}
    found = rows(package for package in packages() if package.name in names)
    assert len(found) > 100
    for row in found:
        tool = json.loads(row.answer)
        assert all(parameter.keys() >= {"description"} for parameter in tool["parameters"]["properties"].values())
        assert all(
            parameter.keys() - {"description", "default"} for parameter in tool["parameters"]["properties"].values()
        )
        assert tool["description"]
        assert tool["parameters"]["properties"]
        assert TOOL_METRICS["valid_definition"].score(row.answer, row.answer) == 1
        assert len(row.question) + len(row.answer) <= LONGEST_ROW
        assert "\n" not in row.answer
        assert ":class:" not in row.answer
    assert {row.module.partition(".")[0] for row in found} == names


EXPECTED = as_text(definition(GOOGLE))
VALID = '{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}'


def score(name: str, answer: str, expected: str = EXPECTED) -> float:
    return TOOL_METRICS[name].score(answer, expected)


def test_an_equal_answer_has_every_metric_at_one() -> None:
    reordered = json.dumps(json.loads(EXPECTED), sort_keys=True, indent=2)
    for answer in (EXPECTED, reordered, f"```json\n{EXPECTED}\n```", f" ```\n{reordered}```\n"):
        assert [score(name, answer) for name in TOOL_METRICS] == [1.0] * 4


@pytest.mark.parametrize(
    "answer",
    ["", "{", EXPECTED[:-1], f"Here it is: {EXPECTED}", f"{EXPECTED} {EXPECTED}", "NaN", "[" * 100_000, "```json"],
)
def test_an_answer_that_is_not_json_scores_zero(answer: str) -> None:
    assert [score(name, answer) for name in TOOL_METRICS] == [0.0] * 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"integer"', '"int"'),
        ('"object"', '"array"'),
        ('"type": "integer"', '"type": "integer", "extra": 1'),
        ('"type": "integer"', '"items": 3'),
        ('"type": "integer"', '"enum": []'),
        ('"name": "f"', '"name": "f g"'),
        ('"name": "f", ', ""),
        ('"integer"}}}', '"integer"}}, "required": ["y"]}'),
        ('"integer"}}}', '"integer"}}, "required": ["x", "x"]}'),
        ('"integer"}}}', '"integer"}}, "required": "x"}'),
    ],
)
def test_json_that_no_client_accepts_is_not_a_valid_definition(old: str, new: str) -> None:
    assert score("valid_definition", VALID) == 1
    assert VALID.count(old) == 1
    answer = VALID.replace(old, new)
    assert score("valid_json", answer) == 1
    assert score("valid_definition", answer) == 0


def test_exactly_right_compares_parsed_values() -> None:
    for answer, expected, exact in (
        ('{"a": 1, "b": [1, 2]}', '{"b":[1,2],"a":1}', 1),
        ('{"b": [2, 1]}', '{"b": [1, 2]}', 0),
        ('{"a": true}', '{"a": 1}', 0),
        ('{"a": 1.0}', '{"a": 1}', 1),
        ('{"a": 1}', '{"a": 1, "b": 2}', 0),
    ):
        assert score("exactly_right", answer, expected) == exact
