"""Every setting of the objectives that learn from their own samples, by its formula on texts computed one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from completions import COMPLETIONS, PROMPTS, completions_table
from rollouts import Values, plain_llama, rollouts_over, shift_log_probs, tiny_llama
from running_server import served
from settings_coverage import shows
from small_models import objective_of, own_forward, small_model
from torch import Tensor

from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.interrupt import Interruption
from tunesmith.errors import UserError
from tunesmith.objectives.rollouts import Completion, Prompt
from tunesmith.objectives.sampler_checks import MOST_GAP
from tunesmith.ops.policy_loss import advantages
from tunesmith.training.rollout_rewards import reward_of

LENGTHS = [len(answer) for answers in COMPLETIONS for answer in answers]
FIRST_OF_GROUP = [0, 2, 5, 7]


def known(seed: int) -> list[Tensor]:
    """Numbers for each token of each completion, in float64 as float32 has them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator).double() for length in LENGTHS]


ADVANTAGE, OLD, REFERENCE, WEIGHT = known(1), known(2), known(3), [each.abs() for each in known(4)]


def table_with_columns(model: Any, temperature: float) -> TokenTable:
    """The completions, with log π_old and log π_ref near log π, so that some tokens are clipped."""
    table = completions_table()
    near = [each.detach().double() for each in log_probs(model, temperature)]
    columns = {
        "advantage": ADVANTAGE,
        "weight": WEIGHT,
        "old": [own + 0.3 * noise for own, noise in zip(near, OLD, strict=True)],
        "reference": [own + 0.3 * noise for own, noise in zip(near, REFERENCE, strict=True)],
    }
    arrays = {}
    for name, values in columns.items():
        arrays[name] = np.zeros(len(table.ids), np.float32)
        arrays[name][table.loss_mask] = torch.cat(values).float().numpy()
    return replace(table, columns=arrays)


def log_probs(model: Any, temperature: float = 1.0) -> list[Tensor]:
    """log π of each completion's tokens, each completion after its prompt as a text of its own."""
    found = []
    for prompt, answers in zip(PROMPTS, COMPLETIONS, strict=True):
        for answer in answers:
            ids = torch.tensor([*prompt, *answer])[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0] / temperature
            logs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
            found.append(logs.gather(1, ids[0, len(prompt) :, None])[:, 0])
    return found


def columns_of(table: TokenTable, name: str) -> list[Tensor]:
    values = torch.from_numpy(table.columns[name][table.loss_mask]).double()
    return list(torch.split(values, LENGTHS))


def expected_loss(model: Any, table: TokenTable, config: Any) -> Tensor:
    """The loss of the step, completion by completion and token by token."""
    own = log_probs(model, config.temperature)
    old, reference, advantage, weight = (
        columns_of(table, name) for name in ("old", "reference", "advantage", "weight")
    )
    low, high = config.clip, config.clip_high or config.clip
    per_completion = []
    for i, each in enumerate(own):
        losses = []
        for t in range(len(each)):
            log_ratio = (each - old[i]).mean() if config.importance == "sequence" else each[t] - old[i][t]
            ratio = log_ratio.exp()
            loss = -torch.minimum(ratio * advantage[i][t], ratio.clamp(1 - low, 1 + high) * advantage[i][t])
            loss = loss * weight[i][t]
            if config.kl_in == "loss":
                difference = reference[i][t] - each[t]
                loss = loss + config.beta * (difference.exp() - difference - 1)
            losses.append(loss)
        per_completion.append(torch.stack(losses))
    if config.normalization == "tokens":
        return torch.cat(per_completion).mean()
    if config.normalization == "sequences":
        return torch.stack([each.mean() for each in per_completion]).mean()
    return torch.stack([each.sum() for each in per_completion]).mean() / config.max_new_tokens


