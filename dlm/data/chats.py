"""Chats in the shapes that are common, as lists of messages with a role and a content."""

import json
from collections.abc import Mapping
from typing import Any

from dlm.data.text import check_text
from dlm.errors import DataError

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
"""The roles of ShareGPT's chats that have another name elsewhere."""


def messages_of(chat: Any) -> list[dict[str, Any]]:
    """The messages of a chat.

    Args:
        chat: A list of `{role, content}` or of ShareGPT's `{from, value}`, or JSON of such a list. A content is a text,
            a list of parts such as `{type: text, text: ...}`, or null where there is none, as in a call of a tool.
            What else a message holds is not read, except for its `weight`.

    Returns:
        `{role, content}` of each, both of them text, and `weight: 0` where a message is not to be learned.

    Raises:
        DataError: It is no such list, or a text in it holds half of a character.
    """
    if isinstance(chat, str):
        try:
            chat = json.loads(chat)
        except (ValueError, RecursionError) as error:
            raise DataError(f"must hold lists of {{role, content}}, got {chat!r:.80}") from error
    if not isinstance(chat, list):
        raise DataError(f"must hold lists of {{role, content}}, got {chat!r:.80}")
    return [_message(message) for message in chat]


def _message(message: Any) -> dict[str, Any]:
    """One message in the usual shape."""
    said = dict(message) if isinstance(message, Mapping) else {}
    if said.get("role") is None and said.get("from") is not None:
        speaker = said["from"]
        role, content = SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker, said.get("value")
        there = "value" in said
    else:
        role, content, there = said.get("role"), said.get("content"), "content" in said
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str | None) or not there:
        raise DataError(
            f"must hold lists of {{role, content}} or {{from, value}}, both of them text, got {message!r:.80}"
        )
    check_text(role)
    check_text(content or "")
    weight = said.get("weight")
    if weight not in (None, 0, 1):
        raise DataError(f"must hold a weight of 0 or 1 where a message has one, got {weight!r:.40}")
    return {"role": role, "content": content or "", **({"weight": 0} if weight == 0 else {})}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
