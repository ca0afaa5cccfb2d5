import numpy as np
import pytest
import torch
from torch.func import functional_call, jvp

from infuser.attribution.decompose import by_layer, by_token
from infuser.data.digits import digits
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.perturbation.token_effect import TokenEffect
from infuser.tasks import CausalLM
from tests.perturbation import small_text as small
from tests.perturbation.test_token_effect import exact


def test_token_scores_are_the_slopes_of_token_losses_and_sum_to_the_score() -> None:
    data, task, model = small.data(), CausalLM(), small.run().model()
    got = by_token(small.direction(), small.run(), data)
    batch = data.batch(np.arange(len(data)))

    def token_losses(p):
        return task.token_losses(functional_call(model, p, (task.feed(batch.inputs),)), batch.targets)

    slope = jvp(token_losses, (trainable(model),), (small.vector(),))[1]
    np.testing.assert_allclose(got[:, 1:], -slope / len(data), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got.sum(1), exact(data.inputs, data.targets), rtol=1e-4, atol=1e-5)
    assert not got[data.inputs < 0].any()
    assert (np.abs(got).max(1) > np.abs(got.sum(1)) / 40).all()


def test_layer_scores_sum_to_the_score_and_are_those_of_a_cut_direction() -> None:
    data, model = small.data(), small.run().model()
    got = by_layer(small.direction(), small.run(), data)
    np.testing.assert_allclose(got.values.sum(0), exact(data.inputs, data.targets), rtol=1e-4, atol=1e-5)
    task, params = CausalLM(), trainable(model)
    batch = data.batch(np.arange(len(data)))
    cut = {k: v if k.startswith("head.") else torch.zeros_like(v) for k, v in small.vector().items()}

    def losses(p):
        return task.loss(functional_call(model, p, (task.feed(batch.inputs),)), batch.targets)

    wanted = -jvp(losses, (params,), (cut,))[1] / len(data)
    np.testing.assert_allclose(got.values[got.queries.index("head")], wanted, rtol=1e-4, atol=1e-6)
    assert not np.allclose(got.values[0], wanted, rtol=0.1)


def test_images_have_no_tokens() -> None:
    with pytest.raises(InfuserError, match="only documents of tokens have scores per token"):
        by_token(small.direction(), small.run(), digits()[0])


def test_a_difference_that_no_step_makes_steady_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infuser.attribution.scoring.central_step", lambda *_: (0.1, 0.06))
    for made in (lambda: by_token(small.direction(), small.run(), small.data()), small_effect):
        with pytest.raises(InfuserError, match=r"not accurate enough.*6\.0%.*at most 5%"):
            made()


def small_effect() -> TokenEffect:
    return TokenEffect.of(small.direction(), small.run(), small.data())