@shows(
    "objective.grpo.importance",
    "objective.grpo.clip",
    "objective.grpo.clip_high",
    "objective.grpo.normalization",
    "objective.grpo.beta",
    "objective.grpo.temperature",
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "clip": 0.1, "clip_high": 0.4, "max_new_tokens": 9, "normalization": "constant"},
        {"importance": "sequence", "clip": 0.02, "normalization": "sequences", "beta": 0.3},
    ],
    ids=["default", "dr_grpo", "gspo"],
)
def test_loss_and_gradients_are_the_formula_on_separate_texts(options: dict[str, Any]) -> None:
    """In float64 on GPT-2, whose norms do not compute in fp32; one batch, and accumulated over three."""
    model = small_model("gpt2")
    config = objective_of("grpo", rewards=["exact"], **options)
    table = table_with_columns(own_forward(model), config.temperature)
    plain = own_forward(model)
    expected = expected_loss(plain, table, config)
    gradients = torch.autograd.grad(expected, list(plain.parameters()))
    for batches in ([[0, 1, 2]], [[2], [0], [1]]):
        objective = config.build()
        objective.begin_step(table, [0, 1, 2])
        total = sum(objective.loss(model, collate(table, rows)) for rows in batches) / 3
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        for ours, theirs in zip(torch.autograd.grad(total, list(model.parameters())), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        assert 0 < objective.take_notes()["clipped"] < 1


def phase_table(loop: Any) -> Any:
    """The table of the present phase."""
    assert loop.phases is not None
    return loop.phases.collected.table


def split(table: TokenTable, name: str) -> list[list[float]]:
    """A column's values at each completion's tokens."""
    assert table.completions is not None
    lengths = [length for row in range(len(table)) for length in table.completions.of(row)[0][1:]]
    return [part.tolist() for part in torch.split(torch.from_numpy(table.columns[name][table.loss_mask]), lengths)]


def rewards_of(table: TokenTable) -> list[list[float]]:
    """Of each row's completions."""
    assert table.completions is not None
    return [list(table.completions.of(row)[1]) for row in range(len(table))]


# PPO


@shows("objective.ppo.clip", "objective.ppo.value_clip", "objective.ppo.value_weight", "objective.ppo.temperature")
@pytest.mark.parametrize(
    "options",
    [{}, {"clip": 0.1, "value_clip": None, "value_weight": 0.7, "temperature": 0.7}],
    ids=["default", "other"],
)
@shows("objective.ppo.value_body")
@pytest.mark.parametrize("body", ["shared", "frozen"])
def test_ppos_loss_and_gradients_are_the_formula_on_separate_texts(options: dict[str, Any], body: str) -> None:
    model = small_model("gpt2")
    config = objective_of("ppo", rewards=["exact"], value_body=body, **options)
    table = table_with_columns(own_forward(model), config.temperature)
    returns, before = known(5), known(6)
    columns = dict(table.columns)
    for name, values in (("return", returns), ("value", before)):
        columns[name] = np.zeros(len(table.ids), np.float32)
        columns[name][table.loss_mask] = torch.cat(values).float().numpy()
    table = replace(table, columns=columns)
    objective = config.build()
    objective.add_layers(model)
    objective.layers.double()
    torch.nn.init.normal_(objective.layers.weight, generator=torch.Generator().manual_seed(0))

    plain = own_forward(model)
    head = torch.nn.Linear(plain.config.n_embd, 1).double()
    head.load_state_dict(objective.layers.state_dict())
    losses = []
    pairs = [(prompt, answer) for prompt, answers in zip(PROMPTS, COMPLETIONS, strict=True) for answer in answers]
    old, advantage, weight = (torch.cat(columns_of(table, name)) for name in ("old", "advantage", "weight"))
    start = 0
    for (prompt, answer), own in zip(pairs, log_probs(plain, config.temperature), strict=True):
        ids = torch.tensor([*prompt, *answer])[None]
        states = plain.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        states = states if body == "shared" else states.detach()
        for t in range(len(answer)):
            at = start + t
            ratio = torch.exp(own[t] - old[at])
            a = advantage[at]
            policy = -torch.minimum(ratio * a, ratio.clamp(1 - config.clip, 1 + config.clip) * a) * weight[at]
            value = head(states[len(prompt) - 1 + t])[0]
            target, previous = (columns_of_tokens(table, name)[at] for name in ("return", "value"))
            loss = 0.5 * (value - target) ** 2
            if config.value_clip is not None:
                near = previous + (value - previous).clamp(-config.value_clip, config.value_clip)
                loss = torch.maximum(loss, 0.5 * (near - target) ** 2)
            losses.append(policy + config.value_weight * loss)
        start += len(answer)
    expected = torch.stack(losses).mean()
    theirs = torch.autograd.grad(expected, [*plain.parameters(), *head.parameters()])
    for batches in ([[0, 1, 2]], [[1], [2, 0]]):
        objective.begin_step(table, [0, 1, 2])
        total = sum(objective.loss(model, collate(table, rows)) for rows in batches) / 3
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        ours = torch.autograd.grad(total, [*model.parameters(), *objective.layers.parameters()])
        for own, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, their, rtol=1e-6, atol=1e-7)


