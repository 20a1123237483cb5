"""A run that is stepped from outside: the same weights as `train`, rows of one's own, checkpoints, the lock."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tunesmith import Trainer
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.planner.request import batch_plan_of
from tunesmith.run import PIPELINE_FILE


@pytest.fixture
def recipe(tiny_model: Path, write_rows: Callable[..., Path]) -> dict[str, Any]:
    return {
        "base": str(tiny_model),
        "data": {"train": str(write_rows()), "held_out": 0.2},
        "method": {"kind": "lora", "rank": 4, "dropout": 0.2},
        "train": {"steps": 5, "tokens_per_step": 300, "tokens_per_batch": 150, "learning_rate": 1e-2, "seed": 3},
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_loop_of_ones_own_reaches_the_weights_of_train_bit_for_bit(recipe: dict[str, Any], tmp_path: Path) -> None:
    tunesmith.train(recipe, tmp_path / "train")
    with Trainer(recipe, tmp_path / "own") as trainer:
        counts = []
        for batches in trainer:
            counts.append(len(batches))
            losses = [trainer.forward_backward(rows) for rows in batches]
            figures = trainer.optim_step()
            assert figures["loss"] == pytest.approx(sum(losses) / _loss_tokens(trainer, batches))
        assert len(counts) == 5
        assert max(counts) > 1, "gradients are accumulated"
        assert trainer.save() == tmp_path / "own" / "adapter"
    with Trainer(recipe, tmp_path / "steps") as trainer:
        for _ in range(5):
            trainer.step()
        trainer.save()
    expected = weights(tmp_path / "train")
    assert same(weights(tmp_path / "own"), expected)
    assert same(weights(tmp_path / "steps"), expected)
    events = [
        [event for event in tunesmith.Run(tmp_path / name).events() if event["event"] == "step"]
        for name in ("train", "own")
    ]
    for theirs, own in zip(*events, strict=True):
        for field in ("step", "loss", "grad_norm", "learning_rate", "tokens", "loss_tokens"):
            assert own[field] == theirs[field]
    assert tunesmith.Run(tmp_path / "own").events()[-1]["event"] == "end"


def _loss_tokens(trainer: Trainer, batches: list[list[int]]) -> int:
    return sum(int(trainer.rows[row][1].sum()) for rows in batches for row in rows)


def test_a_resumed_run_keeps_its_automatic_precision(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is measured, and a resumed run must reach the same bits."""
    assert "precision" not in recipe["train"]
    for started, measured in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        run = tmp_path / str(started)
        monkeypatch.setattr("tunesmith.training.trainer.dtype_of", lambda *_, found=started: found)
        with Trainer(recipe, run) as trainer:
            trainer.step()
            trainer.checkpoint()
        monkeypatch.setattr("tunesmith.training.trainer.dtype_of", lambda *_, found=measured: found)
        with Trainer.resume(run) as trainer:
            assert trainer.model.dtype == started


def test_a_resumed_trainer_continues_at_its_checkpoint(recipe: dict[str, Any], tmp_path: Path) -> None:
    tunesmith.train(recipe, tmp_path / "whole")
    with Trainer(recipe, tmp_path / "part") as trainer:
        trainer.step()
        trainer.step()
        trainer.checkpoint()
        trainer.step()  # lost, and done again
    assert not tunesmith.Run(tmp_path / "part").finished
    with Trainer.resume(tmp_path / "part") as trainer:
        assert trainer.steps == (2, 5)
        assert trainer.fit().finished
    assert same(weights(tmp_path / "part"), weights(tmp_path / "whole"))
    with pytest.raises(UserError, match="has finished"):
        Trainer.resume(tmp_path / "part")


