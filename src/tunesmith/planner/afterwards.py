"""What a tuned model holds when its adapter is merged, and when it answers: weights, and keys and values of what has
been read (Pope et al. 2022)."""

from transformers import AutoConfig, PretrainedConfig

from tunesmith.models.load import locate
from tunesmith.planner.device import program_bytes
from tunesmith.planner.loading import stored_bytes
from tunesmith.planner.plan import Plan

FP32 = 4

MERGED = ("lora", "ia3", "peft")
"""Methods whose adapters are sums or products that a weight can hold."""


def merging_memory(plan: Plan) -> dict[str, int] | None:
    """Bytes by part on the host, where the sum is made in fp32 (`models.merge`): the whole model, its files mapped
    beside it, the adapter, and of one matrix at a time a copy and what is added to it. None where nothing is merged."""
    recipe = plan.workload.recipe
    if recipe.method.kind not in MERGED:
        return None
    parameters = plan.step.parameters
    stored = stored_bytes(recipe.base) or parameters * plan.dtype.itemsize
    held = {"weights": FP32 * parameters, "stored weights": stored, "adapters": FP32 * plan.step.trained}
    return {"program": program_bytes()} | held | {"workspace": 2 * FP32 * plan.step.largest}


def serving_memory(plan: Plan, context: int, concurrency: int) -> dict[str, int]:
    """Bytes by part: the tuned model answering so many at once, each with so many tokens read and written.

    Keys and values: 2 · layers · kv_heads · head_dim · tokens · bytes a number, for each answer; a layer with a sliding
    window keeps no more than its window.
    """
    parts = plan.step.parts
    held = {name: parts[name] for name in ("weights", "quantisation constants", "adapters") if name in parts}
    held["weights"] = held.get("weights", 0) + parts.get("trained weights", 0)
    workspace = sum(plan.step.evaluating.get(name, 0) for name in ("workspace", "loss"))
    base = plan.workload.recipe.base
    config = AutoConfig.from_pretrained(locate(base), revision=base.revision, trust_remote_code=base.trust_remote_code)
    each = key_value_bytes(config, context, plan.dtype.itemsize)
    return (
        {"program": plan.device.program_bytes} | held | {"key–value cache": each * concurrency, "workspace": workspace}
    )


def key_value_bytes(config: PretrainedConfig, tokens: int, itemsize: int) -> int:
    """Of one text of so many tokens."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    window = getattr(text, "sliding_window", None) or tokens
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    seen = sum(min(window, tokens) if kind == "sliding_attention" else tokens for kind in kinds)
    return int(2 * heads * width * seen * itemsize)