def columns_of_tokens(table: TokenTable, name: str) -> Tensor:
    return torch.from_numpy(table.columns[name][table.loss_mask]).double()


@shows(
    "objective.ppo.gamma",
    "objective.ppo.lam",
    "objective.ppo.kl_weight",
    "objective.ppo.whiten",
    "objective.ppo.whiten_rewards",
    "objective.ppo.truncated_reward",
)
@pytest.mark.parametrize(
    "options",
    [
        {"kl_weight": 0.3},
        {"kl_weight": 0.2, "gamma": 0.9, "lam": 0.5, "whiten": False, "whiten_rewards": True, "truncated_reward": -2.0},
    ],
    ids=["default", "other"],
)
def test_ppos_advantages_are_of_rewards_with_the_distance_to_the_start(tmp_path: Path, options: dict[str, Any]) -> None:
    """In the second phase, whose policy is not the start's any more, by the definition of each sum."""
    loop, _ = rollouts_over(tmp_path, kind="ppo", steps=2, passes=1, group_size=3, rate=1e-2, **options)
    loop.step()
    loop.step()
    table, config = phase_table(loop), loop.objective.config
    old, reference, values = (split(table, name) for name in ("old", "reference", "value"))
    per_token = [
        [-options["kl_weight"] * (a - b) for a, b in zip(*pair, strict=True)]
        for pair in zip(old, reference, strict=True)
    ]
    flat = [reward for rewards in rewards_of(table) for reward in rewards]
    assert table.completions is not None
    ids = [table[row][0] for row in range(len(table))]
    ends = [
        int(part[-1])
        for row, tokens in enumerate(ids)
        for part in np.split(tokens, np.cumsum(table.completions.of(row)[0])[:-1])[1:]
    ]
    assert loop.phases is not None
    for tokens, reward, end in zip(per_token, flat, ends, strict=True):
        is_cut = end not in loop.phases.sampler.stops
        tokens[-1] += config.truncated_reward if is_cut and config.truncated_reward is not None else reward
    if config.whiten_rewards:
        every = np.concatenate(per_token)
        scaled = (every - every.mean()) / (every.std(ddof=1) + 1e-6) + every.mean()
        per_token = [part.tolist() for part in np.split(scaled, np.cumsum([len(each) for each in per_token])[:-1])]
    expected = []
    for reward, value in zip(per_token, values, strict=True):
        later = [*value[1:], 0.0]
        deltas = [r + config.gamma * after - v for r, after, v in zip(reward, later, value, strict=True)]
        decay = config.gamma * config.lam
        expected += [sum(decay ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]
    returns = np.array(expected) + np.concatenate(values)
    np.testing.assert_allclose(np.concatenate(split(table, "return")), returns, rtol=1e-4, atol=1e-5)
    if config.whiten:
        expected = list((np.array(expected) - np.mean(expected)) / (np.std(expected, ddof=1) + 1e-6))
    np.testing.assert_allclose(np.concatenate(split(table, "advantage")), expected, rtol=1e-3, atol=1e-4)


@shows("objective.ppo.kl_target")
def test_the_weight_of_the_distance_follows_its_target(tmp_path: Path) -> None:
    """A tenth of the relative error, which is −1, at most 0.2, in each phase of a policy that stays."""
    loop, events = rollouts_over(tmp_path, kind="ppo", steps=3, passes=1, rate=0.0, kl_target=4.0, kl_weight=0.1)
    for _ in range(3):
        loop.step()
    weights = [event["kl_weight"] for event in events if event["event"] == "step"]
    assert weights == pytest.approx([0.1, 0.1 * 0.98, 0.1 * 0.98**2])


@shows("objective.ppo.value_learning_rate")
def test_the_value_head_has_a_rate_of_its_own() -> None:
    assert objective_of("ppo", rewards=["exact"]).head_learning_rate_at(4096) == 8 / 4096
    assert objective_of("ppo", rewards=["exact"], value_learning_rate=0.003).head_learning_rate_at(4096) == 0.003


# What they share

KINDS = ("grpo", "ppo", "online_dpo", "best_of_n")


def of_all(*names: str, kinds: Sequence[str] = KINDS) -> tuple[str, ...]:
    return tuple(f"objective.{kind}.{name}" for kind in kinds for name in names)


@shows(*of_all("group_size", "prompts", "max_new_tokens", "passes", "minibatches"))
@pytest.mark.parametrize(("kind", "trained"), [("grpo", 3), ("ppo", 3), ("online_dpo", 2), ("best_of_n", 1)])
def test_a_phase_has_the_completions_and_steps_that_it_is_to_have(tmp_path: Path, kind: str, trained: int) -> None:
    sizes = {"prompts": 2, "group_size": 3, "max_new_tokens": 4, "passes": 3, "minibatches": 2}
    loop, events = rollouts_over(tmp_path, kind=kind, steps=6, **sizes)
    for _ in range(6):
        loop.step()
    table, updates = phase_table(loop), loop.phases.collected.updates  # type: ignore[union-attr]
    assert table.completions is not None
    assert [len(table.completions.of(row)[0]) - 1 for row in range(2)] == [trained] * 2
    assert max(max(table.completions.of(row)[0][1:]) for row in range(2)) == 4
    assert next(event["completions"] for event in events if event["event"] == "step") == 6
    assert [sorted(row for rows in updates[start : start + 2] for row in rows) for start in (0, 2, 4)] == [[0, 1]] * 3
    assert [rows for rows in updates if len(rows) != 1] == []
    assert sum("completions" in event for event in events if event["event"] == "step") == 1


@shows(*of_all("max_sampler_weight", kinds=("grpo", "ppo")))
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_importance_weights_between_sampler_and_trainer_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The sampler is made to report half and twice the probability of each other token."""
    monkeypatch.setitem(MOST_GAP, torch.float32, 0.7)
    loop, _ = rollouts_over(tmp_path, kind=kind, steps=1, passes=2, group_size=2, max_sampler_weight=1.5)
    shift_log_probs(loop)
    loop.step()
    for weights in split(phase_table(loop), "weight"):
        assert weights == pytest.approx([0.5 if t % 2 == 0 else 1.5 for t in range(len(weights))], rel=1e-4)


@shows(*of_all("max_kl"))
@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_too_far_from_its_start_ends_the_run(tmp_path: Path, kind: str) -> None:
    loop, events = rollouts_over(tmp_path, kind=kind, steps=6, passes=1, rate=0.05, max_kl=0.02)
    assert loop.fit(Interruption()) == "early stopping"
    assert 0 < loop.state.step < 6
    (message,) = (event["message"] for event in events if event["event"] == "warning")
    assert "more than max_kl: 0.02" in message


@shows(*of_all("reward"))
@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_model_is_a_reward_function_of_weight_1(tmp_path: Path, kind: str) -> None:
    """Its path is resolved beside the recipe, like others; without any reward there is nothing to learn."""
    config = objective_of(kind, reward="liked", rewards=[{"function": "regex", "options": {"pattern": "a"}}])
    regex, model = config.with_absolute_paths(lambda path: str(tmp_path / path)).reward_functions
    assert regex.function == "regex"
    assert (model.title, model.weight, model.options) == (
        "model",
        1.0,
        {"model": str(tmp_path / "liked"), "reads": "chat"},
    )
    with pytest.raises(ValueError, match="nothing to learn from"):
        objective_of(kind)


@shows(*of_all("rewards.function", "rewards.weight", "rewards.options", "rewards.name", "rewards.timeout"))
@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_is_the_weighted_sum_of_the_functions(kind: str) -> None:
    """Of the answer's text, with the row's other columns; a chat's answer is a message."""
    functions = [
        "exact",
        {"function": "regex", "options": {"pattern": "^[a-z]+$"}, "weight": 0.5, "name": "letters", "timeout": 1.0},
    ]
    recipe = Recipe.load(
        {"base": "base", "data": {"train": "rows.jsonl"}, "objective": {"kind": kind, "rewards": functions}}
    )
    reward = reward_of(recipe, 10)
    texts = [{"role": "user", "content": "?"}]
    prompts = [Prompt([1], given, tuple(texts), {"answer": "paris"}, Source("rows", 1)) for given in ("?", texts, "?")]
    answers = [Completion([1], [0.0], text, False) for text in ("paris", "rome", "Rome!")]
    found = reward(prompts, answers, 3)
    assert found.total.tolist() == [1.5, 0.5, 0.0]
    assert found.names == ("exact", "letters")
    assert recipe.objective.reward_functions[1].timeout == 1.0


# GRPO


@shows("objective.grpo.advantage", "objective.grpo.kl_in")
@pytest.mark.parametrize("how", ["group", "group_mean", "leave_one_out", "batch", "group_batch"])
def test_a_distance_in_the_reward_is_subtracted_before_advantages(tmp_path: Path, how: str) -> None:
    """Of a whole completion; for `batch`, at each token that of the tokens to come."""
    loop, _ = rollouts_over(tmp_path, steps=2, rate=1e-2, advantage=how, kl_in="reward", beta=0.5)
    loop.step()
    loop.step()
    table = phase_table(loop)
    old, reference, found = (split(table, name) for name in ("old", "reference", "advantage"))
    rewards = [reward for each in rewards_of(table) for reward in each]
    log_ratios = [np.subtract(*pair) for pair in zip(old, reference, strict=True)]
    if how == "batch":
        returns = [r - 0.5 * each[::-1].cumsum()[::-1] for r, each in zip(rewards, log_ratios, strict=True)]
        flat = np.concatenate(returns)
        np.testing.assert_allclose(
            np.concatenate(found), (flat - flat.mean()) / (flat.std(ddof=1) + 1e-6), rtol=1e-3, atol=1e-4
        )
        return
    shaped = torch.tensor([r - 0.5 * each.sum() for r, each in zip(rewards, log_ratios, strict=True)]).view(2, 4)
    expected = advantages(shaped, how).flatten().tolist()  # type: ignore[arg-type]
    for tokens, value in zip(found, expected, strict=True):
        assert tokens == pytest.approx([value] * len(tokens), rel=1e-3, abs=1e-4)


@shows("objective.grpo.advantage")
def test_advantages_by_the_success_rate_refuse_what_is_no_rate(tmp_path: Path) -> None:
    loop, _ = rollouts_over(tmp_path / "rates", steps=1, advantage="group_rate", beta=0.5)
    loop.step()
    table = phase_table(loop)
    expected = advantages(torch.tensor(rewards_of(table)), "group_rate").flatten().tolist()
    for tokens, value in zip(split(table, "advantage"), expected, strict=True):
        assert tokens == pytest.approx([value] * len(tokens), rel=1e-3, abs=1e-4)
    below, _ = rollouts_over(tmp_path / "below", reward=lambda text: -0.5, steps=1, advantage="group_rate")
    with pytest.raises(UserError, match=r"needs rewards from 0 on, and one is -0\.5"):
        below.step()
    with pytest.raises(ValueError, match="Set kl_in: loss"):
        objective_of("grpo", rewards=["exact"], advantage="group_rate", beta=0.5, kl_in="reward")


@shows("objective.grpo.resampling")
def test_groups_without_a_difference_are_replaced_by_those_of_other_prompts(tmp_path: Path) -> None:
    """All answers to half of the prompts have the same reward."""
    rows = [f"{word}{number}" for number in range(4) for word in ("same", "differ")]
    shares = []
    for resampling in (0, 3):
        loop, events = rollouts_over(
            tmp_path, rows=rows, steps=1, prompts=4, rate=0.0, resampling=resampling, temperature=1.5
        )
        assert loop.phases is not None
        loop.phases.reward = lambda prompts, completions, _: Values(
            np.array(
                [
                    0.0 if str(prompt.given).startswith("same") else float(index % 4)
                    for index, (prompt, _) in enumerate(zip(prompts, completions, strict=True))
                ]
            )
        )
        loop.step()
        shares.append(events[-1]["dead_groups"])
        assert events[-1]["completions"] == 16
    assert shares[0] > 0
    assert shares[1] == 0


@shows("objective.grpo.skip_truncated")
def test_completions_that_were_cut_have_no_loss(tmp_path: Path) -> None:
    loop, _ = rollouts_over(tmp_path, steps=1, group_size=16, max_new_tokens=3, skip_truncated=True)
    assert loop.phases is not None
    stops = loop.phases.sampler.stops
    sample, cut = loop.phases.sampler.sample, []

    def some_end(*arguments: Any) -> Any:
        found = sample(*arguments)
        some = [replace(each, is_truncated=index % 3 == 0) for index, each in enumerate(found)]
        cut.extend(each.is_truncated for each in some)
        return some

    loop.phases.sampler.sample = some_end  # type: ignore[method-assign]
    loop.step()
    assert stops
    for weights, is_cut in zip(split(phase_table(loop), "weight"), cut, strict=True):
        assert weights == pytest.approx([0.0 if is_cut else 1.0] * len(weights), abs=1e-3)


# A server


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    plain_llama(torch.float32, 0.3).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def running(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the directory that it takes adapters from."""
    folder = tmp_path_factory.mktemp("shared")
    with served(base, adapters=folder) as server:
        yield server.server.address, folder


@shows(*of_all("sampler.server", "sampler.folder", "sampler.max_gap"))
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_samples_with_the_adapter_in_its_folder(
    tmp_path: Path, base: Path, running: tuple[str, Path], kind: str
) -> None:
    """It and the trainer differ by less than 1e-4 nats, and by more than 1e-12."""
    address, folder = running
    model = tiny_llama()
    model.name_or_path = str(base)
    server = {"server": f"{address}/v1#tiny", "folder": str(folder), "max_gap": 1e-4}
    loop, _ = rollouts_over(tmp_path, model=model, method="lora", kind=kind, sampler=server)
    before = set(folder.iterdir())
    loop.step()
    (directory,) = set(folder.iterdir()) - before
    assert (directory / "adapter_model.safetensors").exists()
    loop.phases.end()  # type: ignore[union-attr]
    assert not directory.exists()
    model = tiny_llama()
    model.name_or_path = str(base)
    loop, _ = rollouts_over(tmp_path, model=model, method="lora", kind=kind, sampler={**server, "max_gap": 1e-12})
    with pytest.raises(UserError, match=r"objective\.sampler\.max_gap is 1e-12"):
        loop.step()
