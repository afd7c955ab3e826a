"""From HLO text to `HloModule`.

The text is what `jax.stages.Compiled.as_text()` prints. Instructions stand one on a line; anything
that is not understood is counted in `HloModule.unknown`, and only a text without an entry
computation is refused.
"""

import collections
import re
from collections.abc import Mapping

from passes.hlo.errors import HloError
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.opcodes import KNOWN
from passes.hlo.shapes import BITS, Shape, arrays, parse_shape
from passes.hlo.source_frames import SourceTables

_HEADER = re.compile(r"^(ENTRY\s+)?%?([^\s()={}\"]{1,400})(?:\s+\(.*)?\s?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT\s+)?%?([^\s=]{1,400}) = ")
_END = re.compile(r"^\}(?:, execution_thread=\"[^\"]{0,100}\")?\s*$")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9-]{0,60})\(")
_BRACKET = re.compile(r'["(){}\[\]]')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_ATTRIBUTE = re.compile(r"\s*([A-Za-z_][\w]{0,60})=")
_NAME = re.compile(r"%?([^\s,%()]+)$")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d{1,9})")
_FILE = re.compile(r'source_file="((?:[^"\\]|\\.)*)"\s*source_line=(\d{1,9})')
_CLOSES = {"(": ")", "{": "}", "[": "]"}


def matching(text: str, start: int) -> int:
    """Position behind the bracket that closes the one at `start`.

    Quoted text is skipped.

    Raises:
      HloError: it is not closed.
    """
    stack: list[str] = []
    position = start
    while match := _BRACKET.search(text, position):
        found = match[0]
        position = match.end()
        if found == '"':
            string = _STRING.match(text, match.start())
            if string is None:
                break
            position = string.end()
        elif found in _CLOSES:
            stack.append(_CLOSES[found])
        elif not stack or stack.pop() != found:
            break
        elif not stack:
            return position
    raise HloError(f"a bracket is not closed: {text[start : start + 60]!r}")


def split_top(text: str) -> list[str]:
    """Pieces between the commas that stand outside brackets and quotes."""
    pieces: list[str] = []
    begin = position = 0
    while position < len(text):
        char = text[position]
        if char in '({["':
            if char == '"':
                string = _STRING.match(text, position)
                position = string.end() if string else len(text)
            else:
                position = matching(text, position)
        elif char == ",":
            pieces.append(text[begin:position])
            position = begin = position + 1
        else:
            following = _STOP.search(text, position)
            position = following.start() if following else len(text)
    pieces.append(text[begin:])
    return [piece.strip() for piece in pieces if piece.strip()]


_STOP = re.compile(r'[({\[",]')


