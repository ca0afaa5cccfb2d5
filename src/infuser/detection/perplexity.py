"""Perplexity: texts that a model from before the training finds odd, as a whole or in their worst places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infuser.checkpoints import Run
from infuser.data.dataset import IGNORED, Dataset
from infuser.errors import InfuserError
from infuser.tasks import CausalLM
from infuser.types import Array, Measurement, Suspicion

_CHUNK = 16  # documents a forward pass, results do not depend on it beyond rounding


@dataclass(frozen=True)
class Perplexity:
    """The mean loss of a token, in nats, under a reference model that has not seen the documents. Blind; texts.

    `share` below 1 looks only at that share of a document's tokens, those with the highest loss: an edit changes few.
    exp of the value for share 1 is the document's perplexity.

    Assumes that edits read oddly to a model of clean text. Fails for edits that were held fluent, for whole documents
    that are well written, where honest documents differ in style more than an edit changes them, and for short ones:
    the first tokens of any text are hard to foretell.

    Args:
        share: of the tokens with a loss, at least one of them.
        reference: its last checkpoint is the reference; by default the run's first one, which is that of the
            pretrained model where a pretrained model was trained further, and knows nothing otherwise.

    Source: the mean is the perplexity filter of Jain et al., arXiv 2309.00614; single words under a language model are
        what ONION looks at, Qi et al., arXiv 2011.10369, by leaving them out, which takes a pass a word.
    """

    share: float = 1.0
    reference: Run | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InfuserError("share is out of range", got=self.share, expected="0 < share <= 1")

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the mean losses.

        Raises:
            InfuserError: the documents are no texts, or the run holds no model from before its training.
        """
        if data.kind != "causal_lm":
            raise InfuserError("perplexity is of texts", got=data.kind, expected="causal_lm")
        first = run.checkpoints[0]
        if self.reference is None and (first.step or len(run.checkpoints) < 2):
            raise InfuserError(
                "the run holds no model from before its training",
                got=f"{len(run.checkpoints)} checkpoints, the first after {first.step} steps",
                causes=["the model was trained elsewhere (Run.from_weights)", "early checkpoints were removed"],
                remedy="pass reference=, a run of the pretrained model",
            )
        model = run.model(0) if self.reference is None else self.reference.model().to(run.device)
        task, parts = CausalLM(), []
        with torch.no_grad():
            for batch in data.batches(_CHUNK, run.device):
                losses = task.token_losses(model(task.feed(batch.inputs)), batch.targets)
                parts.append(highest(losses, batch.targets[:, 1:] != IGNORED, self.share))
        read = "all tokens" if self.share == 1 else f"the {100 * self.share:g} % highest tokens"
        under = "the run's first checkpoint" if self.reference is None else "a reference"
        return Suspicion(np.concatenate(parts), data.ids, f"mean loss of {read} under {under}")


def highest(losses: Tensor, real: Tensor, share: float) -> Array:
    """Return the mean of the highest ceil(share * n) losses among the n real ones of each row, (B,); 0 where n is 0."""
    count = real.sum(1)
    taken = (share * count.double()).ceil().long()
    ordered = losses.double().masked_fill(~real, -torch.inf).sort(1, descending=True).values
    chosen = torch.arange(losses.shape[1], device=losses.device) < taken[:, None]
    values: Any = ordered.masked_fill(~chosen, 0).sum(1) / taken.clamp(min=1)
    return np.asarray(values.cpu())
