"""Save a finished run's result: an adapter in PEFT's format or a model in Hugging Face's, with its tokenizer."""

from pathlib import Path

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.recipe import Recipe
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.errors import UserError
from tunesmith.heads.head_file import write_users_head
from tunesmith.models.attention import use_cached_attention
from tunesmith.models.load import stored_dtype
from tunesmith.models.peft_import import import_peft
from tunesmith.models.prompts import plain_model
from tunesmith.models.quiet import no_progress_bars
from tunesmith.modules.quantized_linear import dequantized_model
from tunesmith.modules.transposed_linear import as_stored
from tunesmith.run import Run, atomic_directory

PeftModel = import_peft().PeftModel


def save_output(
    run: Run,
    model: PreTrainedModel,
    masters: MasterWeights,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    classifier: nn.Linear | None = None,
) -> Path:
    """Write `adapter/` (fp32 masters) or `model/` (in the base's stored dtype, or in the working precision if that is
    narrower). The write is atomic.

    An embedding model also gets the files that sentence-transformers reads, with its classifier if it has one.

    Args:
        run: whose directory gets the result.
        model: as trained; its weights are replaced by those that are written.
        masters: the trained weights in fp32.
        tokenizer: of the training, with its chat template.
        recipe: of the run.
        classifier: of the model's vectors, if the objective fitted one.

    Returns:
        The directory that was written.

    Raises:
        UserError: it cannot be written; the run's checkpoints are intact.
    """
    head = recipe.objective.head if classifier is None else recipe.objective.head.with_classifier(classifier)
    is_adapter = isinstance(model, PeftModel)
    final = run.directory / ("adapter" if is_adapter else "model")
    use_cached_attention(plain_model(model))
    if is_adapter:
        for parameter, master in zip(masters.parameters, masters.views, strict=True):
            parameter.data = master
    else:
        stored = stored_dtype(recipe.base)
        dtype = stored if stored.itemsize < model.dtype.itemsize else model.dtype
        model = as_stored(dequantized_model(model, dtype).to(dtype))
    try:
        with atomic_directory(final) as partial, no_progress_bars():
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            head.save(partial, model, recipe.data.max_length)
            write_users_head(head, partial)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{final} could not be written: {error}. The last checkpoint is intact. Free some disk space, then run: "
            f"tunesmith train --resume {run.directory}"
        ) from None
    return final
