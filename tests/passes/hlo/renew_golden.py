"""Compiles the golden programs anew and writes what is found in them.

python -m tests.passes.hlo.renew_golden [NAME ...]

Needs libtpu and the CUDA plug-in, no device. Look at the difference before you commit it: it is
what changed in the compilers, or in the reader.
"""

import dataclasses
import gzip
import importlib.metadata
import json
import re
import sys

import tests.conftest  # noqa: F401  # eight CPU devices
from tests.passes.hlo.golden_findings import findings
from tests.passes.hlo.golden_programs import FOLDER, PROGRAMS, GoldenProgram, compile_text

_PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")
_FILE = re.compile(r'^(\d+) "([^"]*/)([^"/]+)"$', re.MULTILINE)


def without_folders(text: str) -> str:
    """File names as another machine would have them: installed ones, and those of this project."""

    def shorter(match: re.Match[str]) -> str:
        number, folder, name = match.groups()
        _, installed, inside = folder.rpartition("/site-packages/")
        return f'{number} "{installed}{inside if installed else ""}{name}"'

    return _FILE.sub(shorter, text)


def renew(program: GoldenProgram) -> None:
    """Write the two files of a program."""
    text = without_folders(compile_text(program))
    FOLDER.mkdir(exist_ok=True)
    program.text_path.write_bytes(gzip.compress(text.encode(), mtime=0))
    content = {
        "settings": dataclasses.asdict(program),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "found": findings(text, program.topology),
    }
    program.found_path.write_text(json.dumps(content, indent=1) + "\n")


def main(names: list[str]) -> None:
    """Renew the programs named, or all."""
    for program in PROGRAMS:
        if not names or program.name in names:
            renew(program)
            print(program.text_path.name, program.text_path.stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
