"""Memory of a tuned model after training: while its adapter is merged, and while it serves. Serving needs the weights
and the keys and values of the tokens read so far (Pope et al. 2022)."""

from transformers import PretrainedConfig

from tunesmith.config.data import Data
from tunesmith.inference.pages import pages_for
from tunesmith.models.load import config_of
from tunesmith.planner.device import program_bytes
from tunesmith.planner.loading import stored_bytes, while_loading
from tunesmith.planner.plan import FIRST_USE, Plan

FP32 = 4

COMPARING = 40 * 10**6
"""Bytes of the libraries that exporting and comparing import beyond those of a plan (measured with gpt2-30m)."""

COPIES = 4
"""How often a row's logits are in memory while the export is compared: as computed, at the row's loss tokens, and the
model's own beside them, with room for the pieces in float64 (measured: 3.6)."""


def merging_memory(plan: Plan) -> dict[str, int] | None:
    """Host bytes by part of `tunesmith export`. Merging itself needs a layer at a time; at the peak, one of the two
    models that are compared, in fp32, is read from its file or computes the logits of the longest row.

    Returns:
        None if the method is not merged.
    """
    recipe, step = plan.batch_plan.recipe, plan.step
    if not recipe.method.is_mergeable:
        return None
    program = plan.device.program_bytes if plan.device.is_this_cpu else program_bytes()
    held = {"program": program + FIRST_USE + COMPARING, "weights": FP32 * step.parameters}
    reading = {"stored weights": stored_bytes(recipe.base, step), "adapters": FP32 * step.trained}
    vocabulary = config_of(recipe.base).get_text_config().vocab_size
    computing = {"adapters": FP32 * step.trained, "logits": COPIES * FP32 * _compared_tokens(plan) * vocabulary}
    return held | max(reading, computing, key=_total)


def _compared_tokens(plan: Plan) -> int:
    """Tokens of the longest row that an export is compared on. Rows that training cuts are read as they were."""
    rows, most = plan.batch_plan, int(Data.model_fields["max_length"].default)
    longest = max(rows.longest, *rows.held_out.lengths.tolist(), 0)
    return min(longest, most) if longest < rows.recipe.data.max_length else most


def serving_memory(plan: Plan, context: int, concurrency: int, page: int | None) -> dict[str, int]:
    """Bytes by part at the peak: while the tuned model is loaded, or while it serves.

    Args:
        plan: of the run.
        context: tokens per answer, read and written.
        concurrency: answers served in parallel.
        page: bytes of a page of the cache in all layers (`planner.generation`). None: the model has none, and each
            answer has a cache of transformers.
    """
    step, device, base = plan.step, plan.device, plan.batch_plan.recipe.base
    program = {"program": device.program_bytes + (FIRST_USE if device.is_this_cpu else 0)}
    held = {name: step.parts[name] for name in ("weights", "quantization constants", "adapters") if name in step.parts}
    held["weights"] = held.get("weights", 0) + step.parts.get("trained weights", 0)
    if page is None:
        per_answer = key_value_bytes(config_of(base), context, plan.dtype.itemsize)
    else:
        per_answer = pages_for(context) * page
    workspace = sum(step.evaluation_parts.get(name, 0) for name in ("workspace", "loss"))
    serving = held | {"key–value cache": per_answer * concurrency, "workspace": workspace}
    loading = while_loading(base, step, plan.dtype, device)
    del loading["reference models"]
    return program | max(loading, serving, key=_total)


def _total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def key_value_bytes(config: PretrainedConfig, tokens: int, itemsize: int) -> int:
    """Bytes of the keys and values of one text in a cache of transformers: 2 · layers · kv_heads · head_dim · tokens ·
    bytes per number. A layer with a sliding window keeps at most its window.

    Args:
        config: of the model.
        tokens: length of the text.
        itemsize: bytes per number.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    window = getattr(text, "sliding_window", None) or tokens
    # Mistral's config has no layer_types and uses its window in every layer, as transformers' cache assumes
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    cached = sum(min(window, tokens) if kind == "sliding_attention" else tokens for kind in kinds)
    return int(2 * heads * width * cached * itemsize)
