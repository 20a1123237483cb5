"""Each stage starts from the previous stage's weights, and a killed pipeline resumes to the same result."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from writing import answers

from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling
from tunesmith.run import Run
from tunesmith.training.stages import resume, train

FULL = {"method": "full", "objective": {"kind": "text"}}
LORA = {"method": {"kind": "lora", "rank": 4}}


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(60)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def make(*stages: dict[str, Any]) -> dict[str, Any]:
        return {
            "base": str(tiny_model),
            "data": {"train": str(rows), "held_out": 0.3, "cache": False},
            "train": {
                "steps": 6, "evaluate_every": 3, "checkpoint_every": 3, "precision": "fp32", "learning_rate": 3e-3
            },
            "stages": [{"name": f"s{number}", **stage} for number, stage in enumerate(stages)],
        }  # fmt: skip

    return make


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in run.events() if event["event"] == "evaluation"]


@pytest.mark.parametrize(
    ("first", "second", "base_kind"),
    [
        ({"method": "full"}, LORA, "model"),
        (LORA, LORA, "adapter"),
        pytest.param({"method": "ia3"}, {"method": "ia3"}, "adapter", marks=pytest.mark.long),
        pytest.param({"method": "prefix"}, {"method": "prefix"}, "adapter", marks=pytest.mark.long),
        pytest.param(LORA, {"method": "full"}, "merged", marks=pytest.mark.long),
        pytest.param(LORA, {"method": {"kind": "lora", "rank": 8}}, "merged", marks=pytest.mark.long),
    ],
)
def test_a_stage_starts_from_the_previous_stages_weights(first, second, base_kind, pipeline, tmp_path):
    last = train(pipeline(first, second), tmp_path / "pipeline")
    before = Run.open(tmp_path / "pipeline" / "1-s0")
    assert last.directory == tmp_path / "pipeline" / "2-s1"
    assert losses(last)[0] == pytest.approx(losses(before)[-1], rel=1e-4)
    assert losses(last)[-1] < losses(last)[0]
    base = Recipe.load(last.directory / "recipe.yaml").base
    assert (base_kind == "adapter") == (base.adapter is not None)
    assert (base_kind == "merged") == (before.directory / "merged").exists()


@pytest.fixture(scope="module")
def working_directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("working")


@pytest.fixture(scope="module")
def unnamed(pipeline, working_directory) -> Run:
    """The last stage of a pipeline that was given no directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(working_directory)
        return train(pipeline(FULL, LORA))


def test_a_pipeline_is_named_after_its_stages_and_used_by_its_directory(unnamed, working_directory):
    directory = unnamed.pipeline_directory
    assert directory.parent == working_directory / "runs"
    assert directory.name.endswith("-llama-s0-s1")
    assert Run.open(directory).directory == unnamed.directory
    assert unnamed.stages == [directory / "1-s0", directory / "2-s1"]
    reference = ModelReference.find(str(directory))
    model = reference.model(torch.float32, torch.device("cpu"))
    assert answers(model, reference.tokenizer(), [({"role": "user", "content": "a"},)], Sampling(max_new_tokens=2))
    with pytest.raises(UserError, match="has finished"):
        resume(directory)


@pytest.mark.parametrize("stage", [pytest.param("1-s0", marks=pytest.mark.long), "2-s1"])
def test_a_pipeline_killed_in_any_stage_resumes_to_the_same_bytes(stage, pipeline, unnamed, tmp_path):
    class KilledError(Exception):
        pass

    current_stage: list[str] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            current_stage[:] = [Path(event["run"]).name]
        if event["event"] == "checkpoint" and event["step"] == 3 and current_stage == [stage]:
            raise KilledError

    with pytest.raises(KilledError):
        train(pipeline(FULL, LORA), tmp_path / "killed", subscribers=[kill])
    again = resume(tmp_path / "killed")
    file = "adapter/adapter_model.safetensors"
    assert (again.directory / file).read_bytes() == (unnamed.directory / file).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("stage", ["2-s1", "3-s2", "4-s3"])
