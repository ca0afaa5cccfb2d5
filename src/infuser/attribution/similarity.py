"""Gradient similarity: the documents whose gradients look like the measurement's. No curvature, one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infuser.attribution.influence import probe_gradients
from infuser.attribution.scoring import inner_products, squared_norms
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.params import rows_of, trainable
from infuser.types import Measurement, Params, Scores


@dataclass(frozen=True)
class GradientSimilarity:
    """score_i = -cos(grad f, grad L_i), or -<grad f, grad L_i> with cosine=False.

    A step on document i moves the weights along -grad L_i, so a document whose gradient opposes grad f raises f: hence
    the sign. A document (or query) whose gradient is zero has cosine 0.

    Args:
        cosine: divide by both norms, so that documents with a large loss do not lead every list.
        checkpoint: index into run.checkpoints.

    Source: Charpiat et al., arXiv 2102.05262, section 2.
    """

    cosine: bool = True
    checkpoint: int = -1

    def score(self, run: Run, data: Dataset, probes: Measurement) -> Scores:
        """Return the scores of every query and document, shape (Q, N)."""
        model = run.model(self.checkpoint)
        rows, names = probe_gradients(model, trainable(model), probes)
        products = alignments(model, rows, data, cosine=self.cosine)
        unit = (
            "cosine" if self.cosine else f"change of f [{getattr(probes, 'unit', 'its own')}] per unit of learning rate"
        )
        method = f"gradient {'cosine' if self.cosine else 'dot product'} at checkpoint {self.checkpoint}"
        return Scores((-products).cpu().numpy(), data.ids, method, unit, names)


def alignments(model: nn.Module, rows: Params, data: Dataset, *, cosine: bool) -> Tensor:
    """Return <grad f_q, grad L_i>, or its cosine, shape (Q, N); 0 where a norm is 0."""
    params = trainable(model)
    if not cosine:
        return inner_products(model, params, data, rows)
    # Scaled before the products, so that one loop over the data serves queries of any size.
    size = torch.stack([rows_of(value).square().sum(1) for value in rows.values()]).sum(0).sqrt()
    unit = {name: value / _nonzero(size).view(-1, *[1] * (value.ndim - 1)) for name, value in rows.items()}
    lengths = squared_norms(model, params, data).sqrt()
    return inner_products(model, params, data, unit) / _nonzero(lengths)


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, torch.ones_like(values), values)
