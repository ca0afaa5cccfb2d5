"""The two passes over documents that the factored curvatures are made of. Both return sums, so that shards add up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from infuser.checkpoints import Run
from infuser.curvature.collect import Captured, captures
from infuser.curvature.find import find_layers
from infuser.curvature.forms import ConvForm, EmbeddingForm, LinearForm, Side
from infuser.curvature.layers import Input, Layer, MatrixLayer, matrix_form, outer
from infuser.curvature.operator import Block, eigenbasis
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.progress import track
from infuser.tasks import Labels, Task, task_of
from infuser.types import Array, Batch, Params

# Scores of a fit on so many keep a Spearman correlation of .99 and more with those of the whole fit: measured in
# benchmarks/fit_agreement.py, published in docs/performance.md.
DOCUMENTS, POSITIONS = 2000, 16
WIDE = 4096  # a side wider than this keeps its own axes as eigenbasis
_ROTATED = 2**22  # numbers of per-document gradients in the eigenbasis held at a time


@dataclass(frozen=True)
class Pass:
    """How documents are read and labelled; the same for both passes, so that both see the same labels.

    Attributes:
        labels: sampled from the model, exact (their expectation) or empirical (the true ones).
        seed: of the labels, with the document's id: a draw depends on neither batch size, order nor shard.
        batch_size: documents a forward pass; changes no result beyond rounding.
        positions: at most so many of a convolution's positions per document in A, chosen anew for each; None for all.
    """

    labels: Labels = "sampled"
    seed: int = 0
    batch_size: int = 64
    positions: int | None = POSITIONS

    def cotangents(self, task: Task, batch: Batch) -> Callable[[Tensor], Iterable[Tensor]]:
        """Return outputs -> output gradients, each document's drawn from its own generator."""
        weights = None if bool((batch.weights == 1).all()) else batch.weights.double().sqrt()

        def weighted(c: Tensor) -> Tensor:
            return c if weights is None else c * weights.view(-1, *[1] * (c.ndim - 1)).to(c)

        def of(outputs: Tensor) -> Iterator[Tensor]:
            if self.labels != "sampled":
                yield from map(weighted, task.cotangents(outputs, batch.targets, self.labels, None))
                return
            drawn = []
            generator = torch.Generator()
            for i, key in enumerate(batch.ids.tolist()):
                generator.manual_seed(_seed(self.seed, key))
                one = slice(i, i + 1)
                drawn.append(next(iter(task.cotangents(outputs[one], batch.targets[one], "sampled", generator))))
            yield weighted(torch.cat(drawn))

        return of


@dataclass
class Covariances:
    """Sums over documents, by call ("weight name|number of the call").

    Attributes:
        left: sum of left left^T, (K, O, O), or its diagonal (K, O) where the side keeps its own axes.
        right: sum of right right^T likewise, (K, I, I) or (K, I).
        rows: how many rows (tokens, positions) went into `right`, weighted as the documents are.
        same: call -> the call whose input, and so whose right side, is the same tensor.
        documents: how many were read.
    """

    left: dict[str, Tensor] = field(default_factory=dict)
    right: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    documents: int = 0


