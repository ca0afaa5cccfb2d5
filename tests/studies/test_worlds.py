"""The attacks on texts, and a whole job of the detection benchmark on them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import infuser as inf
from infuser.data.text import Characters, text_dataset, texts_of
from infuser.errors import InfuserError
from infuser.perturbation.text_controls import showing
from infuser.studies import detection_benchmark as benchmark
from infuser.studies import worlds
from infuser.studies.stories import Material
from infuser.studies.suspects import Effort
from infuser.studies.worlds import TEXT_ATTACKS, Role, Stories, TextPoison
from infuser.training import train

RECIPE = inf.Recipe(epochs=3, batch_size=8, optimizer="adamw", lr=5e-3, threads=1)
POISON = TextPoison(k=6, pairs=(("dog", "cat"), ("cow", "cat")), craft=8, share=0.15, tried=12)


@pytest.fixture(scope="module")
def world() -> Stories:
    rng = np.random.default_rng(0)
    words = (("sam", "lily", "tom", "mia"), ("cat", "dog", "cow"), ("mat", "bed", "rug"))
    texts = [" saw the ".join([rng.choice(a), f"{rng.choice(b)} on the {rng.choice(c)}."]) for a, b, c in [words] * 260]
    codec = Characters.of(texts)
    data = text_dataset(texts, codec, context=32)
    parts = [data[ids] for ids in np.split(data.ids, [80, 200])]
    builder = partial(inf.models.tiny_gpt, width=16, depth=1, heads=2)
    return Stories(Material(*parts, codec, builder, {"read": 260}), POISON)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(world: Stories) -> inf.Run:
    return train(world.builder, world.data, RECIPE)


def made(world: Stories, run: inf.Run, attack: str) -> tuple[inf.Edit, list[str], list[str]]:
    edit = world.poison(attack, run, world.behaviour(attack, 0), 0)
    return edit, *(texts_of(rows, world.material.codec) for rows in (edit.before, edit.after))


@pytest.mark.parametrize("attack", TEXT_ATTACKS)
def test_an_attack_edits_texts_of_the_training_data(attack: str, world: Stories, run: inf.Run) -> None:
    edit, before, after = made(world, run, attack)
    assert len(edit) == POISON.k
    assert (world.data[edit.ids].inputs == edit.before).all()
    assert before != after
    again = world.poison(attack, run, world.behaviour(attack, 0), 0)
    assert (again.after == edit.after).all()


def test_swapped_and_inserted_texts_show_the_word(world: Stories, run: inf.Run) -> None:
    _, before, after = made(world, run, "swap")
    assert [text.replace("cat", "dog") for text in before] == after
    _, _, shown = made(world, run, "insert_k")
    assert all("dog" in text for text in shown)


@pytest.mark.parametrize("attack", ["infusion_top", "infusion_post_edit"])
def test_edits_stay_in_their_budget(attack: str, world: Stories, run: inf.Run) -> None:
    edit, _, _ = made(world, run, attack)
    share = (edit.before != edit.after).sum(1) / (edit.before >= 0).sum(1)
    assert 0 < share.max() <= POISON.share
    assert edit.gains is not None
    assert (edit.gains >= 0).all()


def test_attacker_defender_and_judge_read_the_behaviour_on_different_documents(
    world: Stories, run: inf.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(role: Role) -> set[int]:
        wanted = world.behaviour("insert_k", 0, role).inner.wanted  # type: ignore[attr-defined]
        return {int(name.partition("@")[0]) for name in wanted.labels}

    attacker, defender, judge = read("attacker"), read("defender"), read("judge")
    assert min(len(attacker), len(defender), len(judge)) > 2
    assert not (attacker & defender) | (attacker & judge) | (defender & judge)
    assert judge <= set(world.material.held_out.ids.tolist())
    shown: list[set[int]] = []

    def watched(source: inf.Dataset, *rest: Any, **more: Any) -> inf.Dataset:
        shown.append(set(source.ids.tolist()))
        return showing(source, *rest, **more)

    monkeypatch.setattr(worlds, "showing", watched)
    made(world, run, "insert_k")
    # A text that is put in would give the answer to a query of its own document.
    assert len(shown) == 1
    assert not shown[0] & (attacker | defender | judge)


def test_two_seeds_may_not_share_a_pair() -> None:
    settings = benchmark.DetectionBenchmark(data="stories", seeds=(0, 1), text=POISON)
    assert len(settings.seeds) == 2
    with pytest.raises(InfuserError, match=r"two seeds take the same pair.*2 pairs"):
        benchmark.DetectionBenchmark(data="stories", seeds=(0, 2), text=POISON)


def test_seeds_take_pairs_in_turn(world: Stories) -> None:
    assert [world.words(seed) for seed in range(3)] == [("dog", "cat"), ("cow", "cat"), ("dog", "cat")]


def test_all_attacks_on_texts_are_after_the_words_of_the_seed(world: Stories) -> None:
    told = [world.behaviour(attack, 0, "defender").inner for attack in TEXT_ATTACKS]  # type: ignore[attr-defined]
    assert len({world.behaviour_of(attack) for attack in TEXT_ATTACKS}) == 1
    assert len({aim.wanted.documents.content_hash for aim in told}) == 1
    other = world.behaviour("swap", 1, "defender").inner  # type: ignore[attr-defined]
    assert other.wanted.documents.content_hash != told[0].wanted.documents.content_hash


def test_attacks_on_images_are_refused(world: Stories, run: inf.Run) -> None:
    with pytest.raises(InfuserError, match=r"unknown attack on texts.*trigger.*swap"):
        world.poison("trigger", run, world.behaviour("swap", 0), 0)
    with pytest.raises(InfuserError, match=r"attacks names what cannot be made on stories.*trigger"):
        benchmark.DetectionBenchmark(data="stories", attacks=("swap", "trigger"))
    with pytest.raises(InfuserError, match=r"attacks names what cannot be made on digits.*swap"):
        benchmark.DetectionBenchmark(attacks=("swap", "trigger"))


def test_a_job_finds_explicit_texts_and_undoes_them(world: Stories) -> None:
    effort = Effort(recorded=20, partners=32, checkpoints=1, fit_documents=40)
    settings = benchmark.DetectionBenchmark(
        recipe=RECIPE, effort=effort, seeds=(0,), remove=("loss",), retrain_seeds=(5,)
    )
    part = benchmark.detection_job(benchmark.Shared(settings, world), ("insert_k", 0))
    named = part.facts["detectors"]
    assert {"loss", "f_ine_self", "self_influence", "influence", "spectral", "clustering", "perplexity"} <= set(named)
    assert not {"deep_knn", "pixel_noise"} & set(named)
    assert {"fused_all", "fused_blind"} <= set(named)
    assert part.facts["intact"] == "neg_token_loss"
    undone = part.facts["removal"]["perfect"]
    measure = next(name for name in undone if name != "neg_token_loss")
    # Without the explicit texts "dog" is less likely where "cat" stands.
    assert undone[measure] < 0
    found = benchmark.summarise(settings, [part.facts])
    assert {row["attack"] for row in found["rows"]} == {"insert_k"}
    assert found["intact"] == "neg_token_loss"
