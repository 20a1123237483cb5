"""The adapter in training on a server of vLLM or of `tunesmith serve`.

Both load a LoRA adapter while they run, by `/v1/load_lora_adapter`, from a directory that they share with this machine.
An adapter's name has the hash of its content: what the server computed with other weights, such as its cache of
prompts, is never used for these.
"""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.inference.openai_client import OpenAIClient, RefusedError
from tunesmith.inference.vllm_adapters import vllm_obstacle
from tunesmith.models.peft_import import import_peft
from tunesmith.run import atomic_directory

peft = import_peft()

DIRECTORY = "adapters_for_server"
"""In the run's directory: the adapter that the server samples with."""


class AdapterOnServer:
    """Has a server load the adapter in training.

    Args:
        model: in training, with LoRA applied.
        client: of the server.
        folder: a directory that the server sees at the same path; None: one in the run's directory.
        run: the directory of the run.

    Raises:
        UserError: the server cannot load such an adapter while it runs, or the folder is no directory.
    """

    def __init__(self, model: PreTrainedModel, client: OpenAIClient, folder: str | None, run: Path) -> None:
        self._model, self._client, self._run = model, client, run.absolute()
        given = None if folder is None else Path(folder)
        if given is not None and not given.is_dir():
            raise UserError(
                f"objective.sampler.folder: {given} is not a directory. Make it where the server sees it too."
            )
        self._folder = self._run / DIRECTORY if given is None else given.absolute()
        self._config = _peft_config(model)
        self._name: str | None = None

    def sent(self) -> str:
        """Have the server load the weights as they are now, unless it has them.

        Returns:
            The adapter's name there.

        Raises:
            UserError: they cannot be written, or the server does not load them.
        """
        name = f"{self._prefix}{self._identity()}"
        if name == self._name:
            return name
        directory = self._folder / name
        try:
            if not directory.exists():
                with atomic_directory(directory) as partial:
                    self._save(partial)
        except OSError as error:
            raise UserError(
                f"{directory} could not be written: {error}. Free some disk space, or set objective.sampler.folder."
            ) from None
        try:
            self._client.order("load_lora_adapter", lora_name=name, lora_path=str(directory))
        except RefusedError as error:
            if "already" not in error.why:  # of that name, which stands for this content
                raise UserError(
                    f"{self._client.url} does not load the adapter {directory}: {error.why.rstrip('.')}. It has to be "
                    "at the same path there. Start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and "
                    f"--max-lora-rank {self._config['r']} or more; tunesmith serve with --adapters {self._folder}."
                ) from None
        self._drop(self._name)
        self._name = name
        return name

    def drop_leftovers(self) -> None:
        """Have the server forget adapters of a process of this run that was killed, and remove their files."""
        for leftover in self._folder.glob(f"{self._prefix}*"):
            self._drop(leftover.name)

    def end(self) -> None:
        """Have the server forget the adapter, and remove its files."""
        self._drop(self._name)
        self._name = None
        if self._folder.parent == self._run:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, directory: Path) -> None:
        """Write PEFT's two files; its own function also writes a page about the model, which takes longer."""
        model: Any = self._model
        found = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        model.peft_config[model.active_adapter].save_pretrained(directory)

    def _drop(self, name: str | None) -> None:
        """Have the server forget an adapter, if it has it."""
        if name is None:
            return
        with suppress(UserError):  # the server has been restarted, or stopped
            self._client.order("unload_lora_adapter", lora_name=name)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    @property
    def _prefix(self) -> str:
        """What the names of the run's adapters begin with: another run may train the same."""
        return f"tunesmith-{hashlib.sha256(str(self._run).encode()).hexdigest()[:8]}-"

    def _identity(self) -> str:
        """The hash of the trained weights, and of how they are used."""
        digest = hashlib.sha256(json.dumps(self._config, sort_keys=True, default=str).encode())
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                digest.update(name.encode())
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:24]


def _peft_config(model: Any) -> dict[str, Any]:
    """The adapter's configuration, if a server can load it while it runs.

    Raises:
        UserError: it cannot.
    """
    configs = getattr(model, "peft_config", None)
    config: dict[str, Any] = {} if configs is None else configs[model.active_adapter].to_dict()
    obstacle = "no adapter" if configs is None else vllm_obstacle({**config, "peft_type": config["peft_type"].value})
    if obstacle is not None:
        raise UserError(
            f"objective.sampler: the server loads LoRA adapters, and this run trains {obstacle}. Set method: lora, or "
            "leave out objective.sampler."
        )
    return config
