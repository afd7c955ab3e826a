"""The process that compiles: a request on standard input, a reply on the descriptor given to it.

A compiler that aborts, or that the kernel kills for the memory it takes, ends this process and not
the user's. `compile_process` starts it.
"""

import os
import shutil
import sys
import threading
import time
from pathlib import Path

from autoshard.compile_here import answer_request
from autoshard.compile_messages import CompileRequest

_PARENT_CHECK_INTERVAL_S = 1.0


def _end_with_parent(parent: int, dump: Path) -> None:
    """Leave when whoever started this process is gone, so that a killed user leaves no compiler."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_INTERVAL_S)
    shutil.rmtree(dump, ignore_errors=True)
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Compile one program.

    Args:
      arguments: the descriptor to write the reply to, a folder for the compiler's files, and the
        id of the process that waits.
    """
    descriptor, dump, parent = int(arguments[0]), Path(arguments[1]), int(arguments[2])
    threading.Thread(target=_end_with_parent, args=(parent, dump), daemon=True).start()
    reply = answer_request(CompileRequest.from_bytes(sys.stdin.buffer.read()), dump)
    with os.fdopen(descriptor, "wb") as file:
        file.write(reply.to_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
