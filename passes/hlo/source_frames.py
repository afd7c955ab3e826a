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
        return {frame: self._source(frame) for frame in self._tables["StackFrames"]}

    def _source(self, frame: int) -> str:
        first = ""
        for _ in range(_MOST_FRAMES):  # a damaged table may have circles
            if frame <= 0:
                break
            fields = dict(_FIELD.findall(self._tables["StackFrames"].get(frame, "")))
            path, text = self._location(int(fields.get("file_location_id", 0)))
            if path and not any(part in path for part in _LIBRARIES):
                return text
            first = first or text
            frame = int(fields.get("parent_frame_id", 0)) - 1
        return first

    def _location(self, number: int) -> tuple[str, str]:
        fields = dict(_FIELD.findall(self._tables["FileLocations"].get(number, "")))
        path = self._tables["FileNames"].get(int(fields.get("file_name_id", 0)), "").strip('"')
        name = self._tables["FunctionNames"].get(int(fields.get("function_name_id", 0)), "")
        if not path:
            return "", ""
        function = name.strip('"').rsplit("<locals>.", 1)[-1]
        text = f"{path.rsplit('/', 1)[-1]}:{fields.get('line', '?')}"
        return path, f"{text} ({function})" if function else text
