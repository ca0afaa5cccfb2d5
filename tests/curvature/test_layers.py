"""Per-document gradients and their products against one backward pass per document."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infuser.curvature import collect, find_layers, layers, verify
from infuser.curvature import forms as forms_module
from infuser.curvature import ghost as ghost_module
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.tasks import task_of
from tests import oracles
from tests.curvature.small import ALL, Twice, case, dataset, image_net, run_of

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def captured(name, n=6):
    run, data = case(name, n)
    model = run.model()
    found = find_layers(model)
    return model, data, found, collect(model, trainable(model), task_of(data), data.batch(range(len(data))), found)


@pytest.mark.parametrize("name", ALL)
def test_gradients_products_and_norms_are_those_of_autograd(name):
    model, data, found, seen = captured(name)
    true = oracles.gradients(model, data)
    assert {n for layer in found for n in layer.names} == set(true)
    generator = torch.Generator().manual_seed(0)
    for layer in found:
        a, g = seen[layer]
        mine = layer.gradients(a, g)
        rows = oracles.rows_of({n: true[n] for n in layer.names})
        for n in layer.names:
            torch.testing.assert_close(mine[n], true[n], **CLOSE)
        v = {n: torch.randn(7, *true[n].shape[1:], generator=generator, dtype=torch.float64) for n in layer.names}
        for queries in (1, 7):
            some = {n: value[:queries] for n, value in v.items()}
            expected = oracles.rows_of(some) @ rows.T
            torch.testing.assert_close(layer.contract(a, g, some), expected, **CLOSE)
            torch.testing.assert_close(layer.contract(a, g, layer.to_matrix(some)), expected, **CLOSE)
        torch.testing.assert_close(layer.self_ghost(a, g), rows.square().sum(1), **CLOSE)
        torch.testing.assert_close(layer.ghost(a, g, a, g), rows @ rows.T, **CLOSE)
        for n, value in layer.from_matrix(layer.to_matrix(v)).items():
            assert torch.equal(value, v[n])


@pytest.mark.parametrize("name", ["conv2d grouped", "tokens", "called twice, tied", "bag", "gpt, tied", "mlp"])
def test_both_ways_to_every_product_agree(name, monkeypatch):
    model, data, found, seen = captured(name)
    true = oracles.gradients(model, data)
    for layer in found:
        if layer.diagonal:
            continue
        a, g = seen[layer]
        rows = oracles.rows_of({n: true[n] for n in layer.names})
        v = {n: torch.randn(3, *true[n].shape[1:], dtype=torch.float64) for n in layer.names}
        for unformed in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(layers.MatrixLayer, "_cheaper_unformed", lambda *_, answer=unformed: answer)
                torch.testing.assert_close(layer.contract(a, g, v), oracles.rows_of(v) @ rows.T, **CLOSE)
        pairs = layers._pairs(a, g)
        torch.testing.assert_close(ghost_module.self_products(pairs), rows.square().sum(1), **CLOSE)
        torch.testing.assert_close(ghost_module.cross_products(pairs, pairs), rows @ rows.T, **CLOSE)
        formed = layer.matrices(a, g).flatten(1)
        torch.testing.assert_close(formed @ formed.T, rows @ rows.T, **CLOSE)


@pytest.mark.parametrize("name", ["conv2d grouped", "gpt, tied", "bag"])
def test_chunks_change_nothing(name, monkeypatch):
    _, _, found, seen = captured(name)
    expected = [(layer.matrices(*seen[layer]), layer.self_ghost(*seen[layer])) for layer in found]
    monkeypatch.setattr(layers, "_PATCHES", 1)
    monkeypatch.setattr(layers, "_GRADIENTS", 1)
    monkeypatch.setattr(ghost_module, "_GRAM", 1)
    for layer, (matrices, norms) in zip(found, expected, strict=True):
        a, g = seen[layer]
        torch.testing.assert_close(layer.matrices(a, g), matrices, **CLOSE)
        torch.testing.assert_close(layer.self_ghost(a, g), norms, **CLOSE)
        torch.testing.assert_close(layer.ghost(a, g, a, g).diagonal(), norms, **CLOSE)


@pytest.mark.parametrize("kernel", [2, 3])
def test_wrong_padding_would_be_noticed(kernel, monkeypatch):
    """The negative of the comparison above: symmetric padding where torch pads the end differs for an even kernel."""
    data = dataset((2, 5, 5))
    run = run_of(lambda: image_net(nn.Conv2d(2, 3, kernel, padding="same")), data)
    model = run.model()
    original = forms_module.ConvForm.of.__func__

    def symmetric(cls, name, conv, ones):
        form = original(cls, name, conv, ones)
        object.__setattr__(form, "padding", tuple(reversed(form.padding)))
        return form

    monkeypatch.setattr(forms_module.ConvForm, "of", classmethod(symmetric))
    found = find_layers(model)
    if kernel == 3:
        verify(model, trainable(model), task_of(data), data.batch(range(3)), found)
    else:
        with pytest.raises(InfuserError, match=r"differ from autograd's.*0\.weight"):
            verify(model, trainable(model), task_of(data), data.batch(range(3)), found)


CONVOLUTIONS = {
    "2d": (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 7, 9)),
    "grouped, strided across, dilated": (
        nn.Conv2d(4, 6, 3, padding=1, stride=(1, 2), dilation=(2, 1), groups=2),
        (5, 4, 9, 9),
    ),
    "strided down": (nn.Conv2d(4, 6, 3, padding=1, stride=2), (5, 4, 9, 9)),
    "reflected": (nn.Conv2d(4, 6, (3, 2), padding=(0, 1), padding_mode="reflect"), (5, 4, 7, 9)),
    "1d": (nn.Conv1d(4, 6, 5, padding="same"), (3, 4, 11)),
    "3d": (nn.Conv3d(2, 4, 3, padding=1, groups=2), (3, 2, 5, 6, 7)),
    "1 x 1": (nn.Conv2d(4, 6, 1), (5, 4, 7, 9)),
    "hardly larger than its kernel": (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 2, 3)),
    "smaller than its kernel": (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 1, 2)),
}


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_gram_matrix_of_patches_needs_no_patches(name, ones):
    conv, shape = CONVOLUTIONS[name]
    form = forms_module.ConvForm.of(name, conv, ones)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = form.right(x).movedim(1, 0).flatten(1, 2)
    torch.testing.assert_close(form.gram(x), rows.mT @ rows, rtol=1e-12, atol=1e-12)


def test_a_gram_matrix_that_forgets_an_edge_would_be_noticed():
    conv, shape = CONVOLUTIONS["2d"]
    form = forms_module.ConvForm.of("2d", conv, ones=False)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = form.right(x).movedim(1, 0).flatten(1, 2)
    without = x.clone()
    without[:, :, -1] = 0  # the last row, which the upper two rows of the kernel see
    assert (form.gram(without) - rows.mT @ rows).norm() > 0.05 * (rows.mT @ rows).norm()


def test_what_is_not_covered_is_named():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(2))

    with pytest.warns(UserWarning, match="1 trainable parameters are not covered and count as constant: scale"):
        found = find_layers(Scaled())
    assert [layer.names for layer in found] == [("linear.weight", "linear.bias")]


def test_attention_that_hides_its_weights_is_not_covered():
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})
    with pytest.warns(UserWarning, match=r"mha\.in_proj_weight, .*mha\.out_proj\.weight"):
        assert [layer.names[0] for layer in find_layers(model)] == ["head.weight"]


def test_all_unsupported_layers_are_listed_at_once():
    model = nn.Sequential(nn.ConvTranspose2d(1, 1, 1), nn.PReLU(), nn.Bilinear(1, 1, 1))
    with pytest.raises(InfuserError, match=r"0\.weight.*1\.weight.*2\.weight.*Bilinear, ConvTranspose2d, PReLU"):
        find_layers(model)


def test_unknown_names_are_errors():
    with pytest.raises(InfuserError, match=r"not trainable parameters of the model.*wieght"):
        find_layers(nn.Linear(2, 2), names=["wieght"])


def test_frozen_and_deselected_parameters_leave_the_layer():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    assert [(layer.names, layer.shape) for layer in find_layers(model)] == [
        (("0.bias",), (1, 3, 1)),
        (("1.weight",), (1, 2, 3)),
        (("2.bias",), (1, 2, 1)),
    ]
    assert [layer.names for layer in find_layers(model, names=["1.weight"])] == [("1.weight",)]


def test_tied_weights_share_a_layer_and_other_biases_stand_alone():
    found = find_layers(Twice(3))
    assert [(layer.names, len(layer.forms)) for layer in found] == [
        (("one.weight",), 2),
        (("one.bias",), 1),
        (("two.bias",), 1),
    ]


def test_a_layer_prints_its_shape():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))
    assert layers.describe(find_layers(model)).splitlines() == [
        "0.weight: 2 groups of 3 x 19 with bias",
        "1.weight: 6 x 2 diagonal",
    ]
