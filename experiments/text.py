"""Text to train on: the user's files, or by default the Python standard library's own sources.

The sources are about 10 MB of real text that every machine with Python has already, so the default
run needs no download. A token is a byte: no vocabulary to fetch, and the loss converts to bits per
byte exactly.

Whole files are held out, never pieces of files that are trained on: neighbouring windows of one
file are so alike that a score on them would measure memory. Which files is decided by a hash of
their relative path, so that it does not depend on their order.
"""

import dataclasses
import glob
import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Sequence

import numpy as np

from autoshard.errors import AutoshardError

HELDOUT_FRACTION = 0.05
# Bundled packages that are no prose and no ordinary code (tables of character maps, grammars), and
# tests, which repeat themselves.
_SKIPPED_FOLDERS = frozenset(
    {"encodings", "idlelib", "lib2to3", "site-packages", "dist-packages", "test", "tests"}
    | {"turtledemo", "__pycache__"}
)
# Between two files, as no file contains it.
_SEPARATOR = b"\0"


class DataError(AutoshardError):
    """The data is missing, too short, or not what the model takes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text as bytes.

    Attributes:
      train: uint8[N], the files to train on, joined.
      heldout: uint8[M], the rest.
      description: what this is, for people.
      notes: what the user should know about how it was split.
      fingerprint: changes whenever a byte of either part does.
    """

    train: np.ndarray
    heldout: np.ndarray
    description: str
    notes: tuple[str, ...]
    fingerprint: str


def load_text(pattern: str, seq_len: int) -> Text:
    """Reads and splits the text.

    Args:
      pattern: a glob of the user's files (`**` crosses folders); empty for the standard library.
      seq_len: tokens in a window; both parts will hold at least one window.

    Raises:
      DataError: nothing matches, a file cannot be read, or the text is too short.
    """
    if pattern:
        paths = sorted(
            p
            for p in map(pathlib.Path, glob.glob(os.path.expanduser(pattern), recursive=True))
            if p.is_file()
        )
        if not paths:
            raise DataError(
                f"--data={pattern!r} matches no file. Quote the pattern, so that the shell leaves "
                f"it alone, and try it with `ls`; a relative one starts at the current directory."
            )
        root = pathlib.Path(os.path.commonpath([p.absolute().parent for p in paths]))
        names = [p.absolute().relative_to(root).as_posix() for p in paths]
        return _split(names, [_read(p) for p in paths], seq_len, pattern)
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    names = stdlib_files(root)
    if not names:
        raise DataError(
            "This Python comes without the source files of its standard library, which are the "
            "default text. Name other text with --data='PATH/*.txt'."
        )
    return _split(names, [_read(root / n) for n in names], seq_len, "Python's standard library")


def stdlib_files(root: pathlib.Path) -> list[str]:
    """The source files below `root` that are worth training on: relative paths, sorted."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]  # Prunes the walk.
        names += [pathlib.Path(folder, f).relative_to(root).as_posix() for f in files]
    return sorted(name for name in names if name.endswith(".py"))


def heldout_files(names: Sequence[str], sizes: Sequence[int], enough: int) -> frozenset[str]:
    """Chooses the held-out files: about 5% of them, by the hash of their names.

    Args:
      names: relative paths, at least two.
      sizes: bytes of each.
      enough: take more files, in the order of their hashes, until these many bytes are held out.
    """
    size_of = dict(zip(names, sizes, strict=True))
    order = sorted(names, key=_unit_hash)
    chosen: list[str] = []
    total = 0
    for name in order[:-1]:
        if _unit_hash(name) >= HELDOUT_FRACTION and total >= enough:
            break
        chosen.append(name)
        total += size_of[name]
    return frozenset(chosen)


def _split(names: Sequence[str], contents: Sequence[bytes], seq_len: int, origin: str) -> Text:
    total = sum(map(len, contents))
    if total < 2 * seq_len:
        raise DataError(
            f"The text ({origin}) has {total} bytes in {len(names)} files, too little for a "
            f"training and a held-out window of {seq_len} tokens each: give more text, or at most "
            f"--seq_len={max(total // 2, 1)}."
        )
    heldout = heldout_files(names, [len(c) for c in contents], seq_len) if len(names) > 1 else ()
    parts = [
        _SEPARATOR.join(c for n, c in zip(names, contents, strict=True) if (n in heldout) is out)
        for out in (False, True)
    ]
    notes: tuple[str, ...] = ()
    if min(map(len, parts)) < seq_len:
        whole = _SEPARATOR.join(contents)
        cut = len(whole) - max(int(len(whole) * HELDOUT_FRACTION), seq_len)
        parts = [whole[:cut], whole[cut:]]
        reason = "one file" if len(names) == 1 else "files too small to hold out whole ones"
        notes = (
            f"The text is {reason}: its last {len(whole) - cut:,} bytes are held out, so expect a "
            f"held-out score closer to the training one than on unseen files.",
        )
        how = "split by position"
    else:
        how = f"{len(heldout)} files held out"
        share = len(parts[1]) / (len(parts[0]) + len(parts[1]))
        if share > 4 * HELDOUT_FRACTION:
            notes = (
                f"With so few files, {share:.0%} of the text is held out, as whole files are: "
                f"give more, smaller files to train on more of it.",
            )
    train, held = (np.frombuffer(part, np.uint8) for part in parts)
    digests = [hashlib.sha256(part).digest() for part in parts]
    return Text(
        train=train,
        heldout=held,
        description=(
            f"{origin}: {len(names):,} files, {len(train):,} bytes to train on, {len(held):,} held "
            f"out ({how})"
        ),
        notes=notes,
        fingerprint=hashlib.sha256(b"".join(digests)).hexdigest(),
    )


def _unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). Exclude it from --data, or change its "
            f"permissions."
        ) from error
