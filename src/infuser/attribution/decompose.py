"""Where a score comes from: the tokens of a document, or the layers of the model. The parts sum to the score."""

from __future__ import annotations

import numpy as np
import torch
from torch.func import functional_call

from infuser import params as algebra
from infuser.attribution.scoring import Via, inner_products, steady_step
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.tasks import CausalLM
from infuser.types import Array, Direction, Params, Scores

_CHUNK = 16
_TOLERANCE = 0.05  # the largest relative error of the central difference


def by_token(direction: Direction, run: Run, data: Dataset) -> Array:
    """Return -(1/N) <v, grad l_t> of every token's own loss l_t, (N, T); 0 where a token carries none.

    The entry at t belongs to predicting token t from those before it. By central difference of the token losses, for
    the mean of the direction's queries: the sum over t is the document's score.

    Raises:
        InfuserError: the data are not tokens, or no step gives scores within 5 %.
    """
    if data.kind != "causal_lm":
        raise InfuserError("only documents of tokens have scores per token", got=data.kind, expected="causal_lm")
    model, task = run.model(), CausalLM()
    params = trainable(model)
    mean = {name: value.detach().to(run.device) for name, value in direction.mean().params.items()}
    step = steady_step(model, params, data, mean, _TOLERANCE)
    v = {name: value[0] for name, value in mean.items()}
    h = step / float(algebra.norm(v))
    ends = (algebra.add(params, v, h), algebra.add(params, v, -h))
    found, n = np.zeros((len(data), data.input_shape[0])), run.n_documents or len(data)
    for start in range(0, len(data), _CHUNK):
        batch = data.batch(np.arange(start, min(start + _CHUNK, len(data))), run.device)
        with torch.no_grad():
            above, below = (
                task.token_losses(functional_call(model, p, (task.feed(batch.inputs),)), batch.targets) for p in ends
            )
        found[start : start + len(batch), 1:] = ((above - below).double() / (-2 * h * n)).cpu().numpy()
    return found


def by_layer(direction: Direction, run: Run, data: Dataset, *, via: Via = "auto") -> Scores:
    """Return one row of scores per layer, a layer being the module that owns the parameters: (layers, N).

    v is cut to one layer at a time, which the inner products split over: the sum over rows is the score for the mean of
    the direction's queries.
    """
    model = run.model()
    v = {name: value.detach().to(run.device) for name, value in direction.mean().params.items()}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in v))
    rows: Params = {}
    for name, value in v.items():
        rows[name] = value.new_zeros((len(layers), *value.shape[1:]))
        rows[name][layers.index(name.rpartition(".")[0])] = value[0]
    products = inner_products(model, trainable(model), data, rows, via=via).double().cpu().numpy()
    names = tuple(layer or "(root)" for layer in layers)
    return Scores(
        products / -(run.n_documents or len(data)),
        data.ids,
        f"{direction.made_by}, by layer",
        "f per document twice",
        names,
    )
