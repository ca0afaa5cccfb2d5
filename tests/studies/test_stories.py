import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infuser.data.text import texts_of
from infuser.errors import InfuserError
from infuser.measure_text import Mean, word_contrast
from infuser.models.huggingface import LoRA
from infuser.params import trainable
from infuser.studies.stories import Stories, case, fine_tuned, load, parts_of, prepare, run_stories
from infuser.studies.text_study import make_edits, results, seed_of, stored
from infuser.types import Recipe

pytest.importorskip("transformers")
TINY = Stories(
    fluency=None,  # two edited documents leave too little room under a limit
    context=64, n_train=120, replay=0.5, k=2, pairs=(("dog", "cat"),), craft=4,
    held_out=4, tried=6, rounds=1, fit_documents=8,
    seeds=(0, 1), others=("ball",), controls=("clean_rewrite", "insert_k", "swap", "swap_tokens"),
    recipe=Recipe(epochs=1, batch_size=8, lr=1e-3, optimizer="adamw"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model beside the first 600 stories: reading all of them takes longer than the test."""
    root = os.environ.get("INFUSER_DATA")
    if not root:
        pytest.skip("INFUSER_DATA is not set")
    made = tmp_path_factory.mktemp("stories")
    (made / "stories260K").symlink_to(Path(root) / "stories260K")
    mark = "<|endoftext|>"
    texts = (Path(root) / "tinystories.txt").read_text().split(mark)[:600]
    (made / "tinystories.txt").write_text(mark.join(texts))
    return str(made)


def test_the_study_runs_from_files_and_states_every_arm(folder: str, tmp_path: Path) -> None:
    value = run_stories(replace(TINY, data_folder=folder), tmp_path)
    regime = value["regimes"]["last_epoch"]
    assert set(regime["arms"]) == {"edit", "clean_rewrite", "insert_k", "swap", "swap_tokens"}
    assert set(regime["arms"]["edit"]) == {
        "contrast", "log_p_target", "log_p_probe", "wins", "neg_token_loss", "elsewhere_ball", "kept_ball",
    }  # fmt: skip
    facts = value["cases"]["cat-dog"]
    assert facts["share_mean"] <= TINY.share
    assert facts["perplexity_ratio"] > 1
    assert len(list((tmp_path / "edits" / "cat-dog" / "after").iterdir())) == 2
    arms = regime["arms"]["edit"]
    apart = arms["log_p_target"]["mean"] - arms["log_p_probe"]["mean"]
    assert arms["contrast"]["mean"] == pytest.approx(apart, abs=1e-4)
    # What an arm is predicted to do is said for every arm, and a swap at equal tokens has at most as many.
    assert facts["predicted_by_arm"]["edit"] == pytest.approx(facts["predicted"], rel=1e-3)
    assert facts["tokens_by_arm"]["swap_tokens"] <= facts["tokens_by_arm"]["edit"]
    trials, cases = stored(tmp_path)
    again = results(trials, cases)["regimes"]["last_epoch"]
    assert again["arms"]["edit"]["contrast"] == regime["arms"]["edit"]["contrast"]
    assert again["forecast"] == regime["forecast"]


def test_sets_are_disjoint_and_the_replayed_part_is_the_end_of_the_epoch(folder: str) -> None:
    from infuser.training import epoch_order

    settings = replace(TINY, data_folder=folder)
    material = load(settings)
    sets = [set(part.ids.tolist()) for part in (material.train, material.craft, material.held_out)]
    assert sum(map(len, sets)) == len(set().union(*sets))
    run, replayed = fine_tuned(settings, material)
    order = material.train.ids[epoch_order(material.train.ids, settings.recipe, 0)]
    assert set(replayed.ids.tolist()) == set(order[60:].tolist())
    assert [c.epoch for c in run.checkpoints] == [0, 1]
    made = case(settings, material, replayed, "dog", "cat")
    craft, judged = ({q.split("@")[0] for q in c.queries} for c in (made.craft, made.measures[0].contrast))
    assert not craft & judged
    # The documents of insert_k come from the craft half, and show the target where the probe stood.
    edit = made.own["insert_k"](_first(replayed))
    assert all("dog" in text and " cat " not in text for text in texts_of(edit.after, material.codec))


def _first(data):
    from infuser.types import Edit

    some = data[data.ids[:2]]
    return Edit(some.ids, some.inputs, some.inputs, some.targets, some.targets, None, "nothing")


def test_adapters_alone_are_trained_and_edits_are_made_for_them(folder: str) -> None:
    settings = replace(TINY, data_folder=folder, lora=LoRA(rank=2, targets=("q_proj", "down_proj")))
    material = load(settings)
    run, replayed = fine_tuned(settings, material)
    before, after = (checkpoint.weights for checkpoint in run.checkpoints)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name}
    setup = prepare(settings, material, run, replayed)
    made = case(settings, material, replayed, "dog", "cat")
    edit = make_edits(setup, made, setup.influence.direction(run, Mean(made.craft)))["edit"]
    assert (edit.gains > 0).all()


def test_anchors_are_taken_from_what_edits_are_made_for_and_not_from_what_is_measured(folder: str) -> None:
    settings = replace(TINY, data_folder=folder, anchors=("girl", "boy"))
    material = load(settings)
    _, replayed = parts_of(settings, material)
    plain, held = (case(s, material, replayed, "dog", "cat") for s in (replace(settings, anchors=()), settings))
    model = material.builder(replayed.input_shape, replayed.n_outputs)
    params = trainable(model)
    kept = [
        word_contrast(material.craft, material.codec, "dog", w, limit=4, seed=seed_of("cat-dog"))
        for w in ("girl", "boy")
    ]
    wanted = plain.craft(model, params) - sum(c.wanted(model, params).mean() for c in kept) / 2
    assert held.craft(model, params).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert held.craft(model, params).tolist() != pytest.approx(plain.craft(model, params).tolist(), rel=1e-2)
    assert [m.queries for m in held.measures] == [m.queries for m in plain.measures]


def test_a_missing_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFUSER_DATA", raising=False)
    with pytest.raises(InfuserError, match="no folder of stories is given"):
        load(TINY)


def test_a_schedule_is_refused_as_the_replayed_part_would_begin_it_anew() -> None:
    with pytest.raises(InfuserError, match=r"at one rate.*Got: cosine"):
        replace(TINY, recipe=replace(TINY.recipe, schedule="cosine"))
