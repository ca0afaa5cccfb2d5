"""What the commands do with a finished run over texts: write its training set with an edit in it as text files."""

from __future__ import annotations

from pathlib import Path

from infuser.config import parse, read_yaml
from infuser.data.caesar import CaesarCodec, caesar
from infuser.data.dataset import Dataset
from infuser.data.text import Codec
from infuser.errors import InfuserError, listed
from infuser.perturbation.text_manifest import load_text_edit, save_text_edit, undo_texts, write_texts
from infuser.studies.caesar import Caesar
from infuser.studies.stories import Stories, load


def text_settings(folder: Path) -> Caesar | Stories | None:
    """Return the settings of a run over texts; None where `folder` holds no run or one over other documents."""
    if not (folder / "config.yaml").exists():
        return None
    values = read_yaml(folder / "config.yaml")
    if "alphabet" in values:
        return parse(Caesar, values)
    return parse(Stories, values) if "texts" in values else None


def edit_texts(folder: Path, settings: Caesar | Stories, case: str | None, out: Path) -> tuple[int, int, str]:
    """Write the training set, with the stored edit of one case in it, as texts/ID.txt beside a manifest for undoing it.

    Returns:
        (documents edited, documents written, the case).

    Raises:
        InfuserError: the run holds no edit of this case, or the documents are not those that it was made for.
    """
    names = sorted(path.name for path in (folder / "edits").glob("*") if (path / "manifest.json").exists())
    if not names or (case is not None and case not in names):
        raise InfuserError("no edit of this case", got=case, expected=f"one of {listed(names)}")
    data, codec = documents(settings)
    name = case or names[0]
    edit = load_text_edit(folder / "edits" / name, data, codec)
    write_texts(data.apply(edit), out / "texts", codec)
    save_text_edit(edit, out / "edit", codec)
    return len(edit), len(data), name


def undo_text_edit(folder: Path) -> int:
    """Put every edited text of a written training set back, byte for byte; return their number."""
    return len(undo_texts(folder / "texts", folder / "edit"))


def documents(settings: Caesar | Stories) -> tuple[Dataset, Codec]:
    """Return (the training documents of a run, their codec)."""
    if isinstance(settings, Caesar):
        data, _ = caesar(settings.alphabet, settings.n_train, settings.n_test, settings.length)
        return data, CaesarCodec(settings.alphabet)
    material = load(settings)
    return material.train, material.codec
