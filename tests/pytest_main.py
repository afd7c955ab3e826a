"""Runs one pytest file as a program, which is what Bazel's `py_test` asks for."""

import os
import sys

# Python puts a script's own folder first on the path, and there `models` would be tests/models.
del sys.path[0]

import pytest  # noqa: E402


def main(argv: list[str]) -> int:
    """Runs pytest on `argv`, leaving nothing behind but Bazel's own report."""
    # Bazel sets no HOME, and some libraries look for their cache there.
    os.environ.setdefault("HOME", os.environ.get("TEST_TMPDIR", "/tmp"))
    report = os.environ.get("XML_OUTPUT_FILE")
    options = ["-p", "no:cacheprovider", *([f"--junit-xml={report}"] if report else [])]
    return pytest.main([*options, *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
