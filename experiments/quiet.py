"""Runners without the libraries' informative logging, of which Orbax has a page a checkpoint."""

import sys
from collections.abc import Callable, Sequence

from absl import logging

Main = Callable[[Sequence[str]], int]


def quieted(main: Main) -> Main:
    """A `main` that logs warnings only, unless a flag asks for more."""

    def quiet_main(argv: Sequence[str]) -> int:
        given = (argument.lstrip("-") for argument in sys.argv[1:])
        if not any(flag.startswith(("v=", "verbosity")) for flag in given):
            logging.set_verbosity(logging.WARNING)
        return main(argv)

    return quiet_main
