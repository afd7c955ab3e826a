"""Numbered jaxprs before and after a pass, and what differs between them."""

import difflib
import pathlib
import re

from passes.program import Program


def dump(folder: pathlib.Path, number: int, name: str, before: Program, after: Program) -> None:
    """Write `NN-name.before.txt`, `NN-name.after.txt` and `NN-name.diff` to a folder.

    Variables are numbered in the order in which the text names them, in both texts on their own;
    the difference leaves their names out, so that it shows the equations that changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{number:02d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"
    texts = [_text(before), _text(after)]
    for kind, text in zip(("before", "after"), texts, strict=True):
        (folder / f"{stem}.{kind}.txt").write_text(text, encoding="utf-8")
    old, new = ([_nameless(line) for line in text.splitlines()] for text in texts)
    lines = difflib.unified_diff(old, new, "before", "after", n=2, lineterm="")
    (folder / f"{stem}.diff").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _text(program: Program) -> str:
    inputs = "\n".join(
        f"# {leaf.role.value:12} {leaf.dtype}{list(leaf.shape)} {leaf.path}"
        for leaf in program.inputs
    )
    notes = "\n".join(f"# {note}" for note in program.notes)
    return f"# {program.name}\n{inputs}\n{notes}\n{program.jaxpr}\n"


def _nameless(line: str) -> str:
    """A line of a jaxpr without the names of variables: `a:f32[2] = add b c` as `f32[2] = add`."""
    made = re.sub(r"\b[a-z_]+\d*:(?=[a-z0-9]+[\[<])", "", line.rstrip())
    return re.sub(r"(?<== )(\S+?)((?:\[.*\])?)(?: [a-z_]+\d*\b)+$", r"\1\2", made)
