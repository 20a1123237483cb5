"""Best of n: of the policy's own samples, the best are examples (rejection sampling; over several phases, expert
iteration). It is the baseline that reinforcement learning has to beat."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.tokens import TokenTable
from tunesmith.models.forward import next_token_loss
from tunesmith.objectives.completion_rows import StepTotals, completion_lengths
from tunesmith.objectives.policy import PolicyObjective
from tunesmith.objectives.policy_config import PolicyConfig
from tunesmith.objectives.policy_watch import PolicyWatch
from tunesmith.objectives.sampler_checks import Columns
from tunesmith.objectives.scored import Scored


class BestOfN(PolicyConfig):
    """loss = −Σ log p of the tokens of the best of `group_size` completions of each prompt (RAFT: Dong et al. 2023,
    algorithm 1), or of all with at least a `threshold` (ReST: Gulcehre et al. 2023). A phase serves `passes` ×
    `minibatches` optimizer steps; then the new weights sample (expert iteration)."""

    kind: Literal["best_of_n"] = "best_of_n"

    group_size: int = Field(default=8, ge=2)
    """n: completions of each prompt."""

    threshold: float | None = None
    """Keep all different completions with at least this reward. Default: the best one of each prompt, unless all are as
    good. With rewards of 0 and 1, `threshold: 1` keeps what is right (Yuan et al. 2023, section 3.3)."""

    @property
    def needs_reference(self) -> bool:
        return self.max_kl is not None

    @property
    def trained(self) -> int:
        return 1 if self.threshold is None else self.group_size

    def build(self, references: Sequence[Any] = ()) -> "BestOfNLoss":
        return BestOfNLoss(self)


class BestOfNLoss(PolicyObjective):
    """The next-token loss of the completions that are kept, as a mean over the tokens of a step."""

    config: BestOfN

    def __init__(self, config: BestOfN) -> None:
        super().__init__(config)
        self._watch = PolicyWatch(config.group_size, config.max_kl, config.threshold is None)

    def finish(self, table: TokenTable, scored: Scored, columns: Columns) -> dict[str, Any]:
        columns.pop("reference", None)
        del columns["old"]
        return {"kept": sum(map(len, self.chosen(scored)))}

    def chosen(self, scored: Scored) -> list[list[int]]:
        """The best one, or none of a tie; with a threshold, all that reach it, each text once."""
        if self.config.threshold is None:
            best = scored.rewards.argmax(1).tolist()
            return [[] if tie else [index] for index, tie in zip(best, scored.is_dead, strict=True)]
        kept = []
        for rewards, group in zip(scored.rewards, scored.groups, strict=True):
            first: dict[tuple[int, ...], int] = {}
            for index, (reward, completion) in enumerate(zip(rewards, group, strict=True)):
                if reward >= self.config.threshold:
                    first.setdefault(tuple(completion.tokens), index)
            kept.append(list(first.values()))
        return kept

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        loss = next_token_loss(model, batch)
        step = self.step or StepTotals.of(batch)
        tokens = sum(completion_lengths(batch))
        self.note(tokens, nll_kept=loss.detach() / tokens)
        weight = batch.columns.get("weight")
        kept = 1.0 if weight is None else float(weight.max())  # 0 where none is kept
        return kept * step.rows / step.tokens * loss
