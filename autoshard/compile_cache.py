"""Results of compilers on the disk, by everything that went into them.

One file an entry: the reply as `CompileReply.to_bytes` writes it, gzip'd, whose checksum tells a
damaged one. An entry is written under another name and renamed, so that processes can share a
folder. A folder that cannot be written costs a warning and nothing else.
"""

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging

from autoshard import aot
from autoshard.compile_messages import CompileReply, CompileRequest

DEFAULT_MAX_BYTES = 5 * 10**9
FOLDER_VARIABLE = "AUTOSHARD_CACHE_DIR"

# Of the key, the entry and what they mean: raise it when one of them changes.
_FORMAT = 1

# Flags that compilers read besides their options.
_FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")

_SUFFIX = ".reply.gz"
_UNFINISHED = "unfinished-"
_UNFINISHED_MAX_AGE_S = 3600.0
_COMPRESSION = 5


def default_folder() -> Path:
    """`AUTOSHARD_CACHE_DIR`, or `autoshard` in the user's cache folder."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "autoshard"


def fingerprint(
    lowered: jax.stages.Lowered, request: CompileRequest, versions: tuple[tuple[str, str], ...]
) -> str:
    """Sixty-four hexadecimal digits that change with whatever the result may depend on.

    Source locations do not count: a program that moved in its file is the same program, and its
    entry then tells the old lines.

    Args:
      lowered: the program.
      request: the same with devices and options.
      versions: of the compilers.
    """
    digest = hashlib.sha256()
    facts = {
        "format": _FORMAT,
        "topology": request.topology,
        "target": aot.target_config(request.topology),
        "device_ids": request.device_ids,
        "versions": versions,
        "flags": [os.environ.get(name, "") for name in _FLAG_VARIABLES],
    }
    for part in (json.dumps(facts).encode(), request.options, lowered.as_text().encode()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class CompileCache:
    """Replies of compilers in a folder.

    Attributes:
      folder: made when the first entry is written.
      max_bytes: of all entries; the one used longest ago goes first.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = default_folder() if folder is None else folder
        self.max_bytes = max_bytes

    def load(self, key: str) -> CompileReply | None:
        """The reply under a key; None if there is none that can be read."""
        path = self._path(key)
        try:
            reply = CompileReply.from_bytes(gzip.decompress(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error, ValueError) as error:
            logging.info("ignoring a damaged entry of the compile cache, %s: %s", path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return reply

    def store(self, key: str, reply: CompileReply) -> None:
        """Keep a reply. Where the disk does not let it, warn once and go on."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self._path(key), gzip.compress(reply.to_bytes(), _COMPRESSION, mtime=0))
            self._evict()
        except OSError as error:
            logging.log_first_n(
                logging.WARNING,
                "cannot keep compiled programs in %s (%s), so each is compiled every time: free "
                "some space, or name another folder in %s",
                1,
                self.folder,
                error,
                FOLDER_VARIABLE,
            )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    def _evict(self) -> None:
        """Remove what is over the limit, and what a killed process left unfinished."""
        now = time.time()
        for path, status in self._files(f"{_UNFINISHED}*"):
            if now - status.st_mtime > _UNFINISHED_MAX_AGE_S:
                path.unlink(missing_ok=True)
        entries = sorted(self._files(f"*{_SUFFIX}"), key=lambda entry: -entry[1].st_mtime_ns)
        total = 0
        for path, status in entries:
            total += status.st_size
            if total > self.max_bytes:
                path.unlink(missing_ok=True)

    def _files(self, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                yield path, path.stat()
