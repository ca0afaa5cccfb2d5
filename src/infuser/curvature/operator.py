"""H in its eigenbasis: per layer an orthogonal matrix on each side and an eigenvalue for every entry between."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from infuser.checkpoints import Run
from infuser.curvature.find import find_layers
from infuser.curvature.layers import Layer
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.storage import atomic_path, hash_file, read_json, write_json
from infuser.types import Damping, Params


@dataclass(frozen=True)
class Origin:
    """What a curvature was made from.

    Attributes:
        method: ekfac or kfac.
        weights: SHA-256 of the checkpoint's weights.
        data: content hash of the whole data set that was passed.
        labels: sampled, exact or empirical.
        seed: of the labels and of the sample of documents.
        documents: how many were used.
        positions: at most so many of a convolution's positions per document in A; None for all.
    """

    method: str
    weights: str
    data: str
    labels: str
    seed: int
    documents: int
    positions: int | None = None

    def __str__(self) -> str:
        return f"{self.method} of {self.documents} documents, {self.labels} labels, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Block:
    """The curvature of one layer: left (x) right are its eigenvectors, per group.

    Attributes:
        layer: whose parameters these are.
        left: (K, O, O) eigenvectors in columns; None where the rows are their own eigenbasis.
        right: (K, I, I), or None likewise.
        eigenvalues: (K, O, I), not negative.
    """

    layer: Layer
    left: Tensor | None
    right: Tensor | None
    eigenvalues: Tensor

    def with_eigenvalues(self, eigenvalues: Tensor) -> Block:
        """Return the block with other eigenvalues, in the type and place of its own."""
        return replace(self, eigenvalues=eigenvalues.to(self.eigenvalues))

    def rotate(self, matrices: Tensor) -> Tensor:
        """Return left^T M right of (..., K, O, I)."""
        if self.right is not None:
            matrices = matrices @ self.right
        return matrices if self.left is None else self.left.mT @ matrices

    def rotate_back(self, matrices: Tensor) -> Tensor:
        """Return left M right^T of (..., K, O, I)."""
        if self.left is not None:
            matrices = self.left @ matrices
        return matrices if self.right is None else matrices @ self.right.mT

    def damped(self, damping: Damping) -> Tensor:
        """Return eigenvalues + damping, (K, O, I); relative damping is c times the mean eigenvalue of this layer.

        Raises:
            InfuserError: a sum is not positive.
        """
        added = damping.value * (self.eigenvalues.mean() if damping.kind == "relative" else 1.0)
        total = self.eigenvalues + added
        require_regular(f"layer {self.layer.names[0]}", total, damping)
        return total

    def __str__(self) -> str:
        low, mean, high = (float(f(self.eigenvalues)) for f in (torch.min, torch.mean, torch.max))
        return f"{self.layer}, eigenvalues {low:.3g} to {high:.3g}, mean {mean:.3g}"


@dataclass(frozen=True, eq=False)
class KroneckerEigen:
    """A block-diagonal curvature, one block per layer, in its eigenbasis.

    Parameters that no layer covers count as constant: their part of every result is zero.
    """

    blocks: tuple[Block, ...]
    origin: Origin = field(repr=False)

    def matvec(self, vectors: Params) -> Params:
        """Return H v for tensors (Q, *shape)."""
        return self._apply(vectors, [block.eigenvalues for block in self.blocks])

    def solve(self, vectors: Params, damping: Damping) -> Params:
        """Return (H + damping)^-1 v of (Q, *shape): Q_S ((Q_S^T V Q_A) / (lambda + damping)) Q_A^T per layer."""
        return self._apply(vectors, [1 / block.damped(damping) for block in self.blocks])

    def sweep(self, vectors: Params, dampings: Sequence[Damping]) -> Iterator[Params]:
        """Yield solve(vectors, damping) for each damping, rotating into the eigenbasis once."""
        rotated = [block.rotate(block.layer.to_matrix(vectors)) for block in self.blocks]
        for damping in dampings:
            yield self._back(vectors, rotated, [1 / block.damped(damping) for block in self.blocks])

    def _apply(self, vectors: Params, factors: Sequence[Tensor]) -> Params:
        rotated = [block.rotate(block.layer.to_matrix(vectors)) for block in self.blocks]
        return self._back(vectors, rotated, factors)

    def _back(self, vectors: Params, rotated: Sequence[Tensor], factors: Sequence[Tensor]) -> Params:
        covered: Params = {}
        for block, matrix, factor in zip(self.blocks, rotated, factors, strict=True):
            covered.update(block.layer.from_matrix(block.rotate_back(matrix * factor)))
        return {name: covered[name] if name in covered else torch.zeros_like(v) for name, v in vectors.items()}

    def describe(self) -> str:
        """Return what it was made from, and one line per layer."""
        return "\n".join([str(self.origin), *map(str, self.blocks)])

    def __str__(self) -> str:
        return str(self.origin)

    def __repr__(self) -> str:
        return f"KroneckerEigen({self.origin}, {len(self.blocks)} layers)"


def require_regular(what: str, damped: Tensor, damping: Damping, precision: torch.dtype | None = None) -> None:
    """Refuse to divide by damped eigenvalues that are zero, or zero but for rounding where nothing was added.

    Args:
        what: they are eigenvalues of.
        damped: eigenvalues with the damping added.
        damping: that was added.
        precision: of what the matrix was summed from; None for that of `damped`.

    Raises:
        InfuserError: one is.
    """
    floor = damped.max() * torch.finfo(precision or damped.dtype).eps if damping.value == 0 else 0.0
    if not bool((damped > floor).all()):
        raise InfuserError(
            f"the curvature of {what} is singular at damping {damping}",
            causes=[
                "damping 0 with fewer documents than parameters",
                "damping 0 with parameters that together change nothing, as a common offset of all logits",
                "there is no gradient at all",
            ],
            remedy="use a positive damping, absolute where there is no gradient",
        )


def eigenbasis(name: str, factor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return eigenvalues (K, D), not negative, and eigenvectors in columns, in float64, of a symmetric (K, D, D).

    A diagonal (K, D) is its own eigenvalues, without eigenvectors.

    Raises:
        InfuserError: an entry is not finite.
    """
    if not bool(torch.isfinite(factor).all()):
        raise InfuserError(
            f"the curvature factor of layer {name} is not finite",
            got=f"{int((~torch.isfinite(factor)).sum())} of {factor.numel()} entries",
            causes=["the model's weights diverged", "activations overflow in this precision", "an input is extreme"],
            remedy="look at the loss of this checkpoint, or fit in float32",
        )
    if factor.ndim == 2:
        return factor.double(), None
    symmetric = (factor.double() + factor.double().mT) / 2
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        raise InfuserError(
            f"the eigenvectors of layer {name} did not converge",
            got=str(error),
            causes=["entries of the factor differ by many orders of magnitude"],
        ) from error
    return values.clamp(min=0), vectors


