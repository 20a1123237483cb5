"""Objectives that learn from people's feedback or from rewards: options, paths, and what they take from the rows."""

from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from completions import completions_table
from pydantic import ValidationError
from small_models import objective_of, small_model

from tunesmith.data.batch import collate
from tunesmith.data.example import Completion, Example, Source
from tunesmith.data.render import Renderer
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.models.forward import next_token_losses
from tunesmith.objectives.preference import refuse_equal

SOURCE = Source("rows", 3)


@pytest.mark.parametrize("kind", ["dpo", "online_dpo"])
def test_an_option_that_the_pair_loss_does_not_read_is_refused(kind: str) -> None:
    def with_options(**options: Any) -> Any:
        rewards = {"rewards": ["exact"]} if kind == "online_dpo" else {}
        return objective_of(kind, **rewards, **options)

    for loss in ("sigmoid", "robust", "exo_pair", "simpo", "cpo"):
        assert with_options(loss=loss, label_smoothing=0.1).label_smoothing == 0.1
    for loss in ("hinge", "ipo", "nca_pair", "sppo_hard", "apo_zero", "apo_down", "discopop", "orpo"):
        assert with_options(loss=loss, label_smoothing=0.0, target_margin=0.5).loss == loss
        with pytest.raises(ValidationError, match=f"label_smoothing has no effect on loss: {loss}"):
            with_options(loss=loss, label_smoothing=0.1)
    with pytest.raises(ValidationError, match="target_margin is of loss: simpo"):
        with_options(target_margin=0.6)
    assert with_options(loss="simpo", target_margin=0.0).target_margin == 0.0
    with pytest.raises(ValidationError, match="target_margin"):
        with_options(loss="simpo", target_margin=-0.1)


def test_a_teachers_path_is_relative_to_the_recipe_unless_it_is_the_embedded_model() -> None:
    for teacher, expected in (("t", "/recipes/t"), ("embedded", "embedded")):
        objective = objective_of("distillation", teacher=teacher)
        assert objective.with_absolute_paths(lambda path: f"/recipes/{path}").teacher == expected


def test_the_folder_of_a_sampling_server_is_relative_to_the_recipe() -> None:
    for folder, expected in (("shared", "/recipes/shared"), (None, None)):
        server = {"server": "http://gpu:8000/v1", "folder": folder}
        objective = objective_of("grpo", rewards="exact", sampler=server)
        moved = objective.with_absolute_paths(lambda path: f"/recipes/{path}")
        assert moved.sampler.folder == expected
        assert moved.sampler.server == "http://gpu:8000/v1"
        assert moved.reward is None
        assert [each.function for each in moved.rewards] == ["exact"]


def graded(**columns: Any) -> list[Example]:
    return [Example(SOURCE, messages=(), columns=dict(zip(columns, row, strict=True)))
            for row in zip(*columns.values(), strict=True)]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "is_grade"),
    [
        ([1, 3], True),
        (["1", "3"], True),
        ([1.0, 3.0], True),
        ([-1, 0], True),
        ([1, 2.5], False),
        ([1, "much"], False),
        ([True, False], False),
        ([1, None], False),
        ([1, [2]], False),
    ],
)
def test_grades_are_whole_numbers_also_as_text(values: list[Any], is_grade: bool) -> None:
    rows = graded(brief=values, kind=[2, 5])
    found = objective_of("graded_reward").resolve(lambda: rows)
    assert found.attributes == (["brief", "kind"] if is_grade else ["kind"])
    assert (found.lowest, found.highest) == (min([int(values[0]), 2, int(values[1])]) if is_grade else 2, 5)


def test_grades_that_are_all_equal_and_rows_without_columns_are_refused() -> None:
    for rows, shown in (
        (graded(x=[3, 3]), "x"),
        ([Example(SOURCE, messages=())], "no columns beside prompt and answer"),
    ):
        with pytest.raises(UserError, match=f"and not all equal; the rows have {shown}. Name them in"):
            objective_of("graded_reward").resolve(lambda rows=rows: rows)
    with pytest.raises(UserError, match=r"the rows have no columns"):
        objective_of("graded_reward", attributes=["y"]).resolve(lambda: graded(x=[3, 4]))


def test_named_attributes_and_grades_need_no_rows_and_one_alone_is_completed() -> None:
    named = objective_of("graded_reward", attributes=["x"], lowest=0, highest=2)
    assert named.resolve(lambda: pytest.fail("nothing is missing")) is named
    assert list(named.grades) == [0, 1]
    found = objective_of("graded_reward", lowest=0).resolve(lambda: graded(x=[3, 4]))
    assert (found.attributes, found.lowest, found.highest) == (["x"], 0, 4)
    found = objective_of("graded_reward", highest=7).resolve(lambda: graded(x=[3, 4]))
    assert (found.lowest, found.highest) == (3, 7)
    assert list(objective_of("graded_reward").grades) == []


def test_completions_of_which_none_is_better_are_refused_and_two_rows_have_a_baseline() -> None:
    def example(*scores: float) -> Example:
        return Example(SOURCE, messages=(), completions=tuple(Completion((), score) for score in scores))

    refuse_equal(example(1.0, 0.0, 1.0), "dpo")
    for scores in ((1.0, 1.0), (1.0,)):
        with pytest.raises(UnusableError, match="none of its completions is better than another, and dpo learns"):
            refuse_equal(example(*scores), "dpo")
    kto = objective_of("kto")
    for count, completions in ((1, 1), (2, 2)):
        table = completions_table([[1.0], [0.0]][:count], prompts=[[5, 6]] * count, completions=[[[7, 8]]] * count)
        arranged = kto.arrange(table)
        assert arranged.completions is not None
        assert [len(arranged.completions.of(row)[1]) for row in range(count)] == [completions] * count
        assert objective_of("kto", baseline="zero").arrange(table) is table


