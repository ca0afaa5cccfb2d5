"""Documents by id, for tables that name ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infuser.report.blocks import Cell, Picture, picture
from infuser.report.material import Documents


class Lookup:
    """Documents of several sources under their ids."""

    def __init__(self, known: Sequence[Documents]) -> None:
        self._where = {int(i): (part, row) for part in known for row, i in enumerate(part.ids)}
        self.edited = {i for part in known for i in part.edited}
        self.known = bool(self._where)
        self.labelled = self.known and any(np.ndim(part.targets) == 1 and len(part.targets) for part in known)
        self.facts = tuple(dict.fromkeys(name for part in known for name in part.facts))

    def cell(self, id_: int) -> Cell:
        """Return the id with a thumbnail or the beginning of the text."""
        if id_ not in self._where:
            return Cell(str(id_), float(id_))
        part, row = self._where[id_]
        document = part.inputs[row]
        if isinstance(document, str):
            return Cell(f"{id_}  {document[:160]}", float(id_))
        shown: Picture = picture(document, f"document {id_}, {self.label(id_)}")
        return Cell(str(id_), float(id_), shown)

    def label(self, id_: int) -> str:
        """Return the name of a document's class."""
        if id_ not in self._where:
            return "–"
        part, row = self._where[id_]
        target = part.targets[row] if len(part.targets) else ()
        return class_name(part.classes, target)

    def fact(self, name: str, id_: int) -> object:
        """Return what is known of a document under a name; None where nothing is."""
        if id_ not in self._where:
            return None
        part, row = self._where[id_]
        return part.facts[name][row] if name in part.facts else None


def class_name(classes: Sequence[str], target: object) -> str:
    """Return the name of a class, or its number, or a dash for targets that are not one class."""
    if np.ndim(target) != 0:  # type: ignore[arg-type]
        return "–"
    if isinstance(target, (int, np.integer)):
        return classes[int(target)] if 0 <= int(target) < len(classes) else str(int(target))
    return str(target)
