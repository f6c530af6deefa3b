"""Conversations and preferences in JSON lines, in the forms that TRL reads.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    {"prompt": "Hi", "completion": "Hello"}                       both may be lists of messages
    {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}      all three may be lists
    {"chosen": [... whole conversation], "rejected": [...]}       what both begin with is the prompt

A text that stands for a list is one turn: a prompt of the user, an answer of the assistant.

Source: "Dataset formats and types" in the documentation of TRL.
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from labkit.errors import LabError
from labkit.text import files
from labkit.text.chat_template import ROLES, Message

#: Columns of a conversation: whole, or its last answer apart.
CHAT_COLUMNS = (("messages",), ("prompt", "completion"))
PREFERENCE_COLUMNS = ("chosen", "rejected")


class Preference(NamedTuple):
    """Two answers to one beginning of a conversation."""

    prompt: list[Message]
    """The turns before; the last one is the user's."""
    chosen: list[Message]
    """The better answer: turns, the first and the last the assistant's."""
    rejected: list[Message]
    """The worse one."""


def read_conversations(path: str | Path) -> list[list[Message]]:
    """The conversations of a file, each ending with an answer of the assistant.

    Raises:
        LabError: no such columns, or a conversation that is none; the row is named.
    """
    return [conversation(row, where) for where, row in _rows(path)]


def read_preferences(path: str | Path) -> list[Preference]:
    """The preferences of a file.

    Raises:
        LabError: no such columns, answers that are equal, or turns that are none; the row is named.
    """
    return [preference(row, where) for where, row in _rows(path)]


def row_kind(columns: Container[str]) -> Literal["chat", "dpo"] | None:
    """What a row with these columns is: a conversation, a preference, or neither.

    >>> row_kind({"prompt", "chosen", "rejected"}), row_kind({"prompt", "label"})
    ('dpo', None)
    """
    if all(name in columns for name in PREFERENCE_COLUMNS):
        return "dpo"
    if any(all(name in columns for name in form) for form in CHAT_COLUMNS):
        return "chat"
    return None


def conversation(row: Mapping[str, Any], where: str = "the row") -> list[Message]:
    """One row as a conversation.

    >>> conversation({"prompt": "Hi", "completion": "Hello"})[1]
    {'role': 'assistant', 'content': 'Hello'}
    """
    if "messages" in row:
        turns = _turns(row["messages"], "user", f"messages of {where}")
    elif "prompt" in row and "completion" in row:
        turns = _turns(row["prompt"], "user", f"prompt of {where}")
        turns += _turns(row["completion"], "assistant", f"completion of {where}")
    else:
        raise LabError(
            f"{where} has columns {', '.join(row)}: a conversation has messages, or prompt and "
            "completion"
        )
    _check_order(turns, where)
    return turns


def preference(row: Mapping[str, Any], where: str = "the row") -> Preference:
    """One row as a preference.

    >>> preference({"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}).rejected
    [{'role': 'assistant', 'content': 'What?'}]
    """
    if any(name not in row for name in PREFERENCE_COLUMNS):
        raise LabError(
            f"{where} has columns {', '.join(row)}: a preference has chosen and rejected, and "
            "perhaps prompt"
        )
    sides = [_turns(row[name], "assistant", f"{name} of {where}") for name in PREFERENCE_COLUMNS]
    if "prompt" in row:
        prompt = _turns(row["prompt"], "user", f"prompt of {where}")
    else:
        if any(isinstance(row[name], str) for name in PREFERENCE_COLUMNS):
            raise LabError(
                f"{where} has texts in chosen and rejected and no prompt: give one, or whole "
                "conversations"
            )
        common = _common(*sides)
        prompt = sides[0][:common]
        sides = [side[common:] for side in sides]
    chosen, rejected = sides
    if chosen == rejected:
        raise LabError(f"chosen and rejected of {where} are equal: nothing is preferred there")
    for name, side in zip(PREFERENCE_COLUMNS, sides, strict=True):
        if not side or side[0]["role"] != "assistant":
            begins = f"begins with a turn of the {side[0]['role']}" if side else "is not there"
            raise LabError(
                f"{name} of {where} {begins}: after the turns of both, the assistant answers"
            )
        _check_order([*prompt, *side], f"{name} of {where}")
    return Preference(prompt, chosen, rejected)


def _rows(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    rows = enumerate(files.iterate_rows(path), start=1)
    return [(f"row {number} of {path}", row) for number, row in rows]


def _turns(value: Any, role: str, where: str) -> list[Message]:
    """A text as one turn of the role; a list of messages as it is."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise LabError(f"{where} is {_short(value)}: give a text, or a list of messages")
    turns: list[Message] = []
    for message in value:
        known = isinstance(message, Mapping) and message.get("role") in ROLES
        if not known or not isinstance(message.get("content"), str):
            raise LabError(
                f"{where} holds {_short(message)}: a message has a role ({', '.join(ROLES)}) and a "
                "content, which is a text"
            )
        if not message["content"].strip():
            raise LabError(f"{where} holds an empty turn of the {message['role']}: write it")
        turns.append({"role": message["role"], "content": message["content"]})
    return turns


def _check_order(turns: Sequence[Message], where: str) -> None:
    """User and assistant in turn, perhaps after one system message; the assistant is last."""
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    right = [("user", "assistant")[i % 2] for i in range(len(spoken))]
    if not spoken or spoken != right or roles[-1] != "assistant":
        raise LabError(
            f"{where} goes {', '.join(roles)}: after one system message at most, user and "
            "assistant take turns, and the assistant answers last"
        )


def _common(first: Sequence[Message], second: Sequence[Message]) -> int:
    """Turns with which both begin."""
    pairs = list(zip(first, second, strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