def test_a_policy_rewarded_by_an_earlier_stage_resumes_to_the_same_bytes(stage, pipeline, tmp_path):
    """From examples, a reward model of pairs and a policy that it rewards; then the policy judges its own samples."""
    pairs = [{"prompt": f"Say {n}", "chosen": "ab" * (n % 3 + 1), "rejected": "c d e f"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    sampled = {"prompts": 2, "group_size": 3, "max_new_tokens": 4}
    judge = {"function": "classifier", "options": {"model": "stage:s1", "reads": "answer"}, "weight": 0.5}
    recipe = pipeline(
        LORA,
        {**LORA, "data": {"train": str(tmp_path / "pairs.jsonl"), "held_out": 0.3}, "objective": "reward"},
        {**LORA, "base": "stage:s0", "objective": {"kind": "best_of_n", "reward": "stage:s1", **sampled}},
        {**LORA, "objective": {"kind": "online_dpo", "reward": "stage:s1", "rewards": [judge], **sampled}},
    )

    class KilledError(Exception):
        pass

    current: list[str] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            current[:] = [Path(event["run"]).name]
        if event["event"] == "checkpoint" and event["step"] == 3 and current == [stage]:
            raise KilledError

    whole = train(recipe, tmp_path / "whole")
    assert whole.directory.name == "4-s3"
    policy = Recipe.load(whole.directory / "recipe.yaml")
    assert policy.objective.reward == str(tmp_path / "whole" / "2-s1")
    assert policy.base.adapter == tmp_path / "whole" / "3-s2" / "adapter"
    with pytest.raises(KilledError):
        train(recipe, tmp_path / "killed", subscribers=[kill])
    again = resume(tmp_path / "killed")
    file = "adapter/adapter_model.safetensors"
    assert (again.directory / file).read_bytes() == (whole.directory / file).read_bytes()


def test_every_stage_is_checked_before_the_first_one_starts(pipeline, tmp_path):
    for stage, message in (
        ({"method": "lora", "train": {"stepps": 3}}, r"recipe: stage s1: train\.stepps is not a field"),
        ({"base": "stage:later"}, "stage s1: stage:later is no earlier stage. Known: stage:s0"),
        ({"name": "s0"}, "name 's0' is taken"),
    ):
        with pytest.raises(UserError, match=message):
            train(pipeline(FULL, stage), tmp_path / "pipeline")
    with pytest.raises(UserError, match="methods is not a field beside stages"):
        train({**pipeline(FULL), "methods": "lora"}, tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()


def test_an_adapter_of_another_method_or_rank_is_refused(pipeline, tmp_path, tiny_model):
    single = {key: value for key, value in pipeline().items() if key != "stages"}
    made = train({**single, **LORA}, tmp_path / "made").directory / "adapter"
    for method, message in (
        ({"kind": "lora", "rank": 8}, "was not made by this method on this base"),
        ({"kind": "full"}, "this method trains no adapter, so it cannot continue from"),
        ({"kind": "ia3"}, "was not made by this method on this base"),
    ):
        with pytest.raises(UserError, match=message):
            train(
                {**single, "base": {"path": str(tiny_model), "adapter": str(made)}, "method": method}, tmp_path / "run"
            )


def test_no_stage_starts_after_one_that_was_interrupted(pipeline, tmp_path):
    def press(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            signal.raise_signal(signal.SIGINT)

    first = train(pipeline(FULL, FULL), tmp_path / "pipeline", subscribers=[press])
    assert first.directory == tmp_path / "pipeline" / "1-s0"
    assert not first.finished
    assert not (tmp_path / "pipeline" / "2-s1").exists()
    last = resume(tmp_path / "pipeline")
    assert last.directory == tmp_path / "pipeline" / "2-s1"
    assert last.finished
