"""What every benchmark gives back, and where it is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Report:
    """``data`` becomes NAME.json, ``page`` NAME.html; ``text`` is for the terminal."""

    data: dict[str, object]
    page: str
    text: str

    def keep(self, directory: Path, name: str) -> list[Path]:
        """Write both files whole."""
        directory.mkdir(parents=True, exist_ok=True)
        contents = {f"{name}.json": json.dumps(self.data) + "\n", f"{name}.html": self.page}
        for file, content in contents.items():
            part = directory / f"{file}.part"
            part.write_text(content)
            part.rename(directory / file)
        return [directory / file for file in contents]