@dataclass
class Squares:
    """Sums over documents of squared gradients in the eigenbasis, (K, O, I) by first parameter name."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    documents: int = 0

    def mean(self, layer: Layer) -> Tensor:
        """Return a layer's eigenvalues, (K, O, I).

        Raises:
            InfuserError: one is not finite.
        """
        values = self.sums[layer.names[0]] / self.documents
        if not bool(values.isfinite().all()):
            raise InfuserError(
                f"the eigenvalues of layer {layer.names[0]} are not finite",
                causes=["the model's weights diverged", "squared gradients overflow in this precision"],
                remedy="look at the loss of this checkpoint, or fit in float32",
            )
        return values


def covariances(run: Run, data: Dataset, how: Pass, positions: Array) -> Covariances:
    """Return the first pass over the documents at `positions`."""
    model, task, params, layers = _prepared(run, data)
    sums = Covariances()
    for batch in _batches(run, data, how, positions):
        of = how.cotangents(task, batch)
        for i, captured in enumerate(captures(model, params, task, batch, layers, of)):
            _add_covariances(sums, layers, captured, batch, how, with_inputs=i == 0)
        sums.documents += len(batch)
    return sums


def squares(run: Run, data: Dataset, how: Pass, blocks: Sequence[Block], positions: Array) -> Squares:
    """Return the second pass: sum_n (left^T G_n right)^2, G_n summed over positions and calls before it is squared."""
    model, task, params, _ = _prepared(run, data)
    layers = [block.layer for block in blocks]
    sums = Squares({block.layer.names[0]: torch.zeros(block.layer.shape, dtype=torch.float64) for block in blocks})
    for batch in _batches(run, data, how, positions):
        for captured in captures(model, params, task, batch, layers, how.cotangents(task, batch)):
            for block in blocks:
                sums.sums[block.layer.names[0]] += _sum_of_squares(block, captured).double().cpu()
        sums.documents += len(batch)
    return sums


def reduce_covariances(parts: Iterable[Covariances]) -> Covariances:
    """Return the sums over shards, as they arrive in any number."""
    total = Covariances()
    for part in parts:
        total.same = total.same or dict(part.same)
        if part.same != total.same:
            raise InfuserError("shards disagree about which layers share an input", got=part.same, expected=total.same)
        for name in ("left", "right"):
            held: dict[str, Tensor] = getattr(total, name)
            for key, value in getattr(part, name).items():
                held[key] = held[key] + value if key in held else value
        for key, rows in part.rows.items():
            total.rows[key] = total.rows.get(key, 0.0) + rows
        total.documents += part.documents
    return total


def reduce_squares(parts: Iterable[Squares]) -> Squares:
    """Return the sums over shards."""
    total = Squares()
    for part in parts:
        for name, value in part.sums.items():
            total.sums[name] = total.sums[name] + value if name in total.sums else value
        total.documents += part.documents
    return total


def sides(layer: Layer, sums: Covariances) -> tuple[Tensor, Tensor]:
    """Return mean left (K, O, O) and mean right (K, I, I), diagonals (K, O), (K, I) where a side keeps its own axes.

    left (x) right / trace is the Fisher with independent sides. Calls of a tied weight are combined by partial traces,
    so that a call counts by how much it adds to the Fisher, whichever way its two sides are scaled.
    """
    keys = [key for key in sums.left if key.rpartition("|")[0] == layer.names[0]]
    lefts = [sums.left[key] / sums.documents for key in keys]
    rights = [sums.right[sums.same[key]] / max(sums.rows[sums.same[key]], 1) for key in keys]
    if len(keys) == 1:
        return lefts[0], rights[0]
    total = torch.stack([_trace(x) * _trace(y) for x, y in zip(lefts, rights, strict=True)]).sum(0)
    left = torch.stack([_scaled(x, _trace(y)) for x, y in zip(lefts, rights, strict=True)]).sum(0)
    right = torch.stack([_scaled(y, _trace(x)) for x, y in zip(lefts, rights, strict=True)]).sum(0)
    return _scaled(left, 1 / total.clamp(min=torch.finfo(total.dtype).tiny)), right


def kronecker_blocks(layers: Sequence[Layer], sums: Covariances, params: Params) -> list[Block]:
    """Return blocks with eigenvectors of both sides and K-FAC's eigenvalues, in the type and place of `params`.

    The eigenvalues of diagonal layers are zero. A right side that layers share is decomposed once.
    """
    known: dict[str, tuple[Tensor, Tensor | None]] = {}
    blocks = []
    for layer in layers:
        name, like = layer.names[0], params[layer.names[0]]
        if not isinstance(layer, MatrixLayer):
            blocks.append(Block(layer, None, None, like.new_zeros(layer.shape)))
            continue
        left, right = sides(layer, sums)
        first = (
            sums.same[f"{name}|0"] if len([key for key in sums.left if key.rpartition("|")[0] == name]) == 1 else name
        )
        if first not in known:
            known[first] = _decomposed(name, right, like)
        (values, vectors), (left_values, left_vectors) = known[first], _decomposed(name, left, like)
        blocks.append(Block(layer, left_vectors, vectors, (left_values.unsqueeze(-1) * values.unsqueeze(-2)).to(like)))
    return blocks


def _decomposed(name: str, side: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return eigenvalues (K, D) in float64 and eigenvectors, None for a side that keeps its own axes."""
    values, vectors = eigenbasis(name, side)
    return values, None if vectors is None else vectors.to(like).contiguous()