@pytest.mark.parametrize(
    "order", ["by_source", *(pytest.param(order, marks=pytest.mark.long) for order in ("as_drawn", "by_length"))]
)
def test_a_resumed_run_of_a_mix_reaches_the_same_bits_and_is_planned_as_it_runs(
    order: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    text = tmp_path / "general.txt"
    text.write_text("A general sentence. " * 90, encoding="utf-8")
    paths = recipe["data"]["train"]
    mix = {"task": {"paths": paths, "epochs": 1.5}, "text": {"paths": str(text), "share": 0.2, "epochs": 9}}
    data = {**{name: value for name, value in recipe["data"].items() if name != "train"}, "mix": mix}
    mixed = {**recipe, "data": {**data, "order": order, "cache": False, "max_length": 64}}
    tunesmith.train(mixed, tmp_path / "whole")
    with Trainer(mixed, tmp_path / "part") as trainer:
        trainer.step()
        trainer.checkpoint()
        trainer.step()  # lost, and done again
    with Trainer.resume(tmp_path / "part") as trainer:
        assert trainer.fit().finished
    assert same(weights(tmp_path / "part"), weights(tmp_path / "whole"))
    events = tunesmith.Run(tmp_path / "whole").events()
    (counts,) = (event["sources"] for event in events if event["event"] == "data")
    assert [source["name"] for source in counts] == ["task", "text"]
    steps = [event for event in events if event["event"] == "step"]
    assert all(sum(step["loss_tokens_by_source"].values()) == step["loss_tokens"] for step in steps)
    planned = batch_plan_of(Recipe.load(mixed)).layout(True)
    assert planned.tokens_in(0, len(steps)) == sum(step["tokens"] for step in steps)


def test_rows_of_ones_own_have_the_loss_and_gradients_of_the_same_rows_in_the_data(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    plain = {**recipe, "method": {"kind": "lora", "rank": 4}, "data": {**recipe["data"], "held_out": 0}}
    with Trainer(plain, tmp_path / "run") as trainer:
        inside = trainer.forward_backward([2, 5])
        gradient = trainer.loop.masters.grad.clone()
        trainer.loop.masters.grad.zero_()
        trainer.loop.forget_batches()
        given = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in (2, 5)]
        assert trainer.forward_backward(given) == pytest.approx(inside)
        torch.testing.assert_close(trainer.loop.masters.grad, gradient)
        before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        assert trainer.optim_step(learning_rate=1e-3)["learning_rate"] == 1e-3
        moved = max(
            (weight - before[name]).abs().max().item()
            for name, weight in trainer.model.named_parameters()
            if weight.requires_grad
        )
        assert moved == pytest.approx(1e-3, rel=0.01), "AdamW's first step is the learning rate"


def test_what_a_trainer_cannot_do_is_refused_in_one_line(recipe: dict[str, Any], tmp_path: Path) -> None:
    with Trainer(recipe, tmp_path / "run", overrides=["train.steps=1"]) as trainer:
        with pytest.raises(UserError, match="call forward_backward"):
            trainer.optim_step()
        with pytest.raises(UserError, match=r"rows row 2: answer is missing"):
            trainer.forward_backward([{"question": "What?", "answer": "So."}, {"question": "What?", "answer": None}])
        trainer.forward_backward([0])
        with pytest.raises(UserError, match="call optim_step first"):
            trainer.checkpoint()
        with pytest.raises(UserError, match="is being written by process"):
            Trainer.resume(tmp_path / "run")
        for rows, message in (
            ([], "There are no rows"),
            ([0, {"question": "a", "answer": "b"}], "all indices of training rows, or all rows of data"),
            (
                [{"question": 1100 * "a", "answer": "b"}],
                r"rows row 1 is longer than data.max_length: 1,024 tokens",
            ),
        ):
            with pytest.raises(UserError, match=message):
                trainer.forward_backward(rows)
        trainer.optim_step()
        trainer.forward_backward([0])
        for step in (trainer.step, trainer.optim_step):
            with pytest.raises(UserError, match=r"has done all of its 1 steps. Call save"):
                step()
    for call in (trainer.step, trainer.checkpoint, trainer.save, trainer.evaluate, trainer.fit):
        with pytest.raises(UserError, match=r"is closed\. tunesmith\.load uses a finished run"):
            call()
    with pytest.raises(UserError, match="already contains a run"):
        Trainer(recipe, tmp_path / "run")


def test_a_trainer_refuses_a_recipe_of_several_runs_by_name(recipe: dict[str, Any], tmp_path: Path) -> None:
    folds = {**recipe, "data": {"train": recipe["data"]["train"], "folds": 2}, "train": {"steps": 1}}
    with pytest.raises(UserError, match=r"^data\.folds: 2 makes several runs, and a Trainer is one run\. Use "):
        Trainer(folds, tmp_path / "run")
    with pytest.raises(UserError, match="recipe has stages"):
        Trainer({**recipe, "stages": [{"name": "one"}]}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with Trainer(folds, tmp_path / "one", ["data.fold=2"]) as trainer:
        assert trainer.fit().finished
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / PIPELINE_FILE).touch()
    with pytest.raises(UserError, match=r"all is a pipeline of runs, and a Trainer is one run\. tunesmith\.resume"):
        Trainer.resume(tmp_path / "all")


def test_an_error_before_the_first_step_leaves_no_directory(recipe: dict[str, Any], tmp_path: Path) -> None:
    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        tunesmith.train(recipe, tmp_path / "run", subscribers=[fail])
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no"):
        tunesmith.train(recipe, tmp_path / "run", ["train.evaluate_every=1", "data.held_out=0.2"], [_fails_at(1)])
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_resumed_run_is_kept_when_it_fails_before_its_first_step(recipe: dict[str, Any], tmp_path: Path) -> None:
    with Trainer(recipe, tmp_path / "run"):
        pass

    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        tunesmith.resume(tmp_path / "run", [fail])
    assert (tmp_path / "run" / "recipe.yaml").exists()


def _fails_at(step: int) -> Callable[[dict[str, Any]], None]:
    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            raise UserError("no")

    return fail


def test_a_trainer_evaluates_the_rows_that_the_run_evaluates(recipe: dict[str, Any], tmp_path: Path) -> None:
    run = tunesmith.train(recipe, tmp_path / "train")
    first = next(event for event in run.events() if event["event"] == "evaluation")
    with Trainer(recipe, tmp_path / "own") as trainer:
        figures = trainer.evaluate()
        assert figures is not None
        assert (figures["loss"], figures["rows"]) == (pytest.approx(first["loss"]), first["rows"])
    without = {**recipe, "data": {**recipe["data"], "held_out": 0}}
    with Trainer(without, tmp_path / "none") as trainer:
        assert trainer.evaluate() is None


def test_gradients_that_were_only_looked_at_do_not_enter_a_step(recipe: dict[str, Any], tmp_path: Path) -> None:
    losses = []
    for name in ("plain", "looked"):
        with Trainer(recipe, tmp_path / name, overrides=["method.dropout=0"]) as trainer:
            if name == "looked":
                trainer.forward_backward([0, 1, 2])
            losses.append([trainer.step() for _ in range(2)])
    assert losses[0] == losses[1]


def test_a_failed_pass_leaves_no_gradient(recipe: dict[str, Any], tmp_path: Path) -> None:
    with Trainer(recipe, tmp_path / "run") as trainer:
        trainer.forward_backward([0])

        def fail(model: Any, batch: Any) -> torch.Tensor:
            raise KeyError("a bug in a loss")

        usual, trainer.loop.objective.loss = trainer.loop.objective.loss, fail  # type: ignore[method-assign]
        with pytest.raises(KeyError):
            trainer.forward_backward([1])
        trainer.loop.objective.loss = usual  # type: ignore[method-assign]
        assert not trainer.loop.masters.grad.any()
        with pytest.raises(UserError, match="call forward_backward"):
            trainer.optim_step()


def test_rows_of_ones_own_are_read_in_the_objectives_format(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"I am {n}.", "label": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(tmp_path / "rows.jsonl"), "held_out": 0},
        "objective": "classification",
        "train": {"steps": 1, "tokens_per_step": 200},
    }
    with Trainer(recipe, tmp_path / "run") as trainer:
        inside = trainer.forward_backward([0, 1])
        assert trainer.forward_backward(rows[:2]) == pytest.approx(inside)


