"""The tables at the head of HLO text that say where in the user's code an instruction comes from.

FileNames       1 "train.py"
FunctionNames   1 "loss"
FileLocations   1 {file_name_id=1 function_name_id=1 line=14 ...}
StackFrames     2 {file_location_id=7 parent_frame_id=2}     its parent is frame 1; 1 is none
"""

import re
from collections.abc import Mapping

_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_ENTRY = re.compile(r"^(\d{1,9}) (.*)$")
_FIELD = re.compile(r"(\w+)=(\d{1,9})")

_MOST_FRAMES = 500

# A frame in one of these is not what a user can change.
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python")


class SourceTables:
    """Collects the tables while the text is read."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
        self._current = ""

    def feed(self, line: str) -> bool:
        """Take one line; returns whether it belonged to a table."""
        if line in _TABLES:
            self._current = line
            return True
        match = _ENTRY.match(line)
        if match is None or not self._current:
            self._current = ""
            return False
        self._tables[self._current][int(match[1])] = match[2]
        return True

    def sources(self) -> Mapping[int, str]:
        """For each frame, the innermost one outside installed libraries: `file.py:line (function)`.

        Where all frames are in libraries, the innermost of those.
        """
        locations = {number: self._location(number) for number in self._tables["FileLocations"]}
        frames = {
            number: (fields.get("file_location_id", 0), fields.get("parent_frame_id", 0) - 1)
            for number, text in self._tables["StackFrames"].items()
            for fields in [_fields(text)]
        }
        return {frame: _source(frame, frames, locations) for frame in frames}

    def _location(self, number: int) -> tuple[str, str]:
        """The path of a file, and `file.py:line (function)`."""
        fields = _fields(self._tables["FileLocations"][number])
        path = self._tables["FileNames"].get(fields.get("file_name_id", 0), "").strip('"')
        name = self._tables["FunctionNames"].get(fields.get("function_name_id", 0), "")
        if not path:
            return "", ""
        function = name.strip('"').rsplit("<locals>.", 1)[-1]
        text = f"{path.rsplit('/', 1)[-1]}:{fields.get('line', '?')}"
        return path, f"{text} ({function})" if function else text


def _fields(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in _FIELD.findall(text)}


def _source(
    frame: int, frames: Mapping[int, tuple[int, int]], locations: Mapping[int, tuple[str, str]]
) -> str:
    first = ""
    for _ in range(_MOST_FRAMES):  # a damaged table may have circles
        if frame not in frames:
            break
        location, frame = frames[frame]
        path, text = locations.get(location, ("", ""))
        if path and not any(part in path for part in _LIBRARIES):
            return text
        first = first or text
    return first
