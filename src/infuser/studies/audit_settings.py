"""What an audit is told: its settings, and how a file, a command line and defaults make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infuser.config import merge, of_data, override, parse
from infuser.errors import InfuserError
from infuser.studies import stories
from infuser.studies.audit_material import Fault
from infuser.studies.suspects import Effort
from infuser.types import Recipe

_IMAGE_MODEL = "simple_cnn"


@dataclass(frozen=True)
class Audit:
    """All settings of an audit.

    Attributes:
        data: digits, mnist, cifar10, folder:PATH, parquet:PATH, npz:PATH or hf:NAME; for texts text:PATH (data.texts).
        data_folder: where the files of a named data set lie.
        limit: training documents, chosen by seed 0; None means all.
        model: a name in infuser.models, or module:function; of texts a causal model of transformers, folder or name.
        context: tokens of a text at most; longer ones are cut.
        recipe: how the data are trained on; the closer to the real training, the better.
        effort: what detectors may cost.
        suspect: ids of test documents on which a behaviour is suspected; none for a blind audit.
        suspect_labels: the label that each of them is suspected to be pushed towards.
        suspect_words: of texts, the word that is suspected to be said, and the one in whose place. The behaviour is
            read on a fifth of the texts, which are then not audited.
        rank_by: the detector that orders the list; by default fused_told with a suspected behaviour, else fused_blind.
        review: documents at the head of the list that are shown with their neighbours.
        neighbours: shown for each.
        depth: share of documents that count as a detector's top, for agreement (at least 10), and that are left out of
            the export where nobody names them.
        plant: share of documents that get planted faults in a second run; 0 leaves recall unknown.
        plant_kind: label_flips; of texts rewrites, aimless substitutions; or infusion, edits towards the suspected
            behaviour.
        plant_seed: draws the planted documents.
        trusted: ids of training documents known to be clean, drawn at random: without them precision is unknown.
    """

    data: str = "digits"
    data_folder: str | None = None
    limit: int | None = None
    model: str = _IMAGE_MODEL
    context: int = 256
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.05, threads=1))
    effort: Effort = field(default_factory=Effort)
    suspect: tuple[int, ...] = ()
    suspect_labels: tuple[int, ...] = ()
    suspect_words: tuple[str, ...] = ()
    rank_by: str = ""
    review: int = 100
    neighbours: int = 5
    depth: float = 0.02
    plant: float = 0.0
    plant_kind: Fault = "label_flips"
    plant_seed: int = 0
    trusted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.trusted)) != len(self.trusted):
            raise InfuserError("a trusted document counts once", got=f"{len(self.trusted)} ids, some of them twice")
        if len(self.suspect) != len(self.suspect_labels):
            got = f"{len(self.suspect)} documents, {len(self.suspect_labels)} labels"
            raise InfuserError("every suspected document needs the label it is pushed towards", got=got)
        if not (0 < self.depth < 1 and 0 <= self.plant < 1):
            expected = "0 < depth < 1 and 0 <= plant < 1"
            raise InfuserError("a share is out of range", got=f"{self.depth}, {self.plant}", expected=expected)
        if self.plant and self.plant_kind == "infusion" and not (self.suspect or self.suspect_words):
            remedy = "set suspect and suspect_labels, or suspect_words"
            raise InfuserError("planted edits need a suspected behaviour", remedy=remedy)
        if len(self.suspect_words) not in (0, 2):
            expected = "the word said and the one in whose place"
            raise InfuserError("suspect_words are two words", got=self.suspect_words, expected=expected)
        if self.suspect_words and not self.of_texts:
            fact = "suspect_words are of texts"
            raise InfuserError(fact, got=self.data, remedy="audit text:PATH, or set suspect and suspect_labels")
        if self.suspect and self.of_texts:
            raise InfuserError("texts have no labels", got="suspect", remedy="set suspect_words")
        if self.of_texts and self.model == _IMAGE_MODEL:
            remedy = "set model to the pretrained one, for instance with --set model=DIR"
            expected = "a causal language model of transformers, a folder or a name"
            raise InfuserError("an audit of texts needs a language model", expected=expected, remedy=remedy)
        if self.review < 1 or self.neighbours < 1:
            got = f"{self.review}, {self.neighbours}"
            raise InfuserError("review or neighbours is out of range", got=got, expected="at least 1")

    @property
    def of_texts(self) -> bool:
        """Whether the documents are texts."""
        return _of_texts(self.data)


def _of_texts(source: str) -> bool:
    return source.startswith("text:")


def audit_settings(
    what: str, settings: Sequence[str] = (), data_folder: str | Path | None = None, plant: float | None = None
) -> Audit:
    """Return the settings of an audit, with "key=value" settings laid on top.

    Args:
        what: the data to audit, or the path of a YAML file.
        settings: changes.
        data_folder: where the files of a named data set lie.
        plant: share of documents that get planted faults.

    Raises:
        InfuserError: an unknown setting, or a wrong value.
    """
    told = of_data(what)
    base: dict[str, Any] = {"recipe": asdict(Audit().recipe)}
    if _of_texts(str(told.get("data", ""))):
        base = {"recipe": asdict(stories.Stories().recipe), "plant_kind": "rewrites"}
    given = {"data_folder": None if data_folder is None else str(data_folder), "plant": plant}
    told = merge(told, {name: value for name, value in given.items() if value is not None})
    return parse(Audit, override(merge(base, told), settings))


def exported(export: str, remove: str) -> dict[str, Any]:
    """Return the arguments of `run_audit` that the command line's --export and --remove mean.

    Raises:
        InfuserError: neither none nor clean, or ids that are not whole numbers.

    >>> exported("clean", "3, 17")
    {'export': 'clean', 'remove': (3, 17)}
    """
    if export not in ("none", "clean"):
        raise InfuserError("unknown export", got=export, expected="clean")
    try:
        ids = tuple(int(part) for part in remove.split(",") if part.strip())
    except ValueError as error:
        raise InfuserError("ids must be whole numbers", got=remove, expected="for example 3,17") from error
    if ids and export == "none":
        raise InfuserError("--remove names what --export leaves out", got=remove, remedy="add --export clean")
    return {"export": export, "remove": ids}
