"""From the options of `tunesmith serve` to a service: the model, its adapters, its keys, its limits."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # typing's cannot be checked by pydantic before Python 3.12

from tunesmith.errors import UserError
from tunesmith.inference.drafts import LOOKUP
from tunesmith.inference.generate import Generator
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.model import Model
from tunesmith.inference.sampling import Sampling
from tunesmith.ops import native
from tunesmith.prompting.prompt import Prompt
from tunesmith.prompting.prompted import PromptRenderer
from tunesmith.serving.adapters import ServedAdapters
from tunesmith.serving.engine_thread import EngineThread
from tunesmith.serving.feedback import Feedback
from tunesmith.serving.keys import Keys, read_keys
from tunesmith.serving.service import Limits, Service


class ServiceOptions(TypedDict, total=False):
    """The options of `load_service`, which explains them."""

    adapters: Mapping[str, str | Path] | None
    adapter_directory: str | Path | None
    name: str | None
    api_key_file: str | Path | None
    weights: str | None
    device: str
    precision: str
    concurrent: int
    draft: str | None
    cache: str
    temperature: float | None
    limits: Limits | None
    feedback: str | Path | None
    log_prompts: bool
    prompt: Prompt | None


def load_service(
    model: str,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    adapter_directory: str | Path | None = None,
    name: str | None = None,
    api_key_file: str | Path | None = None,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    concurrent: int = CONCURRENT,
    draft: str | None = LOOKUP,
    cache: str = "auto",
    temperature: float | None = None,
    limits: Limits | None = None,
    feedback: str | Path | None = None,
    log_prompts: bool = False,
    prompt: Prompt | None = None,
) -> Service:
    """A model, loaded and ready to be served.

    Args:
        model: a run, an adapter, a model directory, a GGUF file, a short or a hub name, or `embedded`.
        adapters: runs or adapter directories to serve beside it, by name.
        adapter_directory: with one run or adapter in each subdirectory, served by its name. Read when first asked for,
            and again when the files have changed.
        name: that clients call the model by; None: the last part of `model`.
        api_key_file: with keys from `tunesmith keys add`; None: no client needs one.
        weights: precision of the base's frozen weights: int8, nf4 …; None: as in the run.
        device: `auto`, `cpu`, `cuda`, …
        precision: `auto`, `bf16` or `fp32`.
        concurrent: the most answers at the same time; others wait.
        draft: what guesses the next tokens, which changes the time and not the answers: `lookup` (in the text so far),
            or the name of a smaller model with the same tokenizer; None: nothing.
        cache: how keys and values are stored: `auto` (as the model computes them), or `int8`.
        temperature: for requests without one; None: the model's own default, else 1, as OpenAI's protocol has it.
        limits: on requests; None: `Limits()`.
        feedback: a JSONL file for what `/v1/feedback` receives; None: it is refused.
        log_prompts: whether prompts and answers are in the log.
        prompt: put before all chats, whichever adapter answers; texts to complete have none.

    Raises:
        UserError: the model, an adapter or the draft model cannot be loaded, or a file cannot be used.
    """
    keys = Keys() if api_key_file is None else Keys(read_keys(Path(api_key_file)))
    kept = None if feedback is None else Feedback(Path(feedback))
    loaded = Model(model, device, precision, weights, concurrent, cache)
    generator = _generator(loaded, draft)
    native.end_workers()  # from here on the engine's thread computes, with workers of its own
    called = name or name_of(model)
    return Service(
        loaded,
        called,
        EngineThread(generator),
        adapters=_adapters(loaded, called, adapters or {}, adapter_directory),
        keys=keys,
        limits=limits or Limits(),
        feedback=kept,
        default=_defaults(generator, temperature),
        draft=draft,
        logs_prompts=log_prompts,
        prompt=None if prompt is None else PromptRenderer.of(prompt, loaded),
    )


def _generator(model: Model, draft: str | None) -> Generator | None:
    """What writes texts, if the model does; its weights and those of the draft model are in memory then."""
    if "generate" not in model.head.commands:
        assert model.model is not None  # loaded, so that the first request does not wait for it
        return None
    model.generator.drafter(draft)
    return model.generator


def _adapters(
    model: Model, name: str, given: Mapping[str, str | Path], directory: str | Path | None
) -> ServedAdapters | None:
    """Adapters beside the model; None if there are none."""
    if not given and directory is None:
        return None
    model.require("generate")
    model.generator.require_base()
    if name in given:
        raise UserError(f"The name {name} is the model's own. Give the adapter another one.")
    if directory is not None and not Path(directory).is_dir():
        raise UserError(f"{directory} is not a directory.")
    paths = {each: Path(path) for each, path in given.items()}
    return ServedAdapters(model.generator.paged.adapters, paths, None if directory is None else Path(directory))


def _defaults(generator: Generator | None, temperature: float | None) -> Sampling:
    """The sampling that the model's authors recommend in its `generation_config.json`; else OpenAI's, temperature 1."""
    default = Sampling(temperature=1.0)
    if generator is not None and generator.model.generation_config.do_sample:
        config: Any = generator.model.generation_config
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        found = {each: getattr(config, each, None) for each in names}
        default = replace(default, **{each: value for each, value in found.items() if value is not None})
    return default if temperature is None else replace(default, temperature=temperature)


def name_of(model: str) -> str:
    """What clients call a model that is given no other name: the last part of its path, or its whole hub name."""
    path = Path(model)
    return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name if path.exists() else model