def _trace(side: Tensor) -> Tensor:
    return side.sum(-1) if side.ndim == 2 else side.diagonal(dim1=-2, dim2=-1).sum(-1)


def _scaled(side: Tensor, factor: Tensor) -> Tensor:
    return side * factor.view(-1, *[1] * (side.ndim - 1))


def _prepared(run: Run, data: Dataset) -> tuple[nn.Module, Task, Params, tuple[Layer, ...]]:
    model = run.model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fit has said which parameters are not covered
        layers = find_layers(model)
    return model, task_of(data), trainable(model), layers


def _batches(run: Run, data: Dataset, how: Pass, positions: Array) -> Iterator[Batch]:
    cuts = [positions[i : i + how.batch_size] for i in range(0, len(positions), how.batch_size)]
    for cut in track(cuts, "curvature"):
        yield data.batch(cut, run.device)


def _add_covariances(
    sums: Covariances, layers: Sequence[Layer], captured: Captured, batch: Batch, how: Pass, *, with_inputs: bool
) -> None:
    """Add one batch in place; the right sides do not depend on the labels, except those of embeddings."""
    seen: dict[object, str] = {}
    for layer in layers:
        if not isinstance(layer, MatrixLayer):
            continue
        for i, (call, grad) in enumerate(zip(*captured[layer], strict=True)):
            key, form = f"{layer.names[0]}|{i}", call.form
            from_inputs = not isinstance(form, EmbeddingForm)
            geometry = replace(form, module="") if isinstance(form, LinearForm | ConvForm) else None
            identity = (call.x.data_ptr(), call.x.shape, call.x.stride(), geometry)
            first = seen.setdefault(identity, key) if from_inputs else key
            sums.same.setdefault(key, first)
            if with_inputs or from_inputs:
                _accumulate(sums.left, key, _left(layer, call, grad, captured.mask, batch))
            if sums.same[key] == key and (with_inputs or not from_inputs):
                value, rows = _right(layer, call, grad, captured.mask, batch, how)
                _accumulate(sums.right, key, value)
                sums.rows[key] = sums.rows.get(key, 0.0) + (rows if with_inputs else 0.0)


def _accumulate(held: dict[str, Tensor], key: str, value: Tensor) -> None:
    added = value.double().cpu()
    if key in held:
        held[key] += added
    else:
        held[key] = added


def _left(layer: MatrixLayer, call: Input, grad: Tensor, mask: Tensor | None, batch: Batch) -> Tensor:
    """Return the sum of left left^T; of one-hot rows that is the diagonal of their counts at real positions."""
    k, o, _ = layer.shape
    wide = o > WIDE
    if isinstance(call.form, EmbeddingForm):
        weights = batch.weights.double()[:, None].expand(call.x.shape)
        if mask is not None and mask.shape == call.x.shape:
            weights = weights * mask
        counts = torch.bincount(call.x.flatten(), weights.flatten(), minlength=o).to(grad.dtype)[None]
        mixed = not all(isinstance(form, EmbeddingForm) for form in layer.forms)
        return torch.diag_embed(counts) if mixed and not wide else counts
    if isinstance(call.form, ConvForm):
        return _gram(grad.reshape(len(grad), k, o, -1).mT, wide)
    return _gram(grad.unsqueeze(1), wide)


