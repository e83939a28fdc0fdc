"""Download of one file: resumed where it stopped, and believed only when its SHA-256 is right."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.data.catalogue import SourceFile
from experiments.shell.errors import DataError

TIMEOUT = 30
"""Seconds without a byte after which a server counts as gone."""

BLOCK = 1 << 18
SCHEMES = ("https", "http", "file")


def fetch(
    file: SourceFile, base_url: str, folder: Path, *, on_bytes: Callable[[int], object]
) -> Path:
    """Downloads `base_url/file.name` into `folder`, unless it is there already.

    What has arrived stays in `name.partial`, and the next call goes on from there.

    Args:
        file: name, size and SHA-256.
        base_url: folder on a server; `file:///...` is one on this machine.
        folder: where to; made if need be.
        on_bytes: called with the number of bytes just obtained, those already there included.

    Returns:
        The path of the complete file.

    Raises:
        DataError: no connection, an error of the server, or not the file that was asked for.
        OSError: the disk is full or cannot be written.
    """
    url = f"{base_url.rstrip('/')}/{urllib.parse.quote(file.name)}"
    if urllib.parse.urlsplit(url).scheme not in SCHEMES:
        raise DataError(f"{base_url!r} is no address; expected one of {', '.join(SCHEMES)}://...")
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / file.name, folder / f"{file.name}.partial"
    if path.exists():
        path.replace(partial)
    _complete(partial, url, file.size, on_bytes)
    _verify(partial, url, file)
    return partial.replace(path)


def _complete(partial: Path, url: str, size: int, on_bytes: Callable[[int], object]) -> None:
    """Brings `partial` to `size` bytes, and to no more."""
    done = partial.stat().st_size if partial.exists() else 0
    if done > size:
        partial.unlink()
        done = 0
    if done < size:
        # A server that ignores the range answers 200 with the whole file.
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        with _ask(url, urllib.request.urlopen, request, timeout=TIMEOUT) as response:
            resumed = done and response.status == http.HTTPStatus.PARTIAL_CONTENT
            done = done if resumed else 0
            on_bytes(done)
            with partial.open("ab" if resumed else "wb") as output:
                while block := _ask(url, response.read, min(BLOCK, size - done)):
                    output.write(block)
                    on_bytes(len(block))
                    done += len(block)
        if done < size:
            raise DataError(f"{url} ended after {done} of {size} bytes. {_ADVICE}")
    else:
        on_bytes(done)


def _ask(url: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls something that waits for the server. What fails here is never the disk."""
    try:
        return call(*args, **options)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"cannot download {url}: {_reason(error)}. {_ADVICE}") from error


def _verify(partial: Path, url: str, file: SourceFile) -> None:
    size = partial.stat().st_size
    with partial.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        partial.unlink()
        raise DataError(
            f"{url} is not the official file: SHA-256 {found} of {size} bytes, expected "
            f"{file.sha256} of {file.size}. It was deleted; try again, or another --url"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


_ADVICE = (
    "Run the same command again to go on where it stopped; without a network, "
    "fetch the file elsewhere and name its folder by --url file:///FOLDER"
)
