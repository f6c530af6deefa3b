"""What clients send and get: the completions and chat completions of OpenAI's interface.

    bytes ──> JSON ──> Completion or Chat ──> a `generation.Request`
                 └── anything else ──> Refused: a status and one sentence

A field that this service has no meaning for is refused, not ignored: a client that asks for tools
or log-probabilities learns that it gets none.

Source: OpenAI, "API reference" (Completions; Chat completions; Errors).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

MOST_STOPS = 4
"""Texts that may end an answer, as in OpenAI's interface."""

Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Refused(Exception):
    """A request that is not answered: a status of HTTP and one sentence.

    Args:
        status: 400 to 599.
        sentence: names the value, the allowed range, the remedy.
        code: one word for programs.
        headers: of the answer.
    """

    def __init__(
        self, status: int, sentence: str, code: str, headers: dict[str, str] | None = None
    ):
        super().__init__(sentence)
        self.status, self.sentence, self.code = status, sentence, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        told = {"message": self.sentence, "type": kind, "param": None, "code": self.code}
        return {"error": told}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Body):
    """What a stream holds beside the text."""

    include_usage: bool = False
    """A last piece with the numbers of tokens."""


class _Asked(_Body):
    model: str | None = None
    """The name that /v1/models gives; None: the one that is served."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens to write at most; None: what the limits leave, at most 256."""
    temperature: float = Field(1.0, ge=0)
    """0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Among the likeliest tokens that hold this probability."""
    top_k: int | None = Field(None, ge=1)
    """Among the k likeliest tokens; not in OpenAI's interface."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Same seed, same text; None: another one each time."""
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    """The answer ends before this text, or the first of several."""
    stream: bool = False
    """Piece by piece, as it is written."""
    stream_options: StreamOptions | None = None
    """Of a stream."""
    n: Literal[1] = 1
    """Answers; one."""
    store: bool = False
    """Keep the request and its answer, if the service was started to keep any."""
    user: str | None = None
    """Taken and not used."""
    frequency_penalty: Literal[0] | None = None
    """Not offered."""
    presence_penalty: Literal[0] | None = None
    """Not offered."""

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Completion(_Asked):
    """A text to continue."""

    prompt: str
    """Empty begins a new text."""


class Turn(_Body):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said; a list of text parts is joined."""

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        if not all(isinstance(it, dict) and it.get("type") == "text" for it in content):
            raise ValueError("only parts of type 'text' can be read")
        return "".join(str(it.get("text", "")) for it in content)


class Chat(_Asked):
    """A conversation to go on with."""

    messages: list[Turn] = Field(min_length=1)
    """The turns so far."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of max_tokens."""


class Feedback(_Body):
    """What somebody thinks of an answer that was kept."""

    id: str = Field(max_length=100)
    """Of the answer."""
    rating: Literal[-1, 1]
    """1: good, -1: bad."""
    comment: str = Field("", max_length=10_000)
    """In words."""


def read(kind: type[Any], content: bytes) -> Any:
    """The body of a request as one of the classes above.

    Raises:
        Refused: with 400, that names what is wrong.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise Refused(400, f"the body is no JSON: {first['msg']}", "json") from None
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        if first["type"] == "extra_forbidden":
            names = ", ".join(kind.model_fields)
            raise Refused(
                400, f"{where} is not offered here: leave it out ({names})", "unknown"
            ) from None
        given = f" {first['input']!r:.60}" if first["type"] != "missing" else ""
        raise Refused(400, f"{where}{given}: {first['msg']}", "value") from None
