import pytest
import torch
from torch import nn

from infuser.checkpoints import build
from infuser.errors import InfuserError
from infuser.models import mlp, simple_cnn, tiny_resnet


@pytest.mark.parametrize("builder", [mlp, simple_cnn, tiny_resnet])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 9, 13)])
def test_outputs_have_one_logit_per_class(builder, shape):
    model = build(builder, shape, 7, 0).eval()
    with torch.no_grad():
        out = model(torch.rand(2, *shape))
    assert out.shape == (2, 7)
    assert torch.isfinite(out).all()


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_by_hand():
    assert count(mlp((1, 8, 8), 10)) == 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert count(mlp((2, 3), 4, hidden=())) == 6 * 4 + 4
    convolutions = (9 * 3 * 32 + 32) + (9 * 32 * 64 + 64)
    assert count(simple_cnn((3, 32, 32), 10)) == convolutions + (64 * 8 * 8 * 128 + 128) + (128 * 10 + 10)

    def block(i, o, shortcut):
        return 9 * i * o + 2 * o + 9 * o * o + 2 * o + (i * o + 2 * o if shortcut else 0)

    blocks = block(32, 32, False) + block(32, 64, True) + block(64, 128, True)
    assert count(tiny_resnet((3, 32, 32), 10)) == 9 * 3 * 32 + 64 + blocks + 128 * 10 + 10


def test_tiny_resnet_structure():
    model = tiny_resnet((3, 32, 32), 10)
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    shapes = {name: (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for name, m in convolutions.items()}
    assert shapes == {
        "conv": (3, 32, 3, 1),
        "layer1.conv1": (32, 32, 3, 1),
        "layer1.conv2": (32, 32, 3, 1),
        "layer2.conv1": (32, 64, 3, 2),
        "layer2.conv2": (64, 64, 3, 1),
        "layer2.shortcut.0": (32, 64, 1, 2),
        "layer3.conv1": (64, 128, 3, 2),
        "layer3.conv2": (128, 128, 3, 1),
        "layer3.shortcut.0": (64, 128, 1, 2),
    }
    assert all(m.bias is None for m in convolutions.values())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 9
    assert isinstance(model.layer1.shortcut, nn.Identity)
    assert (model.head.in_features, model.head.out_features) == (128, 10)


def test_a_residual_block_adds_its_input():
    block = tiny_resnet((1, 8, 8), 2, width=4).eval().layer1
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(block(x), x.relu())
        block.bn2.weight.zero_()  # silences the branch, as its bias is zero at the start
        assert torch.equal(block(x), x.relu())


def test_the_head_reads_the_average_over_positions():
    model = tiny_resnet((1, 8, 8), 3, width=4).eval()
    seen = []
    model.layer3.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        out = model(torch.rand(2, 1, 8, 8))
    assert seen[0].shape == (2, 16, 2, 2)
    torch.testing.assert_close(out, model.head(seen[0].flatten(2).mean(2)))


@pytest.mark.parametrize(("builder", "shape"), [(simple_cnn, (10,)), (simple_cnn, (1, 3, 8)), (tiny_resnet, (10,))])
def test_inputs_that_do_not_fit(builder, shape):
    with pytest.raises(InfuserError, match="needs images"):
        builder(shape, 3)
