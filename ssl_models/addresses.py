"""Addresses that may hold a password: how they are shown, and which of them must not be written down at all."""

from __future__ import annotations

import re

_USER = re.compile(r"//[^/\s]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")
_SECRET = re.compile(
    r"//[^/\s@]*:[^/\s]*@|https?://[^/\s]*@"  # a password; a user of HTTP alone is a token
    r"|[?&](x-\w+-(signature|credential|security-token)|sig(nature)?|(\w+_)?token|password|secret|api_?key)=",
    re.IGNORECASE,
)


def public(text: str) -> str:
    """An address, or a text with addresses in it, without the user, the password and the query that one may hold."""
    return _QUERY.sub(r"\1", _USER.sub("//", text))


def secret(address: str) -> bool:
    """Whether an address holds a password, a token or a signature (as presigned URLs do)."""
    return _SECRET.search(address) is not None
