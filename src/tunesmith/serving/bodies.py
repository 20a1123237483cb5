"""The bodies of requests: OpenAI's fields as far as they have an effect here; any other is refused by name."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.serving.errors import ApiError

Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Texts = str | Annotated[list[str], Field(min_length=1, max_length=2048)]

Default = Literal["auto", "default"]


class Body(BaseModel):
    """A request's body. A field without an effect here may be given with the value that has none anywhere."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(max_length=500)]


class StreamOptions(BaseModel):
    """Of a stream: whether its last event reports the numbers of tokens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(Body):
    """How an answer is sampled, and how it is sent.

    Attributes:
        user, safety_identifier, prompt_cache_key, metadata, service_tier, store: for OpenAI's own records; without an
            effect on an answer.
        top_k, min_p, repetition_penalty, regex, grammar: as in `tunesmith.generate`, beyond OpenAI's fields.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(min_length=0, max_length=1024)] | None
    ) = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(min_length=0, max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    regex: str | None = None
    grammar: str | None = None

    @property
    def tells_usage(self) -> bool:
        """Whether a stream's last event reports the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def refuse_unused_stream_options(self) -> None:
        """Refuse options of a stream where there is none.

        Raises:
            ApiError: there are such options.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true.", "stream_options")


class JsonSchema(BaseModel):
    """A JSON schema with a name."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the answer is: text, any JSON object, or JSON that follows a schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class FunctionName(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid")

    name: str


class NamedTool(BaseModel):
    """The tool that the answer has to call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionName


class Function(BaseModel):
    """A function that the answer may call."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that the answer may call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function


class ChatBody(Sampled):
    """Of `/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=0, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    service_tier: Default | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionBody(Sampled):
    """Of `/v1/completions`. Without an answer (`max_tokens: 0`), there is only the prompt to report (`echo`).

    Attributes:
        stop_token_ids: ids that end an answer, beside the model's own (vLLM's field).
        return_token_ids: whether each choice has `prompt_token_ids` and `token_ids` (vLLM's field). These and
            `logprobs` then have the token that ended the answer, too.
    """

    prompt: Texts | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=0, max_length=64)] | None = None
    return_token_ids: bool | None = None


class LoadAdapterBody(BaseModel):
    """Of `/v1/load_lora_adapter`, as vLLM has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadAdapterBody(BaseModel):
    """Of `/v1/unload_lora_adapter`, as vLLM has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]


class EmbeddingBody(Body):
    """Of `/v1/embeddings`."""

    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class ClassifyBody(Body):
    """Of `/v1/classify`."""

    input: Texts


class FeedbackBody(BaseModel):
    """Of `/v1/feedback`: what somebody thinks of a response.

    Attributes:
        id: of the response.
        thumb: up or down.
        better: a better answer.
        comment: anything else.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(min_length=1, max_length=100)]
    thumb: Literal["up", "down"] | None = None
    better: Annotated[str, Field(max_length=100_000)] | None = None
    comment: Annotated[str, Field(max_length=10_000)] | None = None


class TextFormat(BaseModel):
    """What the answer of a response is."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextSettings(BaseModel):
    """Of a response's text."""

    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None


class FlatTool(Function):
    """A tool as `/v1/responses` takes it."""

    type: Literal["function"]


class FlatNamedTool(FunctionName):
    """The tool that a response has to call."""

    type: Literal["function"]


class ResponseBody(Body):
    """Of `/v1/responses`."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    stream: bool | None = None
    text: TextSettings | None = None
    tools: Annotated[list[FlatTool], Field(min_length=0, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: Default | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


B = TypeVar("B", bound=BaseModel)


def parsed(kind: type[B], data: bytes) -> B:
    """The body in JSON.

    Raises:
        ApiError: it is not JSON, or has a field that is wrong or not supported; the first one is named.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ApiError:
    first = min(
        error.errors(include_url=False, include_input=False), key=lambda each: each["type"] != "extra_forbidden"
    )
    where = ".".join(str(part) for part in first["loc"] if not _is_inner(str(part)))
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"The body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}.", code="invalid_json"
        )
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{where} is not supported. Leave it out.", where, "unsupported_field")
    if first["type"] == "missing":
        return ApiError(400, f"{where} is missing.", where, "missing_field")
    return ApiError(400, f"{where}: {first['msg']}.", where, "invalid_value")


def _is_inner(part: str) -> bool:
    """Whether a part of a field's place names a type and not a field."""
    return "[" in part or part in ("str", "int", "constrained-str", "NamedTool", "FlatNamedTool") or "literal" in part