def test_rows_for_a_plan_are_half_prompt_and_two_quarters() -> None:
    for kind in ("dpo", "reward"):
        table = objective_of(kind).dummy_rows([16, 9, 2])
        assert table.completions is not None
        assert [table.completions.of(row) for row in range(3)] == [
            (lengths, (1.0, 0.0)) for lengths in ((8, 4, 4), (5, 2, 2), (1, 1, 1))
        ]
        losses = [np.flatnonzero(mask).tolist() for _, mask in table]
        if kind == "dpo":
            assert losses == [list(range(8, 16)), list(range(5, 9)), [1, 2]]
            assert table.targets is None
        else:
            assert losses == [[11, 15], [6, 8], [1, 2]]
            assert [table.targets_of(row).tolist() for row in range(3)] == [[1.0, 0.0]] * 3


@pytest.mark.parametrize("kind", ["grpo", "ppo", "online_dpo", "best_of_n"])
def test_a_policys_loss_on_rows_is_summed_over_their_completions(kind: str) -> None:
    """In evaluations, nats of a row; what is sampled is a prompt without its answer."""
    model, table = small_model("gpt2"), completions_table()
    objective = objective_of(kind, rewards=["exact"])
    each = next_token_losses(model, collate(table, range(3)))
    expected = [part.sum().item() for part in torch.split(each, [5, 9, 6])]
    losses = objective.build().losses(model, collate(table, range(3)))
    assert losses.tolist() == pytest.approx(expected)
    chat = ({"role": "user", "content": "q"},)
    (prompt,) = objective.render(Renderer(byte_tokenizer()), Example(SOURCE, messages=chat))
    assert prompt.is_prompt
    assert prompt.text.endswith("<|im_start|>assistant\n")


def test_ktos_completions_are_rows_of_their_own() -> None:
    answers = tuple(
        Completion(({"role": "assistant", "content": text},), score) for text, score in (("a", 1.0), ("b", 0.0))
    )
    example = Example(SOURCE, messages=({"role": "user", "content": "q"},), completions=answers)
    rows = objective_of("kto").render(Renderer(byte_tokenizer()), example)
    assert [(row.scores, [text.text.count("q") for text in row.completions]) for row in rows] == [
        ((1.0,), [1]),
        ((0.0,), [1]),
    ]


def test_an_objective_without_rollouts_or_a_reference_has_none_of_their_methods() -> None:
    objective: Any = objective_of("text").build()
    for method in (objective.collect, objective.evaluate):
        with pytest.raises(NotImplementedError):
            method(None)
    with pytest.raises(NotImplementedError):
        objective.reference(None, None)
    assert objective.state() == {}
    assert objective.stop_reason() is None
    assert objective.layers is None
    assert (objective.is_per_token, objective.needs_reference) == (True, False)
    others = {kind: objective_of(kind).build() for kind in ("dpo", "kto", "listwise", "reward")}
    assert {kind: (each.is_per_token, each.needs_reference) for kind, each in others.items()} == {
        "dpo": (False, True),
        "kto": (False, True),
        "listwise": (False, True),
        "reward": (False, False),
    }
    policies = [objective_of(kind, rewards=["exact"]).build() for kind in ("grpo", "ppo", "online_dpo", "best_of_n")]
    assert not any(policy.is_per_token for policy in policies)


def test_objectives_end_in_the_head_of_their_kind() -> None:
    heads = {
        "text": "causal_lm",
        "seq2seq": "seq2seq_lm",
        "distillation": "causal_lm",
        "dpo": "causal_lm",
        "kto": "causal_lm",
        "grpo": "causal_lm",
        "reward": "reward",
        "process_reward": "process_reward",
        "graded_reward": "graded_reward",
    }
    required = {"distillation": {"teacher": "t"}, "grpo": {"rewards": ["exact"]}}
    assert {kind: objective_of(kind, **required.get(kind, {})).head.kind for kind in heads} == heads


def test_completions_without_a_reference_are_compared_as_they_are() -> None:
    """NaN stands for what is not known, as in an evaluation beside other models."""
    model, table = small_model("gpt2"), completions_table()
    batch = collate(table, range(3))
    objective = objective_of("dpo", beta=0.5).build()
    log_probs = objective.reference(model, batch)
    assert not log_probs.requires_grad
    figures = objective.figures(model, batch)
    assert figures["margin"][0].item() == pytest.approx(0.5 * (log_probs[0] - log_probs[1]).item(), rel=1e-6)
    assert figures["margin"][2].item() == pytest.approx(0.5 * (log_probs[6] - log_probs[5]).item(), rel=1e-6)
    assert not figures["loss"].requires_grad
    loss = objective.loss(model, batch)
    assert loss.requires_grad
    assert loss.item() == pytest.approx(figures["loss"].sum().item())
    notes = objective.take_notes()
    assert notes.keys() == {"accuracy", "margin", "chosen_reward", "rejected_reward"}
    assert notes["margin"] == pytest.approx(figures["margin"].mean().item())
