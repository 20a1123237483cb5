"""The `train` section of a recipe: how long, how fast, how precisely."""

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from tunesmith.config.registry import Strict

MEMORY = r"^(\d+(?:\.\d+)?)\s*([KMG])(i?)B$"
"""The format of an amount of memory: `12GB`, `900MiB`."""


def bytes_in(memory: str) -> int | None:
    """An amount of memory in bytes; None if it does not match `MEMORY`."""
    match = re.fullmatch(MEMORY, memory)
    if match is None:
        return None
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMG".index(unit) + 1))


class EarlyStopping(Strict):
    """Stop when a held-out metric no longer improves."""

    metric: Literal["loss"] = "loss"
    """The watched metric of the `evaluation` event: the held-out loss, in nats per loss token."""

    patience: int = Field(default=3, ge=1)
    """Evaluations without improvement before the run stops. 3: one or two are often noise."""

    min_delta: float = Field(default=0.0, ge=0)
    """The smallest decrease (nats) that counts as an improvement. 0: any decrease."""


class Train(Strict):
    """How long, how fast, how precisely."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Set this or `epochs`, not both."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data. Default: 3 if `steps` is not set, the usual number for a few thousand instructions."""

    tokens_per_step: int = Field(default=2048, ge=1)
    """Approximate number of tokens (without padding) in an optimizer step. 2,048: about ten to twenty answers, enough
    for a stable gradient direction with LoRA on small data."""

    tokens_per_batch: int | None = Field(default=None, ge=8)
    """The most tokens in one batch (a longer example is a batch of its own). A step accumulates as many batches as it
    needs. Default: `tokens_per_step`, at most 2,048; larger batches are not faster on a CPU."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate. Default: the method's."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after warmup: `cosine` and `linear` fall to `min_lr_ratio`, `constant` does not fall."""

    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps over which the rate rises linearly from zero. 3 %: AdamW's variance estimate stabilizes."""

    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """The last step's rate as a share of the peak. 10 %: the last steps still learn, and a longer run can continue."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay per unit of learning rate; not applied to norms and biases. 0: data are small and runs
    short, and the decay of an adapter pulls toward the base, which is rarely a good default."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the gradient's first and second moments (Kingma & Ba 2015)."""

    eps: float = Field(default=1e-8, gt=0)
    """AdamW's guard against division by zero (Kingma & Ba 2015)."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """A larger gradient is scaled down to this Euclidean norm. 1: the usual value; it only affects spikes."""

    shuffle: bool = True
    """A new row order each epoch, from the seed. Off: the order of the file, for curricula and comparisons."""

    seed: int = 0
    """Seed of the row order, of new weights and of dropout."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of weights and activations in forward and backward. Trained weights always have fp32 master weights.
    Default: bf16 if this device multiplies matrices faster in it (measured once), else fp32."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` …. Default: a GPU if one is available."""

    gradient_checkpointing: bool = False
    """Activation checkpointing: store only each block's input and recompute the rest in the backward pass. It needs a
    fraction of the activation memory and about a third more time (Chen et al. 2016). Off: short rows fit on a laptop
    without it."""

    memory_limit: str | None = Field(default=None, pattern=MEMORY)
    """The most memory for the run, `12GB` or `900MiB`: of the process on a CPU, of PyTorch on a GPU. Activation
    checkpointing is turned on for as many blocks as needed, starting with the first; if that is not enough, batches are
    split in two. The optimizer step stays the same. Default: no limit, and no activation checkpointing."""

    offload_activations: bool = False
    """On a GPU: keep the activations in host memory between the forward and the backward pass. For rows that are too
    long even with activation checkpointing of every block. It costs the time of the transfers. On a CPU it has no
    effect, and the run warns."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "muon", "schedule_free"] = (
        "adamw"
    )
    """`adamw` (Loshchilov & Hutter 2019) with fp32 moments: the methods' default rates are chosen for it. `adamw_8bit`
    keeps the moments in 8 bits (Dettmers et al. 2022); `paged_adamw_8bit` also moves them to host memory when GPU
    memory is short. Both need CUDA; elsewhere plain AdamW is used, and the run warns. `adafactor` (Shazeer & Stern
    2018) keeps one row and one column of moments per matrix; `lion` (Chen et al. 2023) one moment, at a fifth of the
    rate; `muon` (Jordan et al. 2024) orthogonalizes the step of the blocks' matrices, at AdamW's step size;
    `schedule_free` (Defazio et al. 2024) averages weights instead of following `schedule`. Lion and schedule-free need
    `tunesmith[optimizers]`."""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Evaluate and save a moving average of the weights: average ← d · average + (1 − d) · weights after each step,
    with a smaller d in the first steps (Polyak & Juditsky 1992). Off: a falling rate already averages."""

    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate for each block further from the output (Clark et al. 2020, ELECTRA, appendix B: 0.8 for
    encoders). 1: adapters train equally well in all blocks, and the rate for fully trained encoders is small."""

    neftune_alpha: float | None = Field(default=None, gt=0)
    """NEFTune's α: noise on the embeddings during training, uniform in ±α / √(tokens · hidden) of each row (Jain et
    al. 2023: 5 to 15). Off: it makes answers longer, which should be a deliberate choice."""

    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints. Default: a tenth of the run, so that a killed run loses at most that."""

    keep_checkpoints: int = Field(default=1, ge=1)
    """How many of the newest checkpoints to keep, besides the best."""

    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on held-out rows; there is also one before the first step and one after the last.
    Default: ten times in the run, or more rarely, so that evaluating costs at most a tenth of the training."""

    evaluate_rows: int | None = Field(default=None, ge=1)
    """The most held-out rows in an evaluation during the run; the same rows each time. Default: as many as a tenth of
    the training's time allows, from 32 to 500. `tunesmith evaluate` uses all of them."""

    early_stopping: EarlyStopping | None = None
    """Stop when the held-out loss no longer falls. Off by default: a short run should take all its steps."""

    tensorboard: bool = False
    """Also write TensorBoard events into the run directory (needs the extra `tunesmith[tensorboard]`)."""

    @property
    def memory_bytes(self) -> int | None:
        """`memory_limit` in bytes."""
        return None if self.memory_limit is None else bytes_in(self.memory_limit)

    def checkpoint_steps(self, steps: int) -> int:
        """`checkpoint_every`, or its default for a run of `steps`."""
        return self.checkpoint_every or max(1, steps // 10)

    @property
    def max_batch_tokens(self) -> int:
        """`tokens_per_batch`, or its default."""
        return self.tokens_per_batch or min(self.tokens_per_step, 2048)

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, values: Any) -> Any:
        if isinstance(values, dict):
            steps, epochs = values.get("steps"), values.get("epochs")
            if steps is not None and epochs is not None:
                raise ValueError("set steps or epochs, not both")
            if steps is None and epochs is None:
                return {**values, "epochs": 3.0}
        return values
