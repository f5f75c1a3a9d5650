"""What requests say before their bodies: read once for each way of saying it, and known again by its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflow_opt.serving.replies import Reply

END = b"\r\n\r\n"
# Clients have few heads, but each length of a body makes another.
_REMEMBERED, _LONGEST_HEAD = 4096, 2048
_SPECIAL = frozenset({b"transfer-encoding", b"expect", b"upgrade"})


@dataclass(frozen=True, slots=True)
class Head:
    """What the bytes before a body say: how long it is, its content type, and the request's seconds."""

    length: int
    content_type: str
    seconds: float


class Desk:
    """What the connections of an application share: the heads they have seen, and the lines that begin every good answer."""

    def __init__(self, deadline_ms: float) -> None:
        """Begin with no head."""
        self.deadline_ms = deadline_ms
        self.heads: dict[bytes, Head] = {}
        self._usual: tuple[Any, bytes] = (None, b"")

    def learn(self, head: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Remember a head that a parser has read, if it asks for nothing special."""
        names = [name for name, _ in headers]
        if len(head) > _LONGEST_HEAD or len(set(names)) < len(names) or not _SPECIAL.isdisjoint(names):
            return
        content_type, length, deadline_ms = read_headers(headers, self.deadline_ms)
        if not content_type or not length:
            return
        if len(self.heads) >= _REMEMBERED:
            self.heads.clear()
        self.heads[head] = Head(length, content_type, deadline_ms / 1000)

    def page(self, status_line: bytes, reply: Reply, usual: list[tuple[bytes, bytes]]) -> bytes:
        """Write a reply as it goes over the wire; `usual` are the web server's own headers, a new list whenever they change."""
        if self._usual[0] is not usual:
            self._usual = (usual, b"".join(b"%b: %b\r\n" % header for header in usual) + b"content-type: ")
        more = b"".join(b"%b: %b\r\n" % header for header in reply.headers)
        length = len(reply.body)
        return b"%b%b%b\r\n%bcontent-length: %d\r\n\r\n%b" % (status_line, self._usual[1], reply.media_type, more, length, reply.body)


def read_headers(headers: list[tuple[bytes, bytes]], deadline_ms: float) -> tuple[str, int, float]:
    """Read what the server needs of a request's headers: its content type, its length, the milliseconds until its deadline."""
    content_type, length = "", 0
    for name, value in headers:
        if name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"x-deadline-ms":
            wanted = int(value) if value.isdigit() else 0
            deadline_ms = min(deadline_ms, wanted) if wanted else deadline_ms
    return content_type, length, deadline_ms
