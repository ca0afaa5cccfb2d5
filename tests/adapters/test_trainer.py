from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import infuser as inf
from infuser.attribution.f_trace import FTrace
from infuser.data.text import Characters, text_dataset
from infuser.errors import InfuserError

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

TEXTS = [" ".join(np.random.default_rng(i).choice(("ab", "ba", "cab", "a"), 5).tolist()) for i in range(16)]
CODEC = Characters.of(TEXTS)
DATA = text_dataset(TEXTS, CODEC, 24)


def model(kind: str) -> Any:
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": CODEC.size}
    if kind == "llama":
        config: Any = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, **size,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **size)
    return transformers.GPT2LMHeadModel(config)


def trained(kind: str, folder: Path, callbacks: list[Any]) -> Any:
    settings = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=5, learning_rate=1e-2, seed=5,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, max_grad_norm=1.0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model(kind), args=settings, train_dataset=inf.adapters.trainer_rows(DATA), callbacks=callbacks
    )
    trainer.train()
    return trainer.model


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_are_the_same_bit_for_bit_with_and_without(kind: str, tmp_path: Path) -> None:
    finder = inf.FInfluence(every=1, partners=8)
    callback = inf.adapters.trainer_callback(DATA, [finder.observer(DATA)])
    watched = trained(kind, tmp_path, [callback])
    plain = trained(kind, tmp_path, [])
    pairs = list(zip(watched.state_dict().items(), plain.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for (_, a), b in pairs), [name for (name, a), b in pairs if not torch.equal(a, b)]
    start = model(kind).state_dict()
    assert any(not torch.equal(a, start[name]) for (name, a), _ in pairs)  # the negative: training moved them
    run = callback.run()
    trace = next(iter(run.traces.values()))
    assert isinstance(trace, FTrace)
    assert (trace.recorded, trace.steps, trace.batch_size) == (20, 20, 4)
    mu = finder.score(run, DATA)
    assert mu.values.shape == (1, 16)
    assert np.isfinite(mu.values).all()


def test_the_recorded_signals_are_those_of_the_models_own_loss(tmp_path: Path) -> None:
    finder = inf.FInfluence(every=1, partners=16)
    callback = inf.adapters.trainer_callback(DATA, [finder.observer(DATA)])
    rows = inf.adapters.trainer_rows(DATA)
    wanted = np.zeros(16)

    class Oracle(transformers.TrainerCallback):  # type: ignore[name-defined, misc]
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            net, lr = kwargs["model"], kwargs["optimizer"].param_groups[0]["lr"]
            for i, row in enumerate(rows):
                batch = {name: torch.tensor([value]) for name, value in row.items()}
                count = int((batch["labels"][:, 1:] != -100).sum())  # the model's own loss is a mean over tokens
                loss = net(**batch).loss * count
                gradients = torch.autograd.grad(loss, list(net.parameters()))
                wanted[i] += lr * sum(float(g.double().square().sum()) for g in gradients)

    trained("llama", tmp_path, [Oracle(), callback])
    trace = next(iter(callback.run().traces.values()))
    np.testing.assert_allclose(trace.inside[0], wanted, rtol=1e-3)
    assert np.abs(trace.inside[0] / np.roll(wanted, 1) - 1).max() > 0.05  # the negative


def test_methods_that_need_the_batch_are_refused() -> None:
    paper = inf.FInfluence(mode="paper")
    with pytest.raises(InfuserError, match="which documents are in a batch"):
        inf.adapters.trainer_callback(DATA, [paper.observer(DATA)])

    class Own:
        name = "ids"

    with pytest.raises(InfuserError, match="needs_batch = False"):
        inf.adapters.trainer_callback(DATA, [Own()])
    Own.needs_batch = False
    inf.adapters.trainer_callback(DATA, [Own(), inf.FInfluence().observer(DATA)])
    images = inf.Dataset.from_arrays(np.zeros((4, 2, 2), np.uint8), np.arange(4) % 2)
    with pytest.raises(InfuserError, match="language models"):
        inf.adapters.trainer_callback(images, [])
    with pytest.raises(InfuserError, match="no step yet"):
        inf.adapters.trainer_callback(DATA, []).run()
