"""The suite `humaneval`: what it asks for, word for word, and its figures on given answers."""

import pytest
from evaluated import written
from given_subject import Context, Given

from tunesmith.errors import UserError
from tunesmith.evaluation.suites.humaneval import ASK, STOPS, HumanEval, Problem, pass_at_k, with_beginning
from tunesmith.inference.sampling import Sampling
from tunesmith.metrics.sandbox import Limits, isolation

pytestmark = pytest.mark.usefixtures("here")


ONE = {"prompt": "import re\n\ndef one():\n", "test": "def check(f):\n    assert f() == 1", "entry_point": "one"}


def test_a_function_is_asked_for_in_these_words_and_joined_with_its_beginning_and_tests() -> None:
    suite = HumanEval(written("rows.jsonl", [ONE, {**ONE, "task_id": "T/2"}]), samples="2", k="2, 1", asked="chat")
    assert [each.source for each in suite._problems] == ["rows.jsonl row 1", "T/2"]
    subject, kept = Given(lambda _: "def one():\n    return 1"), Context()
    programs = suite._programs(subject, kept.context, suite._problems)
    assert programs[0] == (
        "import re\n\n\ndef one():\n    return 1\n\ndef check(f):\n    assert f() == 1\n\ncheck(one)\n"
    )
    ((asked, sampling),) = subject.asked
    assert asked[0] == (
        "Complete this Python function. Answer with the whole function in a code block.\n\n"
        "```python\nimport re\n\ndef one():\n```"
    )
    assert sampling == Sampling(512, temperature=0.8)
    assert kept.progress == [("humaneval", 2, 2)]
    assert "{prompt}" in ASK
    assert STOPS == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert (suite._ks, suite._limits) == ([1, 2], Limits(seconds=5))
    assert HumanEval("rows.jsonl", seconds="7")._limits == Limits(seconds=7)
    assert (HumanEval("rows.jsonl")._asked, HumanEval("rows.jsonl")._ks) == ("raw", [1])


def test_code_without_the_beginning_is_put_after_it() -> None:
    problem = Problem("import re\n\ndef one():\n", "", "one", "row")
    assert with_beginning(problem, "def one():\n    return 1") == "import re\n\n\ndef one():\n    return 1"
    assert with_beginning(problem, "```\n    return 1\n```") == "import re\n\ndef one():\n    return 1"
    assert with_beginning(problem, "    x = 1\n    return x") == "import re\n\ndef one():\n    x = 1\n    return x"
    assert with_beginning(problem, "<think>def one()</think>...") == "import re\n\ndef one():\n    ..."
    other = Problem("x = 1\n", "", "one", "row")
    assert with_beginning(other, "def two(): ...") == "x = 1\ndef two(): ..."


def test_passes_are_shares_of_problems_by_the_number_of_samples() -> None:
    suite = HumanEval(written("rows.jsonl", [ONE]), samples="4", k="1,2")
    one, two = (suite._figure([1, 4], ["a", "b"], k) for k in (1, 2))
    assert [one.value, two.value] == pytest.approx([(0.25 + 1) / 2, (0.5 + 1) / 2])
    assert (one.title, two.title) == ("HumanEval pass@1", "HumanEval pass@2")
    assert (one.units, one.better, one.unit) == (["a", "b"], "higher", "share")
    network = "without a network" if isolation() == "namespace" else "with Python's sockets blocked"
    assert two.explanation == f"problems that one of 2 samples solves, estimated from 4; run {network}"
    assert [pass_at_k(5, 0, 5), pass_at_k(5, 1, 5), pass_at_k(5, 2, 1)] == pytest.approx([0.0, 1.0, 0.4])


def test_a_server_continues_no_raw_text_and_says_how_to_ask_it() -> None:
    kept = Context()
    assert HumanEval(written("rows.jsonl", [ONE])).measure(Given(), kept.context) == {}
    assert kept.left_out == {"humaneval": "a server continues no raw text; ask it with humaneval.asked=chat"}


def test_samples_of_a_problem_are_counted_together_and_the_rows_limit_the_problems() -> None:
    rows = [{**ONE, "task_id": str(n), "prompt": f"# {n}\ndef one():\n"} for n in range(3)]
    suite = HumanEval(written("rows.jsonl", rows), samples="2", asked="chat")
    code = iter(["return 1", "return 2", "return 2", "return 2"])
    kept = Context(count=2)
    found = suite.measure(Given(lambda _: f"```\n    {next(code)}\n```"), kept.context)
    assert found["pass_at_1"].values is not None
    assert found["pass_at_1"].values.tolist() == [0.5, 0.0]
    assert found["pass_at_1"].units == ["0", "2"]
    assert kept.progress[0] == ("humaneval", 4, 4)
    assert kept.progress[-1] == ("humaneval: tests", 4, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"asked": "twice"}, "--suite-option humaneval.asked=twice is not one of raw and chat."),
        ({"k": "1,3", "samples": "2"}, "humaneval.k=3 needs as many samples: --suite-option humaneval.samples=N."),
        ({"k": "0"}, "--suite-option humaneval.k=0 is not a whole number from 1 on."),
        ({"samples": "0"}, "--suite-option humaneval.samples=0 is not a whole number from 1 on."),
        ({"seconds": "0"}, "--suite-option humaneval.seconds=0 is not a whole number from 1 on."),
        ({"file": ""}, "The suite humaneval needs a file: --suite-option humaneval.file=FILE."),
    ],
)
def test_options_of_functions_are_known_values(options: dict[str, str], says: str) -> None:
    file = written("rows.jsonl", [ONE])
    assert HumanEval(file, asked="raw")._asked != HumanEval(file, asked="chat")._asked
    with pytest.raises(UserError) as raised:
        HumanEval(**{"file": file} | options)
    assert str(raised.value) == says
