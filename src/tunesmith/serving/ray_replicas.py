"""The same server over several replicas, on one machine or on many, with Ray Serve.

`serve run tunesmith.serving.ray_replicas:replicas model=runs/mine replicas=2`, or a file such as
`deploy/ray-serve.yaml`. Each replica is a process with the model, its own queue and its own metrics; Ray's proxy passes
each request to one of the two replicas that have fewer open ones.
"""

from pathlib import Path
from typing import Any, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from tunesmith.errors import UserError
from tunesmith.inference.memory import CONCURRENT
from tunesmith.serving.app import application
from tunesmith.serving.load import ServiceOptions, load_service
from tunesmith.serving.server import DRAIN_SECONDS
from tunesmith.serving.service import Limits


class ReplicaOptions(ServiceOptions, total=False):
    """The arguments of `replicas`: those of `load_service`, and how many replicas with how many cores and GPUs each."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    model: Required[str]
    replicas: int
    cpus: float
    gpus: float


def replicas(args: dict[str, Any]) -> Application:
    """The application, for `serve run`, `serve deploy` and `serve.run`.

    Args:
        args: see `ReplicaOptions`. Paths have to be there on every machine of the cluster.

    Raises:
        UserError: an argument is missing, not known, or of another type; or one that several replicas cannot share.
    """
    options = _checked(args)
    count, cpus, gpus = options.pop("replicas", 1), options.pop("cpus", 1.0), options.pop("gpus", 0.0)
    if count > 1 and options.get("feedback") is not None:
        raise UserError(
            "feedback: each replica knows its own responses only. Set replicas to 1, or leave feedback out."
        )

    def build() -> Starlette:  # in the replica's process
        service = load_service(**options)
        return application(service, only_loopback=service.keys.are_none)

    limits = options.get("limits") or Limits()
    deployment = serve.deployment(
        name="tunesmith",
        num_replicas=count,
        max_ongoing_requests=options.get("concurrent", CONCURRENT) + limits.queue,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    return deployment(serve.ingress(build)()).bind()


def _checked(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments with their types; paths that are here are made absolute, since replicas start elsewhere."""
    try:
        options: dict[str, Any] = dict(TypeAdapter(ReplicaOptions).validate_python(args))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    options["model"] = _absolute(options["model"])
    for key in ("adapter_directory", "api_key_file"):
        if options.get(key) is not None:
            options[key] = _absolute(options[key])
    if options.get("adapters"):
        options["adapters"] = {name: _absolute(path) for name, path in options["adapters"].items()}
    return options


def _absolute(path: str | Path) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else str(path)
