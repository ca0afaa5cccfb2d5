import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, jvp, vmap

from infuser.errors import InfuserError
from infuser.models.gpt import tiny_gpt
from infuser.params import trainable


def made(tied: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    return tiny_gpt((7,), 11, width=8, depth=2, heads=2, tied=tied).double().eval()


def test_it_is_the_pre_norm_transformer_written_out_by_hand() -> None:
    model, tokens = made(), torch.randint(11, (3, 7))
    x = model.tokens.weight[tokens] + model.positions.weight[:7]
    for block in model.blocks:
        n = F.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias)
        q, k, v = (n @ block.attention.qkv.weight.T + block.attention.qkv.bias).split(8, dim=-1)
        q, k, v = (part.view(3, 7, 2, 4).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(3, 7, 8)
        x = x + mixed @ block.attention.out.weight.T + block.attention.out.bias
        n = F.layer_norm(x, (8,), block.norm2.weight, block.norm2.bias)
        x = x + block.down(F.gelu(block.up(n)))
    wanted = F.layer_norm(x, (8,), model.norm.weight, model.norm.bias) @ model.head.weight.T
    torch.testing.assert_close(model(tokens), wanted)


def test_what_follows_cannot_be_seen_and_what_precedes_can() -> None:
    model, tokens = made(), torch.randint(11, (1, 7))
    other = tokens.clone()
    other[0, 4] = (other[0, 4] + 1) % 11
    a, b = model(tokens)[0], model(other)[0]
    assert torch.equal(a[:4], b[:4])
    assert ((a[4:] - b[4:]).abs().amax(1) > 1e-6).all()  # the negative: from the change on everything moves


def test_one_hot_rows_give_the_logits_of_their_ids() -> None:
    model, tokens = made(), torch.randint(11, (2, 7))
    torch.testing.assert_close(model(F.one_hot(tokens, 11).double()), model(tokens))
    assert not torch.allclose(model(torch.full((2, 7, 11), 1 / 11, dtype=torch.float64)), model(tokens))


@pytest.mark.parametrize("tied", [False, True])
def test_per_document_gradients_of_vmap_equal_autograd_one_by_one(tied: bool) -> None:
    model, tokens = made(tied), torch.randint(11, (3, 7))
    params = trainable(model)
    assert ("head.weight" in params) is not tied

    def loss(p, row):
        out = functional_call(model, p, (row[None],))
        return F.cross_entropy(out[0, :-1], row[1:], reduction="sum")

    rows = vmap(grad(loss), (None, 0))(params, tokens)
    for i, row in enumerate(tokens):
        leaves = dict(model.named_parameters())
        single = torch.autograd.grad(
            F.cross_entropy(model(row[None])[0, :-1], row[1:], reduction="sum"), leaves.values()
        )
        for name, value in zip(leaves, single, strict=True):
            torch.testing.assert_close(rows[name][i], value, msg=name)


def test_a_tied_weight_gathers_the_gradients_of_both_its_uses() -> None:
    model, tokens = made(tied=True), torch.randint(11, (1, 7))
    F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:], reduction="sum").backward()
    both = model.tokens.weight.grad.clone()
    apart = made(tied=False)
    apart.load_state_dict(model.state_dict())
    F.cross_entropy(apart(tokens)[0, :-1], tokens[0, 1:], reduction="sum").backward()
    torch.testing.assert_close(both, apart.tokens.weight.grad + apart.head.weight.grad)
    assert not torch.allclose(both, apart.head.weight.grad)


def test_forward_mode_equals_a_difference_quotient() -> None:
    model, tokens = made(), torch.randint(11, (2, 7))
    params = trainable(model)
    v = {name: torch.randn_like(value) for name, value in params.items()}

    def out(p):
        return functional_call(model, p, (tokens,))

    exact = jvp(out, (params,), (v,))[1]
    h = 1e-6
    above, below = ({name: value + s * h * v[name] for name, value in params.items()} for s in (1, -1))
    torch.testing.assert_close(exact, (out(above) - out(below)) / (2 * h), rtol=1e-6, atol=1e-7)


def test_a_fresh_model_is_close_to_guessing() -> None:
    torch.manual_seed(0)
    model, tokens = tiny_gpt((20,), 50), torch.randint(50, (64, 20))
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert math.log(50) - 0.05 < loss < math.log(50) + 0.8


def test_bad_shapes_are_named() -> None:
    with pytest.raises(InfuserError, match="needs documents of token ids"):
        tiny_gpt((3, 8, 8), 10)
    with pytest.raises(InfuserError, match="heads must divide the width"):
        tiny_gpt((8,), 10, width=10, heads=4)
