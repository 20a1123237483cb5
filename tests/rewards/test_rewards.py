"""Reward functions together: called like TRL's, checked, weighed, and reproducible with the code of users."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tunesmith.config.extensions import copy_code
from tunesmith.config.recipe import Recipe
from tunesmith.config.reward import RewardConfig
from tunesmith.errors import UserError
from tunesmith.rewards import Rewards, RewardValues, Sampled, TrainerState

TWO = Sampled(
    ["What is 2 + 2?", "What is 3 + 3?"],
    ["It is 4.", "It is 7."],
    {"answer": ["4", "6"]},
    [[1, 2, 3], [4, 5]],
    ["sums.jsonl row 1", "sums.jsonl row 2"],
    TrainerState(5, 10),
)

MODULE = """
import asyncio
import time
import numpy as np

def length(completions, **columns):
    return [float(len(each)) for each in completions]

def plain(completions, answer):
    return np.array([float(right in each) for each, right in zip(completions, answer)])

def scaled(prompts, completions, factor=1.0, **columns):
    return [factor] * len(completions)

async def later(completions, **columns):
    await asyncio.sleep(0)
    return [0.5] * len(completions)

class Above:
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, completion_ids, **columns):
        return [float(len(ids) > self.limit) for ids in completion_ids]

def everything(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
    log_extra("step", [trainer_state.global_step] * len(prompts))
    log_metric("done", trainer_state.global_step / trainer_state.max_steps)
    assert sorted(columns) == ["answer"]
    return [None, True]

def failing(completions, answer, **columns):
    for each, right in zip(completions, answer):
        if right == "6":
            raise KeyError("label")
    return [0.0] * len(completions)

def together(completions, **columns):
    if len(completions) > 1:
        raise ValueError("only one at a time")
    return [0.0]

def leaving(completions, **columns):
    raise SystemExit(3)

def slow(completions, **columns):
    time.sleep(5)
    return [0.0] * len(completions)

short = lambda **columns: [1.0]
nan = lambda **columns: [1.0, float("nan")]
text = lambda **columns: ["1", 1.0]
nothing = lambda **columns: None
number = 3
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where `mine.py` is."""
    (tmp_path / "mine.py").write_text(MODULE)
    yield tmp_path
    for name in ("mine", "objective_with_rewards"):
        sys.modules.pop(name, None)


def scored(directory: Path, *configs: Any, sampled: Sampled = TWO) -> RewardValues:
    return Rewards.open([RewardConfig.model_validate(each) for each in configs], directory)(sampled)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("mine:length", [8.0, 8.0]),
        ("mine:plain", [1.0, 0.0]),
        ("mine:later", [0.5, 0.5]),
        ({"function": "mine:scaled", "options": {"factor": 3.0}}, [3.0, 3.0]),
        ({"function": "mine:Above", "options": {"limit": 2}}, [1.0, 0.0]),
        ({"function": "mine:length", "timeout": None}, [8.0, 8.0]),
        (
            {
                "function": "trl.rewards:get_soft_overlong_punishment",
                "options": {"max_completion_len": 4, "soft_punish_cache": 2},
            },
            [-0.5, 0.0],
        ),
    ],
)
def test_a_function_of_a_user_or_of_trl_is_called_as_in_trl(
    directory: Path, config: Any, expected: list[float]
) -> None:
    assert scored(directory, config).values[:, 0].tolist() == expected


def test_a_chat_function_of_trl_takes_chats_unchanged(directory: Path) -> None:
    replies = ["<think>So.</think>It is 4.", "It is 4."]
    chats = Sampled(
        [[{"role": "user", "content": "What is 2 + 2?"}]] * 2,
        [[{"role": "assistant", "content": reply}] for reply in replies],
    )
    assert scored(directory, "trl.rewards:think_format_reward", sampled=chats).values[:, 0].tolist() == [1.0, 0.0]


def test_a_function_may_note_values_and_ask_for_the_progress(directory: Path) -> None:
    found = scored(directory, "mine:everything", "mine:length")
    assert found.noted_columns == {"step": [5, 5]}
    figures = found.figures()
    assert figures["done"] == 0.5
    assert figures["rewards/mine:everything/mean"] == 1
    assert figures["rewards/mine:everything/none"] == 0.5
    assert figures["rewards/mine:length/none"] == 0
    assert found.total.tolist() == [8, 9]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("short", ["mine:short returned 1 rewards for 2 completions", "sums.jsonl row 1"]),
        ("nan", ["mine:nan returned nan for sums.jsonl row 2 (completion 2)", "None where it does not apply"]),
        ("text", ["mine:text returned '1' for sums.jsonl row 1 (completion 1)"]),
        ("nothing", ["mine:nothing returned NoneType"]),
        (
            "failing",
            ["mine:failing failed on sums.jsonl row 2 (completion 2): KeyError: 'label' (", "mine.py:"],
        ),
        ("together", ["mine:together failed on 2 completions (sums.jsonl row 1", "ValueError: only one at a time"]),
        ("leaving", ["mine:leaving failed on sums.jsonl row 1 (completion 1): RuntimeError: SystemExit: 3"]),
        ("number", ["mine:number is int, not a function"]),
        ("absent", ["mine:absent cannot be imported", "has no absent"]),
    ],
)
def test_a_wrong_function_is_one_line_that_names_it_and_the_row(
    directory: Path, function: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        scored(directory, f"mine:{function}")
    assert "\n" not in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_function_that_takes_too_long_ends_with_an_error(directory: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"mine:slow took longer than 0\.05 s for 2 completions \(sums\.jsonl row 1"):
        scored(directory, {"function": "mine:slow", "timeout": 0.05})
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("exakt", "'exakt' is not known. Did you mean exact?"),
        ({"function": "exact", "options": {"colum": "x"}}, "exact: colum is not a field. Did you mean column?"),
        ({"function": "length"}, "length: needs a maximum or a minimum"),
        ({"function": "length", "options": {"maximum": 10, "margin": 6, "minimum": 2}}, "overlap"),
        ({"function": "exact", "weight": float("nan")}, "finite"),
        ({"function": "exact", "timeout": 0}, "greater than 0"),
    ],
)
def test_a_wrong_reward_in_a_recipe_is_refused_at_once(config: Any, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        RewardConfig.model_validate(config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([], "names no function"),
        (["exact", "exact"], "exact is there twice"),
        ([{"function": "regex", "options": {"pattern": "("}}], "rewards: regex: pattern: \\( is not a regular"),
        ([{"function": "exact", "options": {"extract": "("}}], "extract: \\( is not a regular"),
        ([{"function": "json", "options": {"json_schema": {"type": "circle"}}}], "not a valid JSON schema"),
        ([{"function": "json", "options": {"json_schema": "absent.json"}}], "absent.json cannot be read"),
        ([{"function": "metric", "options": {"metric": "length_ratio"}}], "has no score of a single answer"),
        ([{"function": "metric", "options": {"metric": "unknown"}}], "unknown is not known"),
        ([{"function": "mine:scaled", "options": {"factor": 1.0}}], ""),
        ([{"function": "mine:plain", "options": {"unknown": 1.0}}], "mine:plain has no parameter unknown"),
        ([{"function": "mine:Above", "options": {"size": 1}}], "mine:Above cannot be made with its options: TypeError"),
    ],
)
def test_what_cannot_work_is_refused_before_training(directory: Path, configs: list[Any], message: str) -> None:
    opened = [RewardConfig.model_validate(each) for each in configs]
    if not message:
        Rewards.open(opened, directory)
        return
    with pytest.raises(UserError, match=message):
        Rewards.open(opened, directory)


def test_the_total_is_the_weighted_sum_of_the_functions_that_apply() -> None:
    values = np.array([[1.0, 2.0], [np.nan, 4.0], [3.0, np.nan], [np.nan, np.nan]])
    found = RewardValues(("a", "b"), np.array([1.0, 0.5]), values)
    assert found.total[:3].tolist() == [2.0, 2.0, 3.0]
    assert np.isnan(found.total[3])
    figures = found.figures()
    assert figures["rewards/a/mean"] == 2
    assert figures["rewards/a/std"] == pytest.approx(2**0.5)
    assert figures["rewards/a/none"] == 0.5
    assert figures["reward"] == pytest.approx(7 / 3)
    nothing = RewardValues(("a",), np.ones(1), np.full((2, 1), np.nan)).figures()
    assert nothing["reward"] is nothing["rewards/a/mean"] is None
    assert nothing["rewards/a/none"] == 1


def test_the_normalized_total_is_that_of_trl() -> None:
    values = torch.randn(12, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    values[2, 1] = values[5] = torch.nan
    weights = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    grouped = values.view(-1, 4, 3)  # trl.GRPOTrainer, multi_objective_aggregation="normalize_then_sum"
    mean = torch.nanmean(grouped, 1, keepdim=True)
    count = (~grouped.isnan()).sum(1, keepdim=True)
    deviation = ((grouped - mean).square().nansum(1, keepdim=True) / (count - 1)).sqrt()
    expected = (((grouped - mean) / (deviation + 1e-4)).view(-1, 3) * weights).nansum(1)
    expected[5] = torch.nan
    ours = RewardValues(("a", "b", "c"), weights.numpy(), values.numpy()).normalized_total(4)
    assert ours == pytest.approx(expected.numpy(), nan_ok=True)
    assert RewardValues(("a",), np.ones(1), np.ones((4, 1))).normalized_total(2).tolist() == [0] * 4


OBJECTIVE = """
from tunesmith.config.reward import RewardConfig
from tunesmith.objectives.instruction import Instruction

class WithRewards(Instruction):
    rewards: list[RewardConfig]

    @property
    def reward_functions(self):
        return self.rewards

    def with_absolute_paths(self, absolute):
        return self.model_copy(update={"rewards": [each.with_absolute_paths(absolute) for each in self.rewards]})
"""


def test_a_recipe_has_its_functions_code_and_the_absolute_paths_of_their_options(directory: Path) -> None:
    (directory / "objective_with_rewards.py").write_text(OBJECTIVE)
    (directory / "schema.json").write_text("{}")
    (directory / "recipe.yaml").write_text(
        "data: {train: rows.jsonl}\n"
        'objective: {kind: "objective_with_rewards:WithRewards", rewards: [exact, '
        '{function: "mine:length", weight: 0.5}, {function: json, options: {json_schema: schema.json}}]}\n'
    )
    recipe = Recipe.load(directory / "recipe.yaml")
    assert recipe.extensions["mine:length"] == "mine:length"
    copy_code(recipe.extensions.values(), recipe.directory, directory / "run")
    assert (directory / "run" / "mine.py").read_text() == MODULE
    assert [each.weight for each in recipe.objective.reward_functions] == [1, 0.5, 1]
    assert recipe.objective.reward_functions[2].options["json_schema"] == str(directory / "schema.json")
    again = Recipe.from_values(recipe.model_dump(mode="json"), "recipe", directory)
    assert again == recipe
    (directory / "mine.py").write_text("raise ValueError('not now')\n")
    with pytest.raises(UserError, match=r"objective\.rewards: mine:length cannot be imported: ValueError: not now"):
        Recipe.load(directory / "recipe.yaml")
