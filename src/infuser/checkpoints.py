"""A trained model with all that made it: checkpoints in memory, and on disk as safetensors beside a manifest."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from infuser.data.dataset import Dataset, Kind
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.storage import atomic_folder, hash_arrays, hash_file, read_json, write_json
from infuser.types import Builder, Params, Recipe

_FILES = ("weights.safetensors", "optimizer.pt")


@dataclass(frozen=True)
class Checkpoint:
    """The state of training after `epoch` epochs and `step` steps.

    Randomness needs no state of its own: order, dropout and augmentation are functions of (seed, epoch).

    Attributes:
        epoch: epochs done; 0 is the initialisation.
        step: optimiser steps done.
        weights: the module's state_dict, buffers included, on the CPU.
        optimizer: the optimiser's state_dict; empty where there is none.
    """

    epoch: int
    step: int
    weights: Params
    optimizer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the weights."""
        # As bytes beside the type's name, since numpy has no bfloat16.
        tensors = {f"{name} {value.dtype} {tuple(value.shape)}": value for name, value in self.weights.items()}
        return hash_arrays({k: v.cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for k, v in tensors.items()})


@dataclass(frozen=True)
class Run:
    """What training gave: checkpoints from the initialisation to the end, and how to build the model.

    Attributes:
        builder: (input_shape, n_outputs) -> nn.Module.
        input_shape: of one document.
        n_outputs: classes, vocabulary size or regression outputs.
        kind: of the data's targets.
        recipe: everything else that changed the weights.
        data_hash: of the training data.
        checkpoints: by epoch; the last is the trained model.
        traces: what the observers recorded, by observer name.
        device: where models of this run are built.
        n_documents: N of the training data; 0 where nobody said.
    """

    builder: Builder
    input_shape: tuple[int, ...]
    n_outputs: int
    kind: Kind
    recipe: Recipe
    data_hash: str
    checkpoints: tuple[Checkpoint, ...]
    traces: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    n_documents: int = 0

    @classmethod
    def of(
        cls,
        builder: Builder,
        data: Dataset,
        recipe: Recipe,
        checkpoints: Sequence[Checkpoint],
        traces: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> Run:
        """Return the run of these checkpoints, trained on `data`."""
        return cls(
            builder,
            data.input_shape,
            data.n_outputs,
            data.kind,
            recipe,
            data.content_hash,
            tuple(checkpoints),
            traces or {},
            device,
            len(data),
        )

    @classmethod
    def from_weights(
        cls,
        builder: Builder,
        state_dict: Mapping[str, Tensor],
        data: Dataset,
        *,
        recipe: Recipe | None = None,
        device: str = "cpu",
    ) -> Run:
        """Return a run of one checkpoint for a model trained elsewhere on `data`.

        Without a recipe it can be attributed and edited for; retraining then needs `train_fn`, or a recipe.
        """
        checkpoint = Checkpoint(0, 0, {name: value.detach().cpu().clone() for name, value in state_dict.items()})
        run = cls.of(builder, data, recipe or Recipe(), (checkpoint,), device=device)
        run.model()  # fails now, with names, if the weights do not fit
        return run

    def model(self, checkpoint: int | Checkpoint = -1) -> nn.Module:
        """Return a new model in eval mode with a checkpoint's weights; torch's random state is left as it was."""
        chosen = self.checkpoints[checkpoint] if isinstance(checkpoint, int) else checkpoint
        model = build(self.builder, self.input_shape, self.n_outputs, self.recipe.seed)
        load_weights(model, chosen.weights)
        return model.to(self.device).eval()

    def at(self, epoch: int) -> Checkpoint:
        """Return the checkpoint after `epoch` epochs.

        Raises:
            InfuserError: it was not kept.
        """
        for checkpoint in self.checkpoints:
            if checkpoint.epoch == epoch:
                return checkpoint
        raise InfuserError(
            f"the run has no checkpoint after epoch {epoch}",
            got=f"epochs {listed([c.epoch for c in self.checkpoints], 20)}",
            causes=["the model was trained elsewhere (Run.from_weights)"],
            remedy="train with infuser, use start='scratch', or pass train_fn to retrain",
        )

    def __repr__(self) -> str:
        epochs = [c.epoch for c in self.checkpoints]
        return (
            f"Run({len(self.checkpoints)} checkpoints to epoch {epochs[-1]}, data {self.data_hash[:8]}, {self.recipe})"
        )


def build(builder: Builder, input_shape: tuple[int, ...], n_outputs: int, seed: int) -> nn.Module:
    """Return builder(input_shape, n_outputs) with parameters drawn from `seed`; the global random state is kept.

    Raises:
        InfuserError: the builder is no function, fails, or gives a model without trainable parameters.
    """
    given: object = builder
    if not callable(given):
        remedy = "pass a function such as infuser.models.tiny_resnet"
        raise InfuserError(
            "the model is no function (input_shape, n_outputs) -> Module", got=repr(given), remedy=remedy
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = builder(input_shape, n_outputs)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InfuserError(
                f"the model for documents of shape {input_shape} and {n_outputs} outputs cannot be built",
                got=f"{type(error).__name__}: {error}",
                causes=["an option that the model cannot take", "documents of another shape than it is made for"],
            ) from error
    if not trainable(model):
        raise InfuserError("the model has no trainable parameters", got=type(model).__name__)
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a state_dict, with names and shapes checked together.

    Raises:
        InfuserError: names or shapes differ.
    """
    own = model.state_dict()
    wrong = sorted(own.keys() ^ weights.keys())
    wrong += [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if wrong:
        raise InfuserError(
            f"the weights do not fit the model: {len(wrong)} tensors are missing, too many or of another shape",
            got=listed(wrong),
            causes=["another builder, input shape or number of classes"],
            remedy="build the model as it was trained",
        )
    model.load_state_dict(dict(weights))


def save_checkpoint(checkpoint: Checkpoint, folder: str | os.PathLike[str], **manifest: Any) -> Path:
    """Write epoch-EEEE/ with weights.safetensors, optimizer.pt and manifest.json; it appears only when whole."""
    final = Path(folder) / f"epoch-{checkpoint.epoch:04d}"
    optimizer = io.BytesIO()
    torch.save(dict(checkpoint.optimizer), optimizer)
    # Safetensors refuses tensors that share memory (tied weights), hence the copies.
    weights = save({name: value.contiguous().clone() for name, value in checkpoint.weights.items()})
    with atomic_folder(final) as temporary:
        # Written from memory by Python, so that a full disk is an OSError: the libraries' own writers hide it.
        for name, raw in zip(_FILES, (weights, optimizer.getvalue()), strict=True):
            (temporary / name).write_bytes(raw)
        hashes = {name: hash_file(temporary / name) for name in _FILES}
        position = {"epoch": checkpoint.epoch, "step": checkpoint.step}
        write_json(temporary / "manifest.json", {**position, "sha256": hashes, **manifest})
    return final


def load_checkpoint(folder: str | os.PathLike[str], **expected: Any) -> Checkpoint:
    """Return the checkpoint that `save_checkpoint` wrote, with its hashes and `expected` manifest values checked.

    Raises:
        InfuserError: a file is missing, truncated or changed, or the manifest names another recipe or data set.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    for name, digest in manifest["sha256"].items():
        path = folder / name
        if not path.is_file() or hash_file(path) != digest:
            raise InfuserError(
                f"checkpoint file {name} is missing or damaged",
                got=str(path),
                causes=["it was truncated", "it was changed after it was written"],
                remedy="delete the checkpoint's folder and resume from the one before",
            )
    for key, value in expected.items():
        if manifest.get(key) != value:
            raise InfuserError(
                f"the checkpoint in {folder.name} belongs to another {key}",
                got=manifest.get(key),
                expected=value,
                remedy="use another folder, or start over",
            )
    try:
        weights = load_file(folder / "weights.safetensors")
        optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    # Beside its own errors, torch.load raises whatever bytes that were not written by it make it stumble over.
    except Exception as error:
        raise InfuserError(f"cannot read the checkpoint in {folder.name}", got=str(error)) from error
    if not isinstance(optimizer, dict):
        raise InfuserError(f"the optimiser state in {folder.name} is not one", got=type(optimizer).__name__)
    return Checkpoint(manifest["epoch"], manifest["step"], weights, optimizer)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / "manifest.json")
    whole = isinstance(manifest, dict) and all(type(manifest.get(key)) is int for key in ("epoch", "step"))
    if not whole or not isinstance(manifest.get("sha256"), dict) or manifest["sha256"].keys() != set(_FILES):
        raise InfuserError(
            f"the manifest in {folder.name} is not that of a checkpoint",
            got=str(folder / "manifest.json"),
            expected=f"epoch, step and the sha256 of {' and '.join(_FILES)}",
        )
    return cast("dict[str, Any]", manifest)


def save_run(run: Run, folder: str | os.PathLike[str]) -> None:
    """Write every checkpoint of a run; traces are kept by the studies that use them."""
    for checkpoint in run.checkpoints:
        save_checkpoint(checkpoint, folder, recipe=asdict(run.recipe), data=run.data_hash)


def load_run(
    builder: Builder,
    data: Dataset,
    recipe: Recipe,
    folder: str | os.PathLike[str],
    device: str = "cpu",
    *,
    mend: bool = False,
) -> Run | None:
    """Return the run whose checkpoints lie in `folder`, or None where there are none.

    Args:
        builder: of the model.
        data: that the run was trained on.
        recipe: of the run.
        folder: of the checkpoints.
        device: where models of the run are built.
        mend: leave out the first checkpoint that is damaged or missing and all after it, with a warning, since whoever
            can train can make them again.

    Raises:
        InfuserError: they belong to another recipe or data set, or are damaged and not to be mended.
    """
    parts = list(Path(folder).glob("epoch-*"))
    if mend:
        parts = _until_damaged(parts)
    if not parts:
        return None
    expected = {"recipe": asdict(recipe), "data": data.content_hash}
    # By number, since after epoch 9999 the names sort otherwise.
    checkpoints = tuple(sorted((load_checkpoint(part, **expected) for part in parts), key=lambda c: c.epoch))
    return Run.of(builder, data, recipe, checkpoints, device=device)


def _until_damaged(parts: Sequence[Path]) -> list[Path]:
    """Return the checkpoints of epochs 0, 1, ... up to the first that is missing or not as it was written."""
    by_epoch: dict[int, Path] = {}
    for part in parts:
        with suppress(InfuserError, OSError):
            manifest = _manifest(part)
            if all(hash_file(part / name) == digest for name, digest in manifest["sha256"].items()):
                by_epoch[manifest["epoch"]] = part
    whole = [by_epoch[epoch] for epoch in itertools.takewhile(by_epoch.__contains__, itertools.count())]
    if len(whole) < len(parts):
        lost = listed(sorted(part.name for part in parts if part not in whole))
        warnings.warn(
            f"checkpoints that are damaged, or come after one that is, are made again: {lost}",
            UserWarning,
            stacklevel=4,
        )
    return whole


def with_traces(run: Run, traces: Mapping[str, Any]) -> Run:
    """Return the run with traces added."""
    return replace(run, traces={**run.traces, **traces})
