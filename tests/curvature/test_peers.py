"""Against curvlinops, and on models of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infuser.curvature import collect, find_layers, fit_ekfac, fit_kfac, verify
from infuser.params import trainable
from infuser.tasks import task_of
from tests import oracles
from tests.curvature.small import dataset, image_net, run_of, texts


def peer(operator, model, data, loss):
    inputs, targets = torch.tensor(data.inputs), torch.tensor(data.targets)
    params = [p for p in model.parameters() if p.requires_grad]
    made = operator(
        model,
        loss,
        params,
        [(inputs, targets)],
        fisher_type="empirical",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    like = oracles.leaves(model)
    columns = [made @ unit for unit in torch.eye(sum(p.numel() for p in params), dtype=torch.float64)]
    return torch.stack(columns, 1), like


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (5,)),
    "conv": (lambda: image_net(nn.Conv2d(2, 3, 3, padding=1, stride=2)), (2, 5, 4)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("fit", "name"), [(fit_kfac, "KFACLinearOperator"), (fit_ekfac, "EKFACLinearOperator")])
def test_equal_to_curvlinops_with_empirical_labels(fit, name, net):
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed (see oracles.txt)")
    make, shape = NETS[net]
    data = dataset(shape, n=9)
    run = run_of(make, data)
    theirs, like = peer(getattr(curvlinops, name), run.model(), data, nn.CrossEntropyLoss())
    mine = oracles.as_matrix(fit(run, data, labels="empirical").matvec, like)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)
    sampled = oracles.as_matrix(fit(run, data, labels="sampled").matvec, like)
    assert (sampled - theirs).norm() > 1e-2 * theirs.norm()


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")


def language_model(transformers, kind):
    small = {"vocab_size": 9, "attn_implementation": "eager"}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=6, n_embd=4, n_layer=1, n_head=2, **small)
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=6,
        tie_word_embeddings=False,
        **small,
    )
    return transformers.LlamaForCausalLM(config)


class Logits(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens):
        return self.inner(input_ids=tokens, use_cache=False).logits


def test_adapters_alone_are_covered_where_they_alone_are_trained(transformers):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra hf)")

    def adapted():
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return Logits(peft.get_peft_model(language_model(transformers, "llama"), config))

    data = texts()
    run = run_of(adapted, data)
    model = run.model()
    found = find_layers(model)
    assert len(found) == 4
    assert all("lora" in layer.names[0] for layer in found)
    seen = collect(model, trainable(model), task_of(data), data.batch(range(5)), found)
    true = oracles.gradients(model, data)
    for layer in found:
        for name, value in layer.gradients(*seen[layer]).items():
            torch.testing.assert_close(value, true[name], rtol=1e-8, atol=1e-11)
    assert max(grad.norm() for grad in true.values()) > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_language_models_of_transformers_are_covered_whole(transformers, kind):
    data = texts()
    run = run_of(lambda: Logits(language_model(transformers, kind)), data)
    model = run.model()
    task, params, batch, found = task_of(data), trainable(model), data.batch(range(5)), find_layers(model)
    verify(model, params, task, batch, found)
    assert {name for layer in found for name in layer.names} == set(params)
    seen = collect(model, params, task, batch, found)
    true = oracles.gradients(model, data)
    for layer in found:
        for name, value in layer.gradients(*seen[layer]).items():
            torch.testing.assert_close(value, true[name], rtol=1e-8, atol=1e-11)
    tied = [layer for layer in found if len(layer.forms) == 2]
    assert [layer.names for layer in tied] == ([("inner.transformer.wte.weight",)] if kind == "gpt2" else [])
    fitted = fit_ekfac(run, data, labels="empirical")
    fisher = oracles.empirical_fisher(model, data)
    like = oracles.leaves(model)
    for block in fitted.blocks:
        at = oracles.positions_of(block.layer.names, like)
        assert block.eigenvalues.sum().item() == pytest.approx(fisher[at, at].sum().item(), rel=1e-8)