def _attributes(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    last = ""
    for piece in split_top(text):
        match = _ATTRIBUTE.match(piece)
        if match is not None:
            last = match[1]
            found[last] = piece[match.end() :].strip()
        elif last:
            found[last] += ", " + piece
    return found


class _Reader:
    """Collects computations line by line; an instruction may go on over several lines."""

    def __init__(self) -> None:
        self.unknown: collections.Counter[str] = collections.Counter()
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.inside = False
        self._name, self._is_entry = "", False
        self._body: list[Instruction] = []
        self._pending: list[str] = []
        self._line = 0

    def open(self, name: str, is_entry: bool) -> None:
        self.inside, self._name, self._is_entry, self._body = True, name, is_entry, []

    def take(self, line: str, number: int) -> None:
        if _END.match(line) and not self._in_brackets():
            self.close()
        elif _INSTRUCTION.match(line):
            self._flush()
            self._pending, self._line = [line], number
        elif self._pending:  # strings in attributes may hold line breaks
            self._pending.append(line)
        elif line.strip():
            self.unknown["line that is no instruction"] += 1

    def _in_brackets(self) -> bool:
        """Whether an instruction goes on: an attribute of several lines is not closed."""
        if len(self._pending) < 2:
            return False
        text = "(" + "\n".join(self._pending) + "\n)"
        try:
            return matching(text, 0) != len(text)
        except HloError:
            return True

    def close(self) -> None:
        self._flush()
        self.inside = False
        if not self._body:
            self.unknown["empty computation"] += 1
            return
        computation = Computation(self._name, tuple(self._body), self._is_entry)
        self.computations[self._name] = computation
        if self._is_entry:
            self.entry = self._name

    def _flush(self) -> None:
        if not self._pending:
            return
        text, self._pending = "\n".join(self._pending), []
        try:
            instruction = self.instruction(text, self._line)
        except HloError as error:
            self.unknown[f"line that cannot be read ({str(error).split(':')[0]})"] += 1
            return
        if instruction is not None:
            self._body.append(instruction)

    def instruction(self, text: str, line: int) -> Instruction | None:
        match = _INSTRUCTION.match(text)
        if match is None:
            return None
        shape, position = parse_shape(text, match.end())
        opcode = _OPCODE.match(text, position)
        if opcode is None:
            raise HloError(f"no operation in line {line}: {text[:80]!r}")
        end = matching(text, opcode.end() - 1)
        inside = text[opcode.end() : end - 1]
        attributes = _attributes(text[end:].lstrip(", "))
        self.note(opcode[1], shape)
        operands, literal = _operands(opcode[1], inside)
        metadata = attributes.pop("metadata", "")
        name = _OP_NAME.search(metadata)
        return Instruction(
            name=match[2],
            opcode=opcode[1],
            shape=shape,
            operands=operands,
            literal=literal,
            attributes=attributes,
            op_name=name[1].replace("\\'", "'") if name else "",
            frame=_frame(metadata),
            is_root=bool(match[1]),
            line=line,
        )

    def note(self, opcode: str, shape: Shape) -> None:
        if opcode not in KNOWN:
            self.unknown[f"operation {opcode}"] += 1
        for array in arrays(shape):
            if array.dtype not in BITS:
                self.unknown[f"type {array.dtype}"] += 1


def _operands(opcode: str, inside: str) -> tuple[tuple[str, ...], str]:
    if opcode in ("constant", "parameter", "iota"):
        return (), inside
    names = []
    for piece in split_top(inside):
        match = _NAME.search(re.sub(r"/\*.*?\*/", "", piece).strip())
        if match is not None:
            names.append(match[1])
    return tuple(names), ""


def _frame(metadata: str) -> int | str:
    frame = _FRAME.search(metadata)
    if frame is not None:
        return int(frame[1])
    file = _FILE.search(metadata)
    return f"{file[1].rsplit('/', 1)[-1]}:{file[2]}" if file else 0


def parse(text: str) -> HloModule:
    """Read a module.

    Args:
      text: HLO text of one module.

    Raises:
      HloError: there is no entry computation: the text is something else, or cut off before it.
    """
    reader = _Reader()
    tables = SourceTables()
    name, attributes = "", dict[str, str]()
    for number, line in enumerate(text.splitlines(), 1):
        if reader.inside:
            reader.take(line, number)
        elif header := _HEADER.match(line.rstrip()):
            reader.open(header[2], bool(header[1]))
        elif line.startswith("HloModule "):
            name, attributes = _module_line(line)
        elif not tables.feed(line) and line.strip():
            reader.unknown["line outside computations"] += 1
    if reader.inside:
        reader.unknown["computation cut off"] += 1
        reader.close()
    return _finish(reader, name, attributes, tables.sources())


def _module_line(line: str) -> tuple[str, dict[str, str]]:
    name, _, rest = line.removeprefix("HloModule ").partition(",")
    try:
        return name.strip(), _attributes(rest)
    except HloError:
        return name.strip(), {}


def _finish(
    reader: _Reader, name: str, attributes: Mapping[str, str], sources: Mapping[int, str]
) -> HloModule:
    if not reader.entry:
        raise HloError(
            "this text has no ENTRY computation, so it is no HLO module or was cut off: pass what "
            "`compiled.as_text()` prints, whole"
        )
    return HloModule(
        name=name,
        attributes=attributes,
        computations=reader.computations,
        entry=reader.entry,
        sources=sources,
        unknown=tuple(sorted(reader.unknown.items())),
    )
