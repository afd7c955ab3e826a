"""The process that compiles: a request on standard input, a reply on the descriptor given to it.

A compiler that aborts, or that the kernel kills for the memory it takes, ends this process and not
the user's. `compile_process` starts it.
"""

import os
import sys
import threading
import time

from autoshard import aot
from autoshard.compile_messages import CompileReply, CompileRequest

_PARENT_CHECK_INTERVAL_S = 1.0


def _end_with_parent() -> None:
    """Leave when whoever started this process is gone, so that a killed user leaves no compiler."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_INTERVAL_S)
    os._exit(1)


def reply_to(request: CompileRequest) -> CompileReply:
    """Compile; whatever the compiler raises is an answer, too."""
    start = time.perf_counter()
    try:
        text, memory = aot.compile_request(request)
    except Exception as error:
        message = str(error) or type(error).__name__
        return CompileReply("", None, message, time.perf_counter() - start)
    return CompileReply(text, memory, "", time.perf_counter() - start)


def main(arguments: list[str]) -> None:
    """Args: the number of the descriptor to write the reply to."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reply = reply_to(CompileRequest.from_bytes(sys.stdin.buffer.read()))
    with os.fdopen(int(arguments[0]), "wb") as file:
        file.write(reply.to_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
