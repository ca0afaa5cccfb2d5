import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import infuser as inf
from infuser.attribution.f_trace import FTrace
from infuser.errors import InfuserError

DATA = inf.Dataset.from_arrays(
    np.random.default_rng(0).integers(0, 256, (24, 1, 3, 3)).astype(np.uint8), np.arange(24) % 3
)
STEPS, LR = 30, 0.3


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def fitted(watch: bool, finder: inf.FInfluence) -> tuple[nn.Module, inf.adapters.Watch | None, list[dict]]:
    net, states = model(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    seen = inf.adapters.Watch(net, DATA, [finder.observer(DATA)], STEPS) if watch else None
    rng = np.random.default_rng(2)
    torch.manual_seed(3)
    for _ in range(STEPS):
        ids = rng.choice(24, 8, replace=False)
        x, y = torch.tensor(DATA.inputs[ids]).float() / 255, torch.tensor(DATA.targets[ids])
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        states.append(copy.deepcopy(net.state_dict()))
        if seen is not None:
            seen(ids, lr=LR)
        optimizer.step()
    return net, seen, states


def test_weights_are_the_same_bit_for_bit_and_mu_follows_from_the_steps() -> None:
    finder = inf.FInfluence(every=1, partners=24)
    watched, watch, states = fitted(True, finder)
    plain, _, _ = fitted(False, finder)
    assert watch is not None
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    assert watched.training
    run = watch.run()
    mu = finder.score(run, DATA)
    # The oracle: autograd, document by document, at the stored weights of every step.
    net = model().eval()
    own, noise, outside = np.zeros(24), np.zeros(24), np.zeros(24)
    for state in states:
        net.load_state_dict(state)
        rows = []
        for x, y in zip(DATA.inputs, DATA.targets, strict=True):
            net.zero_grad()
            loss = nn.functional.cross_entropy(net(torch.tensor(x[None]).float() / 255), torch.tensor(y[None]))
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]).double())
        gram = LR * (torch.stack(rows) @ torch.stack(rows).T).numpy()
        own += np.diag(gram)
        outside += (gram.sum(1) - np.diag(gram)) / 23
        noise += gram.var(1) / 8
    wanted = (own - outside) / 24 / np.sqrt(noise)
    np.testing.assert_allclose(mu.values[0], wanted, rtol=1e-3)
    assert abs(np.corrcoef(mu.values[0], np.roll(wanted, 1))[0, 1]) < 0.9  # the negative: order matters
    trace = next(iter(run.traces.values()))
    assert isinstance(trace, FTrace)
    assert (trace.recorded, trace.steps, trace.batch_size) == (STEPS, STEPS, 8)
    x = torch.tensor(DATA.inputs).float() / 255
    torch.testing.assert_close(run.model()(x), watched.eval()(x))


def test_more_steps_than_announced_are_refused() -> None:
    watch = inf.adapters.Watch(model(), DATA, [], 1)
    watch(DATA.ids[:4], lr=0.1)
    with pytest.raises(InfuserError, match="beyond the announced steps"):
        watch(DATA.ids[:4], lr=0.1)
    with pytest.raises(InfuserError, match="steps is out of range"):
        inf.adapters.Watch(model(), DATA, [], 0)


def test_fewer_steps_than_announced_are_told() -> None:
    net, finder = model(), inf.FInfluence(every=1, partners=24)
    watch = inf.adapters.Watch(net, DATA, [finder.observer(DATA)], steps=22)
    for step in range(22):
        if step == 21:
            with pytest.warns(UserWarning, match="announced to take 22 steps and took 21"):
                watch.run()
        watch(DATA.ids[:8], lr=LR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.run()


def test_models_in_other_precisions_are_refused() -> None:
    finder = inf.FInfluence()
    with pytest.raises(InfuserError, match=r"observers compute in float32.*parameters of bfloat16"):
        inf.adapters.Watch(model().bfloat16(), DATA, [finder.observer(DATA)], STEPS)


def test_ids_that_are_not_there_are_refused() -> None:
    with pytest.raises(InfuserError, match="id"):
        inf.adapters.Watch(model(), DATA, [], 1)([99], lr=0.1)


@pytest.mark.parametrize(("ids", "lr"), [([], 0.1), ([0, 1], -0.1), ([0, 1], float("nan"))])
def test_a_step_that_would_spoil_mu_is_refused(ids: list[int], lr: float) -> None:
    with pytest.raises(InfuserError, match="out of range"):
        inf.adapters.Watch(model(), DATA, [], 1)(ids, lr=lr)
