"""What a tuned model holds when its adapter is merged, and when it answers: weights, and keys and values of what has
been read (Pope et al. 2022)."""

from transformers import PretrainedConfig

from tunesmith.models.load import config_of
from tunesmith.planner.device import program_bytes
from tunesmith.planner.loading import stored_bytes, while_loading
from tunesmith.planner.plan import FIRST_USE, Plan

FP32 = 4

MERGED = ("lora", "ia3", "peft")
"""Methods whose adapters are sums or products that a weight can hold."""


def merging_memory(plan: Plan) -> dict[str, int] | None:
    """Bytes by part on the host, where the sum is made in fp32 (`models.merge`): the whole model and the files that it
    is read from, which stay mapped while merged weights take the place of those that lie in them. None where nothing is
    merged."""
    recipe, step = plan.batch_plan.recipe, plan.step
    if recipe.method.kind not in MERGED:
        return None
    held = {"weights": FP32 * step.parameters, "stored weights": stored_bytes(recipe.base, step)}
    program = plan.device.program_bytes if plan.device.is_this_cpu else program_bytes()
    return {"program": program + FIRST_USE} | held | {"adapters": FP32 * step.trained}


def serving_memory(plan: Plan, context: int, concurrency: int) -> dict[str, int]:
    """Bytes by part when most are held: while the tuned model is loaded, or while it answers so many at once, each with
    so many tokens read and written.

    Keys and values: 2 · layers · kv_heads · head_dim · tokens · bytes a number, for each answer; a layer with a sliding
    window keeps no more than its window.
    """
    step, device, base = plan.step, plan.device, plan.batch_plan.recipe.base
    program = {"program": device.program_bytes + (FIRST_USE if device.is_this_cpu else 0)}
    held = {name: step.parts[name] for name in ("weights", "quantization constants", "adapters") if name in step.parts}
    held["weights"] = held.get("weights", 0) + step.parts.get("trained weights", 0)
    each = key_value_bytes(config_of(base), context, plan.dtype.itemsize)
    workspace = sum(step.evaluating.get(name, 0) for name in ("workspace", "loss"))
    answering = held | {"key–value cache": each * concurrency, "workspace": workspace}
    loading = while_loading(base, step, plan.dtype, device)
    del loading["reference models"]
    return program | max(loading, answering, key=_total)


def _total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def key_value_bytes(config: PretrainedConfig, tokens: int, itemsize: int) -> int:
    """Of one text of so many tokens."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    window = getattr(text, "sliding_window", None) or tokens
    # Mistral names no kinds, and has its window in every layer, as transformers' cache takes it
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    seen = sum(min(window, tokens) if kind == "sliding_attention" else tokens for kind in kinds)
    return int(2 * heads * width * seen * itemsize)
