"""What the commands do with a finished run: score its documents anew, write an edited data set, try an edit again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

from infuser.attribution.attribute import attribute
from infuser.attribution.f_ine import FInfluence
from infuser.attribution.similarity import GradientSimilarity
from infuser.attribution.tracin import TracIn
from infuser.attribution.trak import TRAK
from infuser.config import parse, read_yaml
from infuser.errors import InfuserError
from infuser.evaluation.compare import compare
from infuser.evaluation.retrain import retrain
from infuser.perturbation.export import undo_images, write_images
from infuser.perturbation.manifest import load_edit, save_edit
from infuser.studies.study import Experiment, Start, Study, prepare
from infuser.studies.text_commands import edit_texts, text_settings, undo_text_edit
from infuser.training import train
from infuser.types import Arm, Scores


def open_study(folder: Path, *, allow_code: bool = False) -> Study:
    """Return the study of a run folder; its checkpoints are loaded, not trained again.

    Raises:
        InfuserError: the folder holds no run.
    """
    if not (folder / "config.yaml").exists():
        raise InfuserError("this is not a run folder", got=str(folder), remedy="make one with `infuser run`")
    settings = parse(Experiment, read_yaml(folder / "config.yaml"))
    return prepare(settings, folder, {}, allow_code=allow_code)


def attribute_run(folder: Path, method: str, out: Path, *, allow_code: bool = False) -> Scores:
    """Score all training documents of a run towards its probes with a named method and write them as parquet."""
    scorers: dict[str, Callable[[Study], Any]] = {
        "influence": lambda study: study.influence,
        "no-curvature": lambda study: study.plain,
        "tracin": lambda _: TracIn(),
        "similarity": lambda _: GradientSimilarity(),
        "trak": lambda _: TRAK(),
    }
    if method not in (*scorers, "f-ine"):
        raise InfuserError("unknown attribution method", got=method, expected=", ".join([*scorers, "f-ine"]))
    study = open_study(folder, allow_code=allow_code)
    if method == "f-ine":
        # mu belongs to a training, not to a checkpoint: the run is trained again under observation, to the same bits.
        finder = FInfluence()
        watch = finder.observer(study.data, study.probes)
        run = train(study.run.builder, study.data, study.settings.recipe, observers=[watch])
        scores = attribute(finder, run, study.data, study.probes)
    else:
        scores = attribute(scorers[method](study), study.run, study.data, study.probes)
    scores.to_parquet(out)
    return scores


def edit_run(folder: Path, probe: str | None, out: Path, *, allow_code: bool = False) -> tuple[int, int, str]:
    """Write the training set of a run, with the stored edit of one probe in it, as files that can be undone.

    Returns:
        (documents edited, documents written, the probe).
    """
    texts = text_settings(folder)
    if texts is not None:
        return edit_texts(folder, texts, probe, out)
    study = open_study(folder, allow_code=allow_code)
    where = _edit_folder(folder, study, probe)
    edit = load_edit(where, study.data)
    write_images(study.data.apply(edit), out / "images")
    save_edit(edit, out / "edit", study.data)
    return len(edit), len(study.data), where.name


def undo_edit(folder: Path) -> int:
    """Put every edited document of a written training set back, byte for byte; return their number."""
    if not (folder / "edit").is_dir():
        expected = "a folder with images/ or texts/, and edit/, as `infuser edit` writes it"
        raise InfuserError("there is no edit to undo here", got=str(folder), expected=expected)
    if (folder / "texts").is_dir():
        return undo_text_edit(folder)
    return len(undo_images(folder / "images", folder / "edit"))


def retrain_run(folder: Path, probe: str | None, seeds: str, start: str, *, allow_code: bool = False) -> str:
    """Retrain a run on a stored edit and on the clean data; return the paired effect in words."""
    if start not in get_args(Start):
        raise InfuserError("unknown regime", got=start, expected=", ".join(get_args(Start)))
    try:
        numbers = tuple(int(s) for s in seeds.split(","))
    except ValueError as error:
        raise InfuserError("seeds must be whole numbers", got=seeds, expected="for example 1,2,3") from error
    study = open_study(folder, allow_code=allow_code)
    where = _edit_folder(folder, study, probe)
    edited = study.data.apply(load_edit(where, study.data))
    clean = Arm("clean", study.data, "the training data as they are")
    arms = [clean, Arm("edit", edited, f"the stored edit of {where.name}")]
    q = _names(study).index(where.name)
    trials = retrain(study.run, arms, study.probes[q], numbers, cast("Start", start))
    effect = compare(trials, arm="edit", control="clean")
    lines = [f"{where.name}, {start}: {effect}"]
    for seed in numbers:
        of = {arm: trials.where(arm=arm).value[trials.where(arm=arm).seed == seed].mean() for arm in ("clean", "edit")}
        lines.append(f"  seed {seed}: clean {of['clean']:+.3f}, edit {of['edit']:+.3f}")
    return "\n".join(lines)


def _names(study: Study) -> list[str]:
    return [f"probe-{name.replace('->', '-')}" for name in study.probes.queries]


def _edit_folder(folder: Path, study: Study, probe: str | None) -> Path:
    names = _names(study)
    wanted = names[0] if probe is None else f"probe-{probe.removeprefix('probe-').replace('->', '-')}"
    if wanted not in names or not (folder / "edits" / wanted).exists():
        known = ", ".join(name.removeprefix("probe-") for name in names)
        raise InfuserError("no edit of this probe", got=probe, expected=f"one of {known}")
    return folder / "edits" / wanted
