"""What an audit looks at: labelled documents or texts, each with a model, a suspected behaviour and faults to plant."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.data.text import PAD, texts_of
from infuser.errors import InfuserError, listed
from infuser.measure import Margin, predictions
from infuser.params import trainable
from infuser.perturbation.export import write_images
from infuser.perturbation.perturb import take
from infuser.perturbation.text_controls import rewrite
from infuser.report import Documents
from infuser.storage import hash_file, write_text
from infuser.studies.poisons import Poison, flip_labels, poison
from infuser.studies.worlds import Stories
from infuser.types import Array, Builder, Edit, Measurement

Fault = Literal["label_flips", "rewrites", "infusion"]

_REWRITTEN = 0.1  # of the tokens of a document
_SHOWN = 160  # characters of a text in a table


class Material(Protocol):
    """What both trainings of an audit share."""

    @property
    def data(self) -> Dataset:
        """The documents under audit."""
        ...

    @property
    def builder(self) -> Builder:
        """Of the model."""
        ...

    @property
    def aim(self) -> Measurement | None:
        """The suspected behaviour."""
        ...

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What can be planted here."""
        ...

    @property
    def determinants(self) -> dict[str, str]:
        """What else a result depends on that neither settings nor data name."""
        ...

    def notes(self, table: Mapping[str, Any]) -> Iterator[str]:
        """Yield what a reader of the list has to know of the data and of the training."""
        ...

    def planted(self, kind: Fault, trained: Callable[[], Run], count: int, seed: int) -> Edit:
        """Return faults of a kind in `count` documents by somebody who can train on the data as they are."""
        ...

    def columns(self, run: Run) -> dict[str, list[Any]]:
        """Return what a reader of the list wants to know of every document, by name."""
        ...

    def documents(self, ids: Array) -> Documents | None:
        """Return what these documents look like, where a report can show it."""
        ...

    def export(self, removed: Array, folder: Path) -> None:
        """Write the data without these documents."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Documents with one label each.

    Attributes:
        builder: of the model.
        data: the documents under audit.
        aim: the suspected behaviour.
        every: all that were read, from which an export starts.
        files: the file of document i at i, where documents are files.
    """

    builder: Builder
    data: Dataset
    aim: Margin | None
    every: Dataset
    files: tuple[str, ...] = ()

    def notes(self, table: Mapping[str, Any]) -> Iterator[str]:
        """Yield how many documents were left out, and how the model that looked at them has learnt."""
        yield from _left_out(len(self.every), len(self.data))
        label, prediction = np.asarray(table["label"]), np.asarray(table["prediction"])
        yield f"The model predicts the label of {100 * (label == prediction).mean():.0f} % of the documents."
        if len(np.unique(prediction)) == 1 < len(np.unique(label)):
            yield "It predicts one class for all of them: it has learnt nothing, and its list means nothing."

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Wrong labels, and edits of pixels."""
        return ("label_flips", "infusion")

    @property
    def determinants(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def planted(self, kind: Fault, trained: Callable[[], Run], count: int, seed: int) -> Edit:
        """Return wrong labels, or edits towards the suspected behaviour."""
        if kind == "label_flips":
            return flip_labels(self.data, count, seed)
        assert self.aim is not None, "checked by Audit"
        return poison("infusion_post_edit", Poison(k=count), trained(), self.data, self.aim, seed)

    def columns(self, run: Run) -> dict[str, list[Any]]:
        """Return labels and predictions."""
        model = run.model()
        said = predictions(model, trainable(model), self.data)
        named = {"file": [self.files[i] for i in self.data.ids]} if self.files else {}
        return {**named, "label": self.data.targets.tolist(), "prediction": said.tolist()}

    def documents(self, ids: Array) -> Documents | None:
        """Return pictures with their labels; nothing where the documents are none."""
        few = self.data[ids]
        if few.inputs.dtype != np.uint8 or few.inputs.ndim != 4:
            return None
        return Documents(few.ids, few.inputs, few.targets, self.data.classes)

    def export(self, removed: Array, folder: Path) -> None:
        """Write a folder of images: all that were read but these; warn of classes of which nothing is left."""
        left = self.every.without(removed)
        write_images(left, folder)
        gone = np.setdiff1d(self.every.targets, left.targets)
        if len(gone):
            named = self.every.classes or tuple(str(c) for c in range(self.every.n_outputs))
            warnings.warn(
                f"{folder.name} holds nothing of class {listed([named[c] for c in gone])}: read without classes=, the "
                "classes behind it get other label numbers",
                stacklevel=2,
            )


@dataclass(frozen=True)
class Texts:
    """Texts that a language model is trained on.

    Attributes:
        world: the texts with their model.
        originals: every text as it was read, at its id: before any was cut to the context, and those held out too.
        aim: the suspected behaviour: log p(said) - log p(the other word) where that stands, on texts held out.
        crafted_for: the same on other places, for the attacker whose edits are planted.
    """

    world: Stories
    originals: Sequence[str]
    aim: Measurement | None = None
    crafted_for: Measurement | None = None

    @property
    def data(self) -> Dataset:
        """The training texts."""
        return self.world.data

    @property
    def builder(self) -> Builder:
        """Of the language model."""
        return self.world.builder

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Aimless substitutions, and edits of tokens."""
        return ("rewrites", "infusion")

    @property
    def determinants(self) -> dict[str, str]:
        """The weights of the pretrained model, where they lie in a folder, and the texts held out."""
        files = sorted(Path(self.world.material.builder.name).glob("*.safetensors"))
        return {"held out": self.world.material.held_out.content_hash} | {f.name: hash_file(f) for f in files}

    def planted(self, kind: Fault, trained: Callable[[], Run], count: int, seed: int) -> Edit:
        """Return random substitutions of a tenth of the tokens, or edits towards the suspected behaviour.

        Raises:
            InfuserError: no document drawn has a token that can be rewritten.
        """
        if kind == "infusion":
            assert self.crafted_for is not None, "checked by Audit"
            world = replace(self.world, settings=replace(self.world.settings, k=count))
            return world.poison("infusion_post_edit", trained(), self.crafted_for, seed)
        ids = np.random.default_rng(seed).choice(self.data.ids, count, replace=False)
        tokens = np.ceil(_REWRITTEN * (self.data[ids].inputs != PAD).sum(1)).astype(int)
        made = rewrite(self.data, ids, tokens, trained(), self.world.material.codec, "token", seed)
        changed = (made.before != made.after).any(1)
        if not changed.any():
            raise InfuserError("no text that was drawn could be rewritten", got=f"{count} texts", remedy="plant more")
        return take(made, np.flatnonzero(changed), made.made_by)  # what stayed as it was is no fault

    def notes(self, table: Mapping[str, Any]) -> Iterator[str]:
        """Yield how many texts were left out, and how many are longer than what is looked at."""
        yield from _left_out(len(self.originals), len(self.data))
        context = self.data.input_shape[0]
        full = int((self.data.inputs != PAD).all(1).sum())
        if full:
            yield f"{full} texts fill the context of {context} tokens: what comes behind it was not looked at."

    def columns(self, run: Run) -> dict[str, list[Any]]:
        """Return how the texts begin."""
        return {"text": [text[:_SHOWN] for text in self._texts(self.data.ids)]}

    def documents(self, ids: Array) -> Documents | None:
        """Return the texts as they are stored."""
        return Documents(np.asarray(ids), tuple(self._texts(ids)))

    def export(self, removed: Array, folder: Path) -> None:
        """Write texts.jsonl, a line a document with its id: all that were read but these, each as it was read.

        Raises:
            InfuserError: an id is not that of a text.
        """
        unknown = sorted(set(removed.tolist()) - set(range(len(self.originals))))
        if unknown:
            raise InfuserError("no such texts", got=listed(unknown), expected=f"0 to {len(self.originals) - 1}")
        kept = sorted(set(range(len(self.originals))) - set(removed.tolist()))
        lines = [json.dumps({"id": i, "text": self.originals[i]}, ensure_ascii=False) for i in kept]
        write_text(folder / "texts.jsonl", "".join(f"{line}\n" for line in lines))

    def _texts(self, ids: Sequence[int] | Array) -> list[str]:
        return texts_of(self.data[ids].inputs, self.world.material.codec)


def _left_out(read: int, audited: int) -> Iterator[str]:
    if audited < read:
        yield (
            f"{read - audited} of {read} documents were not audited (held out to read a behaviour on, beyond the "
            "limit, or empty); an export keeps them."
        )


def require_fault(material: Material, kind: Fault) -> None:
    """Raise where faults of this kind cannot be planted.

    Raises:
        InfuserError: they cannot.
    """
    if kind not in material.faults:
        fact = f"faults of this kind cannot be planted in {material.data.name}"
        raise InfuserError(fact, got=kind, expected=" or ".join(material.faults))