def save_curvature(curvature: KroneckerEigen, folder: str | os.PathLike[str]) -> None:
    """Write factors.safetensors, then manifest.json with its hash, so that a part is never taken for a whole."""
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    for block in curvature.blocks:
        for part in ("left", "right", "eigenvalues"):
            value = getattr(block, part)
            if value is not None:
                tensors[f"{part}|{block.layer.names[0]}"] = value.contiguous().clone()
    with atomic_path(folder / "factors.safetensors") as temporary:
        # Written from memory by Python, so that a full disk is an OSError: the library's own writer hides it.
        temporary.write_bytes(save(tensors))
    layers = [list(block.layer.names) for block in curvature.blocks]
    digest = hash_file(folder / "factors.safetensors")
    write_json(folder / "manifest.json", {**asdict(curvature.origin), "layers": layers, "sha256": digest, "format": 1})


def load_curvature(folder: str | os.PathLike[str], run: Run, data: Dataset, **expected: Any) -> KroneckerEigen:
    """Return the curvature that `save_curvature` wrote, for the run and the data that it was made from.

    Args:
        folder: what was written to.
        run: its last checkpoint's weights must be those of the manifest.
        data: its content must be that of the manifest.
        expected: further manifest entries that must be equal, such as seed=0, labels="sampled" or documents=600.

    Raises:
        InfuserError: a file is missing or damaged, or was made from something else.
    """
    folder = Path(folder)
    manifest = read_json(folder / "manifest.json")
    expected = {"weights": run.checkpoints[-1].content_hash, "data": data.content_hash, **expected}
    for key, value in expected.items():
        if manifest.get(key) != value:
            raise InfuserError(
                f"the curvature in {folder.name} was made from other {key}",
                got=manifest.get(key),
                expected=value,
                causes=["the model was trained further", "the data were edited", "other settings"],
                remedy="fit it again, or load it for what it was made from",
            )
    path = folder / "factors.safetensors"
    if not path.exists() or hash_file(path) != manifest.get("sha256"):
        raise InfuserError("the curvature's factors are missing or damaged", got=str(path), remedy="fit it again")
    try:
        tensors = load_file(path, device=run.device)
    except (SafetensorError, OSError) as error:
        raise InfuserError(f"cannot read {path.name}", got=str(error), remedy="fit it again") from error
    names = [name for layer in manifest["layers"] for name in layer]
    layers = find_layers(run.model(), names)
    if [list(layer.names) for layer in layers] != manifest["layers"]:
        got = listed([layer.names[0] for layer in layers])
        raise InfuserError("the model's layers are not those of the curvature", got=got, expected=manifest["layers"])
    origin = Origin(**{key: manifest[key] for key in Origin.__dataclass_fields__})
    blocks = []
    for layer in layers:
        left, right, values = (tensors.get(f"{part}|{layer.names[0]}") for part in ("left", "right", "eigenvalues"))
        assert values is not None, "the hash of the file was checked"
        blocks.append(Block(layer, left, right, values))
    return KroneckerEigen(tuple(blocks), origin)
