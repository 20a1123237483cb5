"""lm-eval's tasks, from a model here and from the server: the scores are those of lm-eval's own `hf` model.

lm-eval is not among the packages of `make test`: `make test-lm-eval` installs it beside them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from running_server import served

from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.suite import open_suites
from tunesmith.models.bases import embedded_base, get_base

try:
    import lm_eval
    from lm_eval.evaluator import evaluate as lm_eval_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from tunesmith.evaluation.suites.lm_eval import load_tasks, seed_tasks
except ImportError:
    lm_eval = None

needs_lm_eval = pytest.mark.skipif(lm_eval is None, reason="lm-eval is not installed; make test-lm-eval installs it")

CHOICE = """\
task: CHOICE
dataset_path: json
dataset_kwargs: {data_files: {test: DIRECTORY/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""

SUMS = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {train: DIRECTORY/sums.jsonl, test: DIRECTORY/sums.jsonl}}
test_split: test
fewshot_split: train
num_fewshot: 2
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", "7"], max_gen_toks: 8, do_sample: false}
filter_list:
  - name: first
    filter: [{function: regex, regex_pattern: "(\\\\d+)"}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""

PROSE = """\
task: prose
dataset_path: json
dataset_kwargs: {data_files: {test: DIRECTORY/prose.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
"""

GROUP = """\
group: both
task: [CHOICE, other]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
  - {metric: acc_norm, weight_by_size: false}
"""

QUESTIONS = [
    ("The capital of France is", ["Paris", "a large green elephant", "Rome"], 0),
    ("Water freezes at", ["zero degrees Celsius", "one thousand degrees", "Tuesday"], 0),
    ("Two plus two is", ["nine hundred", "four", "purple"], 1),
    ("The opposite of hot is", ["cold", "warm water in the summer"], 0),
    ("A triangle has", ["four sides", "three sides"], 1),
    ("The largest ocean is the", ["Pacific", "Atlantic", "Indian"], 0),
    ("The color of grass is", ["blue", "red", "green"], 2),
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory of task files with their data."""
    directory = tmp_path / "tasks"
    directory.mkdir()
    choice = [{"question": text, "choices": choices, "answer": answer} for text, choices, answer in QUESTIONS]
    sums = [{"question": f"{a} + {b} =", "answer": f"{a + b}"} for a, b in [(1, 1), (2, 3), (10, 10), (7, 8), (9, 1)]]
    prose = [{"text": "Rivers, lakes and the sea. " * count} for count in (1, 9, 60)]
    for name, rows in (("choice", choice), ("sums", sums), ("prose", prose)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for name, text in (("choice", CHOICE), ("sums", SUMS), ("prose", PROSE)):
        (directory / f"{name}.yaml").write_text(text.replace("DIRECTORY", str(directory)), encoding="utf-8")
    return directory


def own_scores(model: Any, tasks: Path) -> dict[str, float]:
    """lm-eval's results of one of its own models, by the names of our figures."""
    loaded = load_tasks([str(tasks)])
    seed_tasks(loaded["tasks"].values(), None)
    found = lm_eval_evaluate(model, loaded, bootstrap_iters=0)["results"]
    scores: Mapping[str, Mapping[str, Any]] = found
    return {
        f"lm-eval.{task}_{key.replace(',none', '').replace(',', '_')}": value
        for task, own in scores.items()
        for key, value in own.items()
        if isinstance(value, float)
    }


def our_scores(model: Path | str, tasks: Path, rows: int | None = 0, **options: str) -> dict[str, Any]:
    found = evaluate(
        f"{model}@fp32", rows, suites=["lm-eval"], suite_options={"lm-eval": {"tasks": str(tasks), **options}}
    )
    (figures,) = found["models"].values()
    return {name: figure["value"] for name, figure in figures.items()}


@needs_lm_eval
def test_scores_of_tasks_are_those_of_lm_evals_own_model(tiny_model: Path, tasks: Path) -> None:
    ours = our_scores(tiny_model, tasks)
    theirs = own_scores(HFLM(pretrained=str(tiny_model), dtype="float32", device="cpu", batch_size=3), tasks)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(ours) == 5


@needs_lm_eval
@pytest.mark.long
@pytest.mark.parametrize("name", ["embedded", "smollm2-135m-instruct"])
def test_scores_of_real_models_are_those_of_lm_evals_own_model(name: str, tasks: Path) -> None:
    path = embedded_base() if name == "embedded" else get_base(name)
    theirs = own_scores(HFLM(pretrained=str(path), dtype="float32", device="cpu", batch_size=3), tasks)
    assert our_scores(name, tasks) == pytest.approx(theirs, rel=1e-4)


@needs_lm_eval
def test_lm_eval_measures_the_server_as_it_measures_the_model(tiny_model: Path, tasks: Path) -> None:
    with served(tiny_model) as server:
        api = LocalCompletionsAPI(
            model="tiny", base_url=f"{server.address}/v1/completions", tokenizer=str(tiny_model), num_concurrent=4,
            max_length=512,
        )  # fmt: skip
        found = own_scores(api, tasks)
    prose = [name for name in found if "prose" in name]  # its windows are a token shorter
    ours = our_scores(tiny_model, tasks)
    assert {name: found[name] for name in found if name not in prose} == pytest.approx(
        {name: ours[name] for name in ours if name not in prose}, rel=1e-5
    )
    for name in prose:
        assert found[name] == pytest.approx(ours[name], rel=0.02)


@needs_lm_eval
def test_rows_and_few_shot_examples_are_as_asked_for(tiny_model: Path, tasks: Path) -> None:
    asked = {"lm-eval": {"tasks": f"{tasks / 'sums.yaml'}", "few_shot": "0"}}
    found = evaluate(tiny_model, 3, suites=["lm-eval"], suite_options=asked)
    (figure,) = found["models"]["llama"].values()
    assert figure["rows"] == 3


@needs_lm_eval
def test_a_group_of_tasks_has_the_mean_over_rows_or_over_tasks(tiny_model: Path, tasks: Path) -> None:
    for each in tasks.glob("*.yaml"):
        each.unlink()
    own = CHOICE.replace("DIRECTORY", str(tasks))
    (tasks / "choice.yaml").write_text(own, encoding="utf-8")
    few = (tasks / "choice.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:3]
    (tasks / "few.jsonl").write_text("".join(few), encoding="utf-8")
    other = own.replace("task: CHOICE", "task: other").replace("/choice.jsonl", "/few.jsonl")
    (tasks / "other.yaml").write_text(other, encoding="utf-8")
    (tasks / "group.yaml").write_text(GROUP, encoding="utf-8")
    ours = our_scores(tiny_model, tasks)
    theirs = own_scores(HFLM(pretrained=str(tiny_model), dtype="float32", device="cpu"), tasks)
    assert ours == pytest.approx(theirs, rel=1e-6)
    right = 7 * ours["lm-eval.CHOICE_acc"] + 3 * ours["lm-eval.other_acc"]
    assert ours["lm-eval.both_acc"] == pytest.approx(right / 10)


@needs_lm_eval
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "The suite lm-eval needs tasks: --suite-option lm-eval.tasks=FILE, a directory, or names"),
        ({"tasks": "none.yaml"}, "none.yaml does not exist. Name a task file, a directory of them, or a task"),
        ({"tasks": "{tasks}", "chat": "maybe"}, "chat=maybe is not yes or no"),
        ({"tasks": "{tasks}", "few_shot": "few"}, "few_shot=few is not a whole number from 0 on"),
        ({"tasks": "{empty}"}, "has no task file"),
        ({"tasks": "{broken}"}, "lm-eval cannot load .*broken.yaml: .*missing.jsonl"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused_before_a_model_is_loaded(
    options: dict[str, str], says: str, tasks: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    broken = CHOICE.replace("DIRECTORY/choice.jsonl", f"{tmp_path}/missing.jsonl")
    (tmp_path / "broken.yaml").write_text(broken, encoding="utf-8")
    places: dict[str, Path] = {"tasks": tasks, "empty": tmp_path / "empty", "broken": tmp_path / "broken.yaml"}
    given: dict[str, str] = {key: value.format(**places) for key, value in options.items()}
    with pytest.raises(UserError, match=says):
        open_suites(["lm-eval"], {"lm-eval": given})


@needs_lm_eval
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("num_beams: 4", "generation_kwargs: num_beams is not supported"),
        ("max_gen_toks: 600", "600 new tokens take the whole context of 512"),
    ],
)
def test_settings_of_a_task_that_the_engine_has_not_are_refused(
    tiny_model: Path, tasks: Path, settings: str, says: str
) -> None:
    file = tasks / "sums.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("max_gen_toks: 8", settings), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        our_scores(tiny_model, file)


@needs_lm_eval
def test_chats_are_rendered_with_the_models_template(tiny_model: Path, tasks: Path) -> None:
    file = tasks / "choice.yaml"
    api = {"pretrained": str(tiny_model), "dtype": "float32", "device": "cpu"}
    loaded = load_tasks([str(file)])
    seed_tasks(loaded["tasks"].values(), None)
    theirs = lm_eval_evaluate(HFLM(**api), loaded, bootstrap_iters=0, apply_chat_template=True)["results"]["CHOICE"]
    ours = our_scores(tiny_model, file, chat="yes")
    assert ours["lm-eval.CHOICE_acc"] == theirs["acc,none"]


@pytest.mark.skipif(lm_eval is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_suite_says_how_to_install_it() -> None:
    with pytest.raises(UserError, match=r"needs lm-eval. Install it: pip install 'tunesmith\[lm-eval\]'"):
        open_suites(["lm-eval"], {"lm-eval": {"tasks": "x"}})
