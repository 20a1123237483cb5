"""What a client did wrong, as OpenAI's protocol reports it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "server_error",
}


class ApiError(Exception):
    """A refused request.

    Attributes:
        status: of HTTP.
        message: one line: what is wrong and what to do.
        param: the field that is wrong.
        code: a word that programs compare.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error in JSON (https://platform.openai.com/docs/guides/error-codes)."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def unknown_model(name: str) -> ApiError:
    """For a model that is not there, or that the client has no right to: it cannot tell the two apart."""
    return ApiError(404, f"There is no model {name[:100]} here. /v1/models lists them.", "model", "model_not_found")


def internal_error() -> ApiError:
    """For a bug of ours: its details are in the server's log, and not in the response."""
    return ApiError(500, "The server failed on this request. Its log says why.", code="internal_error")


async def on_api_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of `ApiError`."""
    assert isinstance(error, ApiError)
    return error.response()
