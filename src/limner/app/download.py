"""Fetch a file over HTTP(S): resumed where it broke off, checked, and put in place in one step."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from limner.errors import ZooError

CHUNK = 1 << 18
TIMEOUT_S = 30.0
HINTS = {
    401: "it needs a login",
    403: "access is refused",
    404: "there is no such file",
    429: "too many requests",
}
HTML_START = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|!--)", re.IGNORECASE)


class _UselessError(ZooError):
    """What has arrived cannot be continued and is thrown away."""


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    on_start: Callable[[int, int | None], None] = lambda done, total: None,
    on_chunk: Callable[[int], None] = lambda count: None,
) -> str:
    """Download ``url`` to ``target`` and return the file's SHA-256.

    What has arrived lies in ``target.part`` and is continued by the next call; ``target`` appears only when the file
    is whole and checked.

    Args:
        url: HTTP or HTTPS address.
        target: where the file goes.
        sha256: the expected digest or its first digits; empty when unknown.
        on_start: called with (bytes that are here already, size of the whole or None).
        on_chunk: called with the number of bytes that arrived.

    Raises:
        ZooError: bad address, refused, cut off, a web page in place of a file, wrong digest, disk error.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ZooError(f"{url} is not an http or https address")
    part = target.with_name(target.name + ".part")
    state = target.with_name(target.name + ".part.json")  # whose bytes the part holds
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, state, on_start, on_chunk)
        digest = _check(url, part, sha256)
        part.replace(target)
        state.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ZooError(f"cannot write {target}: {reason}; LIMNER_CACHE names another folder") from None
    except _UselessError as error:
        part.unlink(missing_ok=True)
        state.unlink(missing_ok=True)
        raise ZooError(str(error)) from None
    return digest


def _receive(
    url: str,
    part: Path,
    state: Path,
    on_start: Callable[[int, int | None], None],
    on_chunk: Callable[[int], None],
) -> None:
    """Bring ``part`` to the full size."""
    request = urllib.request.Request(url, headers={"User-Agent": "limner", "Accept-Encoding": "identity"})
    have, tag = _resumable(url, part, state)
    if have:
        # If-Range: a server whose file has changed since sends the whole of the new one.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        kind = _UselessError if error.code == 416 else ZooError  # 416: the part is longer than the file
        hint = HINTS.get(error.code, error.reason)
        raise kind(
            f"{url} answered {error.code} ({hint}); call again later, or name a mirror with --url"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise ZooError(
            f"cannot reach {url}: {reason}; is this machine online? --url names a mirror"
        ) from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _UselessError(web_page_message(url))
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        state.write_text(json.dumps({"url": url, "tag": tag}), encoding="utf-8")
        on_start(have, total)
        with open(part, "ab" if have else "wb") as stream:
            try:
                while chunk := response.read(CHUNK):
                    stream.write(chunk)
                    have += len(chunk)
                    on_chunk(len(chunk))
            except (http.client.HTTPException, TimeoutError, ConnectionError):
                total = total or have + 1  # cut off: say so below
    if total is not None and have != total:
        raise ZooError(
            f"the connection to {url} ended at {have} of {total} bytes; call again to go on from there"
        )


def _resumable(url: str, part: Path, state: Path) -> tuple[int, str]:
    """Return (bytes that can be continued, the tag of the file they are from)."""
    try:
        known = json.loads(state.read_text(encoding="utf-8"))
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    # A weak tag does not promise the same bytes.
    fit = known.get("url") == url and known.get("tag") and not known["tag"].startswith("W/")
    return (size, known["tag"]) if fit else (0, "")


def _check(url: str, part: Path, sha256: str) -> str:
    """Return the digest of ``part`` unless it is a web page or not what was expected."""
    with open(part, "rb") as stream:
        if HTML_START.match(stream.read(512)):
            raise _UselessError(web_page_message(url))
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(sha256.lower()):
        raise _UselessError(
            f"{url} has SHA-256 {digest}, expected {sha256}; it was thrown away: the file has changed or is damaged"
        )
    return digest


def web_page_message(url: str) -> str:
    """Return the message for an address that answers with a page for people."""
    return (
        f"{url} answered with a web page, not a file (a quota, a login or a moved address); "
        "open it in a browser, or give a mirror with --url"
    )
