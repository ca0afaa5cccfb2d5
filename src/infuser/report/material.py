"""What a report can show besides the nouns: frozen records of plain values, filled in by whoever computed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from infuser.errors import InfuserError
from infuser.types import Array, Edit, Effect, Estimate


@dataclass(frozen=True)
class Summary:
    """What was asked and found.

    Attributes:
        asked: the question, one sentence.
        found: the answer, two or three sentences, each number with its n, seeds, control and interval.
    """

    asked: str
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class Caveat:
    """Something that a reader must know before trusting a number.

    Attributes:
        code: of the automatic check ("too_few_seeds"); empty where the text says all.
        text: what it found, with its numbers.
    """

    code: str
    text: str


@dataclass(frozen=True)
class Metric:
    """A statistic under a name."""

    name: str
    estimate: Estimate


@dataclass(frozen=True)
class ArmStats:
    """What one arm gave in one regime.

    Attributes:
        arm: its name.
        cells: column -> value; None where there is none. Columns are shown in the order of the first arm.
    """

    arm: str
    cells: Mapping[str, float | str | None]


@dataclass(frozen=True)
class Regime:
    """The effects of one way to retrain.

    Attributes:
        name: last_epoch, half, scratch.
        effects: arm minus control; those against `control` are drawn, all are listed.
        arms: a table of further values.
        control: the arm at the zero line.
    """

    name: str
    effects: tuple[Effect, ...]
    arms: tuple[ArmStats, ...] = ()
    control: str = "clean"


@dataclass(frozen=True)
class ProbeView:
    """One probe: what it is, what it should become, and what every arm makes of it.

    Attributes:
        name: of the probe.
        document: uint8 (C, H, W), or text.
        label: its true class.
        target: the class that the edit was to raise.
        classes: (C,) names.
        probabilities: arm -> (C,), averaged over seeds by whoever made them. The first arm is drawn as before.
        after: the arm that is drawn against the first; the second one by default.
    """

    name: str
    document: Array | str
    label: int
    target: int
    classes: tuple[str, ...]
    probabilities: Mapping[str, Array]
    after: str = ""

    def __post_init__(self) -> None:
        sizes = {np.shape(p) for p in self.probabilities.values()}
        if sizes - {(len(self.classes),)}:
            raise InfuserError(
                f"probe {self.name}: probabilities and classes differ", got=sorted(sizes), expected=(len(self.classes),)
            )


@dataclass(frozen=True)
class EditView:
    """An edit with what is known of each document.

    Attributes:
        edit: the documents before and after.
        title: what the edit is for.
        classes: names of the classes.
        influence: (k,) score of each document.
        distances: name with unit -> (k,), for instance {"Linf (1/255)": ...}.
        pieces: token id -> its text, where documents are token ids.
        substitution_gains: (k, T) gain of each substitution; NaN where the token was kept.
    """

    edit: Edit
    title: str = "Edited documents"
    classes: tuple[str, ...] = ()
    influence: Array | None = None
    distances: Mapping[str, Array] = field(default_factory=dict)
    pieces: Mapping[int, str] = field(default_factory=dict)
    substitution_gains: Array | None = None

    def __post_init__(self) -> None:
        given = {**self.distances} | ({} if self.influence is None else {"influence": self.influence})
        for name, values in given.items():
            if len(values) != len(self.edit):
                raise InfuserError(f"{name} is not one number per document", got=len(values), expected=len(self.edit))


@dataclass(frozen=True)
class TokenDiff:
    """One text before and after, token by token.

    Attributes:
        id: of the document.
        before: its tokens as text.
        after: as many tokens.
        gains: (T,) gain of each substitution; NaN where the token was kept.
        note: what else is known (perplexity, influence).
    """

    id: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    gains: Array | None = None
    note: str = ""

    def __post_init__(self) -> None:
        sizes = {len(self.before), len(self.after)} | (set() if self.gains is None else {len(self.gains)})
        if len(sizes) != 1:
            raise InfuserError(f"document {self.id}: tokens before and after differ in number", got=sorted(sizes))


@dataclass(frozen=True)
class Documents:
    """Documents to look up by id, so that tables of ids can show what they are.

    Attributes:
        ids: (n,).
        inputs: (n, C, H, W) uint8, or texts.
        targets: (n,) labels; () where there are none.
        classes: names of the classes.
        edited: ids that somebody edited, where that is known.
        facts: name -> (n,) what else is known of each; a column of the tables of suspects.
    """

    ids: Array
    inputs: Array | tuple[str, ...]
    targets: Array | tuple[()] = ()
    classes: tuple[str, ...] = ()
    edited: tuple[int, ...] = ()
    facts: Mapping[str, Sequence[object] | Array] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictedMeasured:
    """What influence promised and what retraining gave, one point per probe.

    Attributes:
        names: (Q,) of the probes.
        predicted: (Q,) change of f.
        measured: (Q,) change of f.
        unit: of both.
        statistics: slope, rank correlation and so on.
    """

    names: tuple[str, ...]
    predicted: Array
    measured: Array
    unit: str
    statistics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class TransferMatrix:
    """Effects of edits made on one architecture and trained on another.

    Attributes:
        effects: (made on, trained) -> effect against that architecture's own control.
    """

    effects: Mapping[tuple[str, str], Effect]


@dataclass(frozen=True)
class Roc:
    """One curve of a detector.

    Attributes:
        name: of the detector.
        fpr: (n,) share of clean documents flagged.
        tpr: (n,) share of edited documents flagged.
    """

    name: str
    fpr: Array
    tpr: Array


@dataclass(frozen=True)
class DetectorResult:
    """One statistic of a detector, on the edited data and what the edit itself added.

    Attributes:
        name: of the detector.
        metric: of both values ("ROC-AUC").
        after: on the data that a defender gets.
        lift: after minus before, on the same ids.
    """

    name: str
    metric: str
    after: Estimate
    lift: Estimate | None = None


@dataclass(frozen=True)
class Detection:
    """What detectors found.

    Attributes:
        title: what was searched, and what the detectors were told.
        curves: drawn on a logarithmic axis of the false-positive rate.
        results: drawn as bars.
        n_edited: documents to find.
        n_clean: the others.
        drawn: metrics that get bars, the others stand in the table; all by default.
    """

    title: str
    curves: tuple[Roc, ...] = ()
    results: tuple[DetectorResult, ...] = ()
    n_edited: int = 0
    n_clean: int = 0
    drawn: tuple[str, ...] = ()


@dataclass(frozen=True)
class TradeOff:
    """Type I against type II error of telling two training sets apart.

    Attributes:
        name: of the document or set.
        alpha: (n,) type I error.
        beta: (n,) smallest type II error at alpha.
        mu: of the Gaussian trade-off that it stands for.
    """

    name: str
    alpha: Array
    beta: Array
    mu: Estimate | None = None


@dataclass(frozen=True)
class Provenance:
    """What it takes to get the same numbers again.

    Attributes:
        config: the resolved configuration as YAML.
        environment: versions, machine, threads.
        seeds: name -> seeds.
        hashes: name -> hash of a manifest, data set or checkpoint.
    """

    config: str = ""
    environment: Mapping[str, object] = field(default_factory=dict)
    seeds: Mapping[str, object] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """What is known of each unit, in a table that can be sorted.

    Attributes:
        title: of the table.
        rows: name of the unit -> column -> value. Columns are shown in the order in which they first appear.
        unit: what a row is ("pair").
        note: what the columns mean.
    """

    title: str
    rows: Mapping[str, Mapping[str, float | str | None]]
    unit: str = "probe"
    note: str = ""


@dataclass(frozen=True)
class ComparedRun:
    """One of several runs.

    Attributes:
        name: of the run.
        settings: column -> value; those that are alike in all runs are shown once.
        regimes: effects of its arms.
        metrics: statistics of runs that have no arms.
    """

    name: str
    settings: Mapping[str, float | str | None]
    regimes: tuple[Regime, ...] = ()
    metrics: tuple[Metric, ...] = ()
