"""Conversations as text: the Jinja template that a chat model's tokenizer carries.

    [{"role": "user", "content": "Hi"}] ── template ──> "<|user|>Hi<|assistant|>"

The variables and functions are those that transformers' `apply_chat_template` gives to a template.

Source: "Chat templates" in the documentation of transformers.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from labkit.errors import LabError

Message = Mapping[str, str]
"""One turn: "role" ("system", "user" or "assistant") and "content"."""
ROLES = ("system", "user", "assistant")

#: For a vocabulary with a token for each speaker: what the tokenizers of `train_bpe` carry.
OWN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
#: For a tokenizer that knows no speakers: they are named in words.
IN_WORDS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    **special_tokens: str,
) -> str:
    """A conversation as the text that the model reads.

    Args:
        template: Jinja, run in its sandbox.
        messages: the turns, in order.
        add_generation_prompt: end where an answer of the assistant begins.
        special_tokens: such as `eos_token="</s>"`, by the names that templates use.

    Raises:
        LabError: no message, an unknown role, or the template refuses the conversation.
    """
    from jinja2 import TemplateError

    check_messages(messages)
    try:
        return _compiled(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **special_tokens,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise LabError(f"the chat template refuses this conversation: {error}") from error


def check_messages(messages: Sequence[Message]) -> None:
    """Raise a LabError unless this is a conversation: turns of known roles, each with a text."""
    if not messages:
        raise LabError("a conversation needs at least 1 message")
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise LabError(
                f"a message has role {role!r} and content {content!r}: give one of "
                f"{', '.join(ROLES)}, and a text"
            )


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
