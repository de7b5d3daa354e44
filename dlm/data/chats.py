"""Chats in the shapes that are common, as lists of messages with a role and a content."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dlm.data.text import check_text
from dlm.errors import DataError, shortened

CALL = "function_call"
"""Who says a call of a tool in ShareGPT's chats; in other messages, the older key of one."""

SHAREGPT_ROLES = {
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", CALL), "assistant"),
    "human": "user",
    "observation": "tool",
}
"""The roles of ShareGPT's chats that have another name elsewhere."""

ROLES = frozenset({"system", "user", "assistant", "tool"})
"""The roles that every chat template is expected to know."""

RESULTS = ("tool", "function")
"""The roles that tell what a call of a tool gave; chat templates read a `name` of theirs alone."""

CHATS = 2
"""The version of what is kept of a message: chats in a cache are read anew when it changes."""


def messages_of(chat: Any) -> list[dict[str, Any]]:
    """The messages of a chat.

    Args:
        chat: A list of `{role, content}` or of ShareGPT's `{from, value}`, or JSON of such a list. A content is a text,
            a list of parts such as `{type: text, text: ...}`, or null where there is none, as in a call of a tool.
            Calls are lists of `{function: {name, arguments}}`, their arguments an object or JSON of one; in ShareGPT's
            chats, the JSON that `function_call` says. What else a message holds is not read, except for its `weight`.

    Returns:
        `{role, content}` of each, both of them text, and `weight: 0` where a message is not to be learned. A message
        that calls tools has `tool_calls` too, and the result of a call `tool_call_id` and `name` where they are given.

    Raises:
        DataError: It is no such list, or a text in it holds half of a character.
    """
    if isinstance(chat, str):
        try:
            chat = json.loads(chat)
        except (ValueError, RecursionError) as error:
            raise DataError(f"must hold lists of {{role, content}}, got {_short(chat)}") from error
    if not isinstance(chat, list):
        raise DataError(f"must hold lists of {{role, content}}, got {_short(chat)}")
    return [_message(message) for message in chat]


def _message(message: Any) -> dict[str, Any]:
    """One message in the usual shape."""
    said = dict(message) if isinstance(message, Mapping) else {}
    if said.get("role") is None and said.get("from") is not None:
        speaker = said["from"]
        role, content = SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker, said.get("value")
        there = "value" in said
        if speaker == CALL and isinstance(calls := _read(content), dict | list):
            said, content = {"tool_calls": calls if isinstance(calls, list) else [calls]}, ""
    else:
        role, content = said.get("role"), said.get("content")
        there = "content" in said or bool(_given_calls(said))
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str | None) or not there:
        raise DataError(
            f"must hold lists of {{role, content}} or {{from, value}}, both of them text, got {_short(message)}"
        )
    check_text(role)
    check_text(content or "")
    weight = said.get("weight")
    if weight not in (None, 0, 1):
        raise DataError(f"must hold a weight of 0 or 1 where a message has one, got {shortened(repr(weight), 40)}")
    return {"role": role, "content": content or "", **_tools(said, role), **({"weight": 0} if weight == 0 else {})}


def _given_calls(said: Mapping[str, Any]) -> Any:
    """The calls of a message as they are given; the older key holds a single one."""
    calls, older = said.get("tool_calls"), said.get(CALL)
    return calls if calls or not older else [{"type": "function", "function": older}]


def _tools(said: Mapping[str, Any], role: str) -> dict[str, Any]:
    """What a message tells of calls of tools, in the shape that chat templates read; nothing for most messages."""
    found: dict[str, Any] = {}
    if calls := _given_calls(said):
        found["tool_calls"] = _calls(calls)
    for key in ("tool_call_id", *(("name",) if role in RESULTS else ())):
        if said.get(key) is not None:
            found[key] = check_text(said[key])
    return found


def _calls(calls: Any) -> list[dict[str, Any]]:
    """Calls of tools, with their arguments as objects."""
    read = _read(calls)
    if not isinstance(read, list) or not all(isinstance(call, Mapping) for call in read):
        raise DataError(f"must hold a list of calls where a message has tool_calls, got {_short(calls)}")
    plain: list[dict[str, Any]] = [_plain(call) for call in read]
    for call in plain:
        function = call.get("function", call)  # some write the name and the arguments without the object around them
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"must name the tool of each call, as {{function: {{name, arguments}}}}, got {_short(call)}"
            )
        if isinstance(given := function.get("arguments"), str):  # as the API of OpenAI has them
            arguments = _read(given or "{}")
            function["arguments"] = _plain(arguments) if isinstance(arguments, dict) else given
    return plain


def _read(value: Any) -> Any:
    """What a text says in JSON; other values, and other texts, as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _plain(value: Any) -> Any:
    """A value of JSON without the nulls of its objects, which a table with types puts where a row lacks a name."""
    if isinstance(value, Mapping):
        return {check_text(name): _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float) else check_text(value)


def _short(value: Any) -> str:
    """The beginning of a value, for a message."""
    return shortened(repr(value), 80)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
