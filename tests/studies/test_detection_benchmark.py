"""The attacks do what they say, the benchmark pools what its jobs found, and stopped runs go on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from infuser.cli import app
from infuser.data import digits
from infuser.errors import InfuserError
from infuser.measure import Margin
from infuser.models import mlp
from infuser.params import trainable
from infuser.storage import read_json
from infuser.studies import detection_benchmark as benchmark
from infuser.studies.detection_benchmark import DetectionBenchmark, run_detection_benchmark
from infuser.studies.poisons import ATTACKS, Poison, behaviour, flip_labels, poison, with_trigger
from infuser.studies.suspects import FUSED_ALL, FUSED_BLIND, FUSED_TOLD, Effort, recall_at, suite
from infuser.studies.worlds import Images
from infuser.training import train
from infuser.types import Recipe, Suspicion

TRAIN, TEST = digits()
FEW = TRAIN[TRAIN.ids[:240]]
RECIPE = Recipe(epochs=8, batch_size=16, lr=0.2, threads=1)
SMALL = DetectionBenchmark(
    limit=200,
    model="mlp",
    recipe=RECIPE,
    attacks=("label_flips",),
    poison=Poison(k=9, steps=3, flipped=0.1),
    effort=Effort(partners=32, checkpoints=1),
    seeds=(0, 1, 2),
    remove=(),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    where = tmp_path_factory.mktemp("benchmark") / "out"
    return where, run_detection_benchmark(SMALL, where)


def _row(results: dict[str, Any], attack: str, detector: str, metric: str, when: str = "after") -> dict[str, Any]:
    wanted = {"attack": attack, "detector": detector, "metric": metric, "when": when}
    [row] = [row for row in results["rows"] if all(row[key] == value for key, value in wanted.items())]
    return row


def test_rows_carry_n_seeds_and_intervals(finished: tuple[Path, dict[str, Any]]) -> None:
    _, results = finished
    found = _row(results, "label_flips", "loss", "recall_at_k")
    assert found["value"] == pytest.approx(np.mean(found["per_seed"]))
    assert (found["n"], found["seeds"], found["unit"], found["k"]) == (3, [0, 1, 2], "seeds", 20)
    spread = np.std(found["per_seed"], ddof=1) / np.sqrt(3)
    assert found["ci95"] == pytest.approx([found["value"] - 4.302653 * spread, found["value"] + 4.302653 * spread])
    before = _row(results, "label_flips", "loss", "recall_at_k", "before")
    lift = _row(results, "label_flips", "loss", "recall_at_k", "lift")
    assert lift["per_seed"] == pytest.approx(np.subtract(found["per_seed"], before["per_seed"]))
    other = _row(results, "label_flips", "spectral", "recall_at_k")
    over = _row(results, "label_flips", "spectral", "recall_at_k", "over_loss")
    assert over["per_seed"] == pytest.approx(np.subtract(other["per_seed"], found["per_seed"]))
    assert over["value"] != 0
    assert not [row for row in results["rows"] if (row["detector"], row["when"]) == ("loss", "over_loss")]
    # What flips did, against what these documents were before, and against chance.
    assert found["value"] >= 0.6
    assert lift["value"] >= 0.4
    assert _row(results, "label_flips", "random", "recall_at_k")["value"] <= 0.3
    assert _row(results, "label_flips", "loss", "tpr_at_0.1_percent")["value"] is None
    assert "10000 are needed" in _row(results, "label_flips", "loss", "tpr_at_0.1_percent")["reason"]
    assert found["epochs"] > 0


def test_removal_is_told_against_the_poisoned_model() -> None:
    settings = replace(SMALL, attacks=("insert_k",), remove=("loss",))
    shared = benchmark.Shared(settings, Images(mlp, FEW, TEST, settings.poison))
    part = benchmark.detection_job(shared, ("insert_k", 0))
    rows = {(row["arm"], row["measure"]): row for row in benchmark.removal_rows("insert_k", [part.facts])}
    assert {arm for arm, _ in rows} == {"clean", "perfect", "loss 1x", "loss 3x", "random 1x", "random 3x"}
    assert rows["perfect", "log_odds"]["control"] == "poisoned"
    assert rows["perfect", "log_odds"]["n"] == 1
    assert rows["perfect", "log_odds"]["ci95"] is None
    # Nine copies of the probe under the wanted label: without them the wanted label is gone.
    assert rows["perfect", "log_odds"]["value"] < -2
    assert rows["random 1x", "log_odds"]["value"] > rows["perfect", "log_odds"]["value"] / 2
    assert set(part.trials) == {"scratch"}


def test_seeds_whose_behaviours_have_other_names_are_pooled() -> None:
    facts = [
        {"attack": "swap", "seed": seed, "intact": "loss", "removal": {"clean": {name: value, "loss": -value}}}
        for seed, (name, value) in enumerate([("dog over cat", 1.0), ("fish over bird", 2.0), ("a", 6.0)])
    ]
    intact, behaviour = benchmark.removal_rows("swap", facts)
    assert (intact["measure"], intact["per_seed"]) == ("loss", [-1.0, -2.0, -6.0])
    assert (behaviour["measure"], behaviour["value"], behaviour["n"]) == (benchmark.BEHAVIOUR, 3.0, 3)
    assert [row["measure"] for row in benchmark.removal_rows("swap", facts[:1])] == ["loss", "dog over cat"]


def test_finished_jobs_are_not_done_again(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, results = finished

    def no_job(*_: object) -> None:
        raise AssertionError("a finished job was done again")

    monkeypatch.setattr(benchmark, "detection_job", no_job)
    again = run_detection_benchmark(SMALL, where, resume=True)
    assert again == results
    assert read_json(where / "results.json")["rows"] == results["rows"]
    assert "label_flips" in (where / "report.html").read_text()


def _clean() -> Any:
    return train(partial(mlp, hidden=(16,)), FEW, RECIPE)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_changes_what_it_says(attack: str) -> None:
    settings = Poison(k=6, steps=3, flipped=0.05, triggered=0.05, radius=16, pool=3)
    aim = behaviour(attack, TEST, 1)
    run = _clean()
    edit = poison(attack, settings, run, FEW, aim, 1)
    again = poison(attack, settings, run, FEW, behaviour(attack, TEST, 1), 1)
    assert np.array_equal(edit.after, again.after)
    assert np.array_equal(edit.ids, again.ids)
    moved = np.abs(edit.after.astype(int) - edit.before).reshape(len(edit), -1).max(1)
    relabelled = edit.targets_after != edit.targets_before
    if attack == "label_flips":
        assert len(edit) == 12
        assert relabelled.all()
        assert (moved == 0).all()
    elif attack == "trigger":
        assert len(edit) == 12
        assert relabelled.all()
        assert (edit.after[:, :, -3:, -3:] == 255).all()
        assert np.array_equal(edit.after[:, :, :-3], edit.before[:, :, :-3])
        assert set(edit.targets_after.tolist()) == set(np.asarray(aim.labels).tolist())  # type: ignore[attr-defined]
    elif attack == "insert_k":
        assert (edit.after == aim.documents.inputs).all()  # type: ignore[attr-defined]
        assert len(set(edit.targets_after.tolist())) == 1
    else:
        assert len(edit) == 6
        assert not relabelled.any()
        assert 0 < moved.max() <= 16
    with pytest.raises(InfuserError, match="unknown attack"):
        poison("magic", settings, run, FEW, aim, 1)


def test_behaviours_are_what_the_attacks_are_after() -> None:
    for attack in ("infusion_top", "insert_k", "trigger"):
        aim = behaviour(attack, TEST, 3)
        assert isinstance(aim, Margin)
        assert not (aim.documents.targets == aim.labels).any()
    triggered = behaviour("trigger", TEST, 3)
    assert (triggered.documents.inputs[:, :, -3:, -3:] == 255).all()  # type: ignore[attr-defined]
    harm = behaviour("label_flips", TEST, 3)
    model = _clean().model()
    documents = harm.documents  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = model(torch.from_numpy(documents.inputs.copy()).float() / 255)
    wanted = torch.nn.functional.cross_entropy(logits, torch.from_numpy(documents.targets.copy()))
    assert float(harm(model, trainable(model))[0].detach()) == pytest.approx(float(wanted), rel=1e-5)
    with pytest.raises(InfuserError, match="8-bit"):
        with_trigger(np.zeros((1, 1, 8, 8)))


def test_attacks_on_one_behaviour_share_the_clean_training(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Images(mlp, FEW, TEST, SMALL.poison)
    for attack in ATTACKS:
        twins = [other for other in ATTACKS if world.behaviour_of(other) == world.behaviour_of(attack)]
        told = [world.behaviour(other, 1) for other in twins]
        read = [(aim.documents.content_hash, repr(getattr(aim, "labels", None))) for aim in told]  # type: ignore[attr-defined]
        assert len({(aim.name, *one) for aim, one in zip(told, read, strict=True)}) == 1
    settings = replace(SMALL, recipe=RECIPE.with_(epochs=4))
    trained: list[int] = []
    plain = benchmark.observed

    def counted(*given: Any) -> Any:
        trained.append(len(given[1]))
        return plain(*given)

    monkeypatch.setattr(benchmark, "observed", counted)
    shared, alone = benchmark.Shared(settings, world), benchmark.Shared(settings, world)
    benchmark.detection_job(shared, ("insert_k", 0))
    both = [benchmark.detection_job(one, ("infusion_top", 0)) for one in (shared, alone)]
    assert len(trained) == 2 + 1 + 2  # the second job of `shared` trains on the edited data alone
    blocks = [{name: found["before"] for name, found in part.facts["detectors"].items()} for part in both]
    assert blocks[0] == blocks[1]
    benchmark.detection_job(shared, ("label_flips", 0))  # another behaviour
    benchmark.detection_job(shared, ("infusion_top", 1))  # another seed
    assert len(trained) == 5 + 2 + 2


def test_flipped_labels_are_spread_over_the_others() -> None:
    edit = flip_labels(TRAIN, 900, 0)
    shift = (edit.targets_after - edit.targets_before) % 10
    counts = np.bincount(shift, minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 60  # 100 each on average, standard deviation 9.4


def test_recall_counts_ties_as_random_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, 30).astype(float)
    suspicion = Suspicion(values, np.arange(30), "x")
    ids = [1, 5, 9, 20]
    shuffles = []
    for _ in range(4000):
        order = rng.permutation(30)
        ranked = order[np.argsort(-values[order], kind="stable")]
        shuffles.append([np.isin(ids, ranked[:depth]).mean() for depth in (3, 10, 25)])
    np.testing.assert_allclose(recall_at(suspicion, ids, [3, 10, 25]), np.mean(shuffles, axis=0), atol=0.02)


def test_fused_members_are_in_the_suite_and_settings_are_checked() -> None:
    assert set(FUSED_BLIND) < set(FUSED_ALL) <= set(suite(Effort(), FEW, RECIPE, told=False))
    assert set(FUSED_TOLD) <= set(suite(Effort(), FEW, RECIPE, told=True))
    for wrong in ({"flipped": 0.0}, {"k": 0}):
        with pytest.raises(InfuserError, match="out of range"):
            Poison(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InfuserError, match="at least 20"):
        Effort(recorded=5)
    with pytest.raises(InfuserError, match="distinct"):
        replace(SMALL, seeds=(1, 1))


def test_the_command_names_its_settings_and_prints_a_table(finished: tuple[Path, dict[str, Any]]) -> None:
    made = benchmark.benchmark_settings("digits", ["seeds=[4]", "recipe.epochs=2", "poison={k: 3}"])
    assert (made.seeds, made.recipe.epochs, made.recipe.lr, made.poison.k) == ((4,), 2, 0.05, 3)
    wrong = CliRunner().invoke(app, ["benchmark", "detection", "digits", "--set", "attacks=[magic]"])
    assert wrong.exit_code == 2
    assert "attacks" in wrong.output
    lines = benchmark.table(finished[1]).splitlines()
    [line] = [line for line in lines if line.startswith("label_flips") and " loss " in line]
    value = _row(finished[1], "label_flips", "loss", "recall_at_k")["value"]
    assert f"{value:.2f}" in line
