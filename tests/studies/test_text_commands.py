from dataclasses import replace
from pathlib import Path

import pytest

from infuser.data.caesar import CaesarCodec, caesar
from infuser.data.text import texts_of
from infuser.errors import InfuserError
from infuser.studies import caesar as study
from infuser.studies.commands import edit_run, undo_edit
from infuser.studies.text_commands import text_settings
from tests.studies.test_caesar import TINY


def test_an_edit_of_texts_is_written_as_files_and_undone_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "LEARNED", 0.0)
    settings = replace(TINY, pairs=1, controls=(), seeds=(1,))
    value = study.run_caesar(settings, tmp_path / "run")
    assert text_settings(tmp_path / "run") == settings
    data, _ = caesar(settings.alphabet, settings.n_train, settings.n_test, settings.length)
    texts = dict(zip(data.ids.tolist(), texts_of(data.inputs, CaesarCodec(settings.alphabet)), strict=True))
    out = tmp_path / "edited"
    name = value["probes"][0]
    assert edit_run(tmp_path / "run", name, out) == (settings.k, settings.n_train, name)

    def changed() -> list[int]:
        return [i for i, text in texts.items() if (out / "texts" / f"{i}.txt").read_bytes() != text.encode()]

    assert len(changed()) == settings.k
    assert undo_edit(out) == settings.k
    assert changed() == []
    with pytest.raises(InfuserError, match=r"no edit of this case.*Got: 1-1"):
        edit_run(tmp_path / "run", "1-1", out)


def test_a_folder_without_a_run_is_none_of_texts(tmp_path: Path) -> None:
    assert text_settings(tmp_path) is None
    with pytest.raises(InfuserError, match="there is no edit to undo here"):
        undo_edit(tmp_path)