def _right(
    layer: MatrixLayer, call: Input, grad: Tensor, mask: Tensor | None, batch: Batch, how: Pass
) -> tuple[Tensor, float]:
    """Return the sum of right right^T over real positions, and over how many rows it runs."""
    form = matrix_form(call.form)
    wide = layer.shape[2] > WIDE
    t = form.positions(call.x)
    # Output gradients, which are the right side of an embedding, carry the root of the weights already.
    weights = batch.weights.to(grad)
    own = torch.ones_like(weights) if isinstance(form, EmbeddingForm) else weights.sqrt()
    real = mask if mask is not None and mask.shape[1:] == (t,) else None
    plain = real is None and bool((weights == 1).all())
    chosen = None
    if isinstance(form, ConvForm) and how.positions is not None and how.positions < t:
        chosen = _chosen(t, how.positions, how.seed, batch.ids)
    total: Tensor | None = None
    step = max(1, 2**21 // max(1, (t if chosen is None else chosen.shape[1]) * layer.shape[0] * layer.shape[2]))
    for start in range(0, len(grad), step):
        cut = slice(start, start + step)
        if isinstance(form, ConvForm) and chosen is None and plain and not wide:
            part = form.gram(call.x[cut])
        else:
            if isinstance(form, ConvForm) and chosen is not None:
                rows = form.sampled_right(call.x[cut], chosen[cut])
            else:
                rows = form.pair(call.x[cut], grad[cut])[1]
            if not plain:
                factor = own[cut, None] if real is None else own[cut, None] * real[cut]
                rows = rows * factor[:, None, :, None]
            part = _gram(rows, wide)
        total = part if total is None else total.add_(part)
    assert total is not None, "a batch holds documents"
    each = torch.full_like(weights, t if chosen is None else chosen.shape[1]) if real is None else real.sum(1)
    return total, float((each * weights).double().sum())


def _gram(rows: Tensor, diagonal: bool) -> Tensor:
    """Return sum over B and T of x x^T for rows (B, K, T, D): (K, D, D), or its diagonal (K, D)."""
    if diagonal:
        return rows.square().sum((0, 2))
    flat = rows.movedim(1, 0).flatten(1, 2)
    return flat.mT @ flat


def _chosen(t: int, count: int, seed: int, ids: Tensor) -> Tensor:
    """Return (B, count) positions out of t, a stretch of one permutation that starts elsewhere for every document."""
    permutation = torch.from_numpy(np.random.default_rng([seed, t]).permutation(t))
    starts = torch.tensor([_seed(seed + 1, key) % t for key in ids.tolist()])
    return permutation[(starts[:, None] + torch.arange(count)) % t].to(ids.device)


def _seed(seed: int, key: int) -> int:
    """Return a 63-bit seed for a document."""
    return int(np.random.SeedSequence([seed, key % 2**64]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sum_of_squares(block: Block, captured: Captured) -> Tensor:
    """Return the sum over documents of (left^T G_n right)^2, (K, O, I), by the order of products that costs least."""
    layer = block.layer
    a, g = captured[layer]
    if not isinstance(layer, MatrixLayer):
        return layer.matrices(a, g).square().sum(0)
    k, o, i = layer.shape
    t = sum(matrix_form(call.form).positions(call.x) for call in a)
    looked_up = any(isinstance(call.form, EmbeddingForm) for call in a)
    if t == 1 and not looked_up:  # rank one: the square of a product is the product of squares
        left, right = _rotated_rows(block, a[0], g[0])
        assert isinstance(left, Tensor), "an embedding was excluded"
        return left[:, :, 0].square().movedim(0, -1) @ right[:, :, 0].square().movedim(0, 1)
    rows_first = t * (i * i + o * o) < o * i * (o + i) and not (looked_up and block.left is not None)
    total = torch.zeros(layer.shape, dtype=g[0].dtype, device=g[0].device)
    step = max(1, _ROTATED // (k * max(o * i, t * i)))
    for start in range(0, len(g[0]), step):
        cut = slice(start, start + step)
        part = [(Input(call.form, call.x[cut]), grad[cut]) for call, grad in zip(a, g, strict=True)]
        if rows_first:
            out = g[0].new_empty(len(part[0][1]), *layer.shape)
            formed = [outer(*_rotated_rows(block, *one), out if j == 0 else out.clone()) for j, one in enumerate(part)]
            rotated = formed[0] if len(formed) == 1 else torch.stack(formed).sum(0)
        else:
            rotated = block.rotate(layer.matrices(tuple(c for c, _ in part), tuple(grad for _, grad in part)))
        total += rotated.square().sum(0)
    return total


def _rotated_rows(block: Block, call: Input, grad: Tensor) -> tuple[Side, Tensor]:
    """Return left rows times block.left, and right rows times block.right."""
    left, right = matrix_form(call.form).pair(call.x, grad)
    if block.right is not None:
        right = right @ block.right
    if block.left is not None:
        assert isinstance(left, Tensor), "one-hot rows are rotated after the gradient is formed"
        left = left @ block.left
    return left, right