def test_a_batch_keeps_the_indices_of_training_rows_and_has_none_for_rows_of_ones_own(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    row = {"question": "What is 1 + 1?", "answer": "It is 2, of course."}
    with Trainer(recipe, tmp_path / "run") as trainer:
        assert trainer.batch([4, 2]).rows == (4, 2)
        assert trainer.batch([row]).rows == ()


def test_a_row_of_ones_own_may_have_max_length_tokens_and_no_more(recipe: dict[str, Any], tmp_path: Path) -> None:
    row = {"question": "What is 59 + 59?", "answer": "It is 118, of course."}  # one of the longest rows
    with Trainer(recipe, tmp_path / "run") as trainer:
        longest = int(trainer.rows.lengths.max())
    with Trainer(recipe, tmp_path / "exact", [f"data.max_length={longest}"]) as trainer:
        assert trainer.batch([row]).documents == 1
    less = Trainer(recipe, tmp_path / "less", [f"data.max_length={longest - 1}", "data.overflow=drop"])
    message = rf"^rows row 1 is longer than data\.max_length: {longest - 1} tokens"
    with less as trainer, pytest.raises(UserError, match=message):
        trainer.batch([row])


def test_texts_are_rows_of_an_objective_that_reads_texts(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "The number {n}."}}\n' for n in range(20)))
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(tmp_path / "rows.jsonl"), "held_out": 0},
        "objective": "text",
        "train": {"steps": 1, "tokens_per_step": 200},
    }
    with Trainer(recipe, tmp_path / "run") as trainer:
        plain = trainer.forward_backward(["The number 3.", "The number 4."])
        assert plain == pytest.approx(trainer.forward_backward([{"text": f"The number {n}."} for n in (3, 4)]))


def test_a_run_that_is_saved_ends_with_where_its_output_is(recipe: dict[str, Any], tmp_path: Path) -> None:
    with Trainer(recipe, tmp_path / "run") as trainer:
        trainer.step()
        output = trainer.save()
    end = tunesmith.Run(tmp_path / "run").events()[-1]
    assert (end["event"], end["reason"], end["step"], end["output"]) == ("end", "done", 1, str(output))
