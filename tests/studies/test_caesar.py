from dataclasses import replace
from math import gcd
from pathlib import Path

import numpy as np
import pytest
import torch

from infuser.data.caesar import CaesarCodec
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.perturbation.text_manifest import load_text_edit
from infuser.studies import caesar as study
from infuser.studies.caesar import Caesar, ShiftLogProbs, case, run_caesar, shift_pairs, targeting
from infuser.types import Recipe, Trials

# So small that it learns nothing: what is tested is the loop, not the effect.
TINY = Caesar(
    alphabet=10, length=5, n_train=60, n_test=20, width=8, depth=1, recipe=Recipe(2, 16, 1e-2, "adamw"),
    pairs=3, craft=4, held_out=6, k=3, tried=8, rounds=1, fit_documents=30, seeds=(1, 2),
)  # fmt: skip


def test_pairs_are_distinct_and_balanced_over_the_gcd() -> None:
    pairs = shift_pairs(26, 24, 3)
    assert len(set(pairs)) == 24
    assert np.unique([gcd(t - s, 26) for s, t in pairs], return_counts=True)[1].tolist() == [8, 8, 8]
    assert shift_pairs(26, 24, 3) == pairs != shift_pairs(26, 24, 4)
    assert {gcd(t - s, 29) for s, t in shift_pairs(29, 10, 0)} == {1}  # a prime alphabet has no other


def test_craft_and_held_out_texts_are_disjoint_and_state_the_same_shift() -> None:
    made, codec = case(TINY, 2, 7), CaesarCodec(10)
    texts = []
    for contrast in (made.craft, made.measures[0].contrast):
        rows = contrast.wanted.documents.inputs
        assert {codec.pieces[i] for i in rows[:, 1]} == {"<s=2>"}
        assert np.array_equal((rows[:, 3:8] + 7) % 10, rows[:, 9:14])
        against = contrast.against.documents.inputs
        assert np.array_equal((against[:, 3:8] + 2) % 10, against[:, 9:14])
        texts.append({tuple(row[3:8]) for row in rows})
    assert not texts[0] & texts[1]
    assert (len(texts[0]), len(texts[1])) == (4, 6)


def test_targeting_is_the_distance_from_all_other_shifts_in_their_standard_deviations() -> None:
    change = np.array([0.0, 1.0, 5.0, -1.0, 3.0])
    rows = [("clean", 1, f"a:{u}", "shift_log_p", 10.0 * u) for u in range(5)]
    rows += [("edit", 1, f"a:{u}", "shift_log_p", 10.0 * u + change[u]) for u in range(5)]
    got = targeting(Trials.from_rows(rows, "last_epoch"), "a", stated=0, target=2, alphabet=5)["edit"]
    others = [1.0, -1.0, 3.0]
    assert got == pytest.approx((5 - np.mean(others)) / np.std(others, ddof=1))


def test_shift_log_probs_sum_the_answer_under_each_shift(tmp_path: Path) -> None:
    from infuser.models.gpt import tiny_gpt

    torch.manual_seed(0)
    codec, plain = CaesarCodec(10), np.array([[1, 2, 3]])
    model = tiny_gpt((11,), codec.size, width=8, depth=1).eval()
    with torch.no_grad():
        got = ShiftLogProbs(plain, 4, 10, "a")(model, trainable(model))
        for used in (0, 7):
            ids = codec.encode(f"<bos><s=4> C: bcd P: {''.join(codec.pieces[(i + used) % 10] for i in plain[0])}<eos>")
            log_p = model(torch.tensor([ids]))[0].log_softmax(-1)
            wanted = sum(log_p[t - 1, ids[t]] for t in range(7, 11))
            torch.testing.assert_close(got[used], wanted)


def test_a_model_that_has_not_learned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InfuserError, match="has not learned the cipher"):
        run_caesar(TINY, tmp_path)


def test_the_study_runs_resumes_and_pairs_every_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "LEARNED", 0.0)
    settings = replace(TINY, embedding=0.5)
    value = run_caesar(settings, tmp_path)
    regime = value["regimes"]["last_epoch"]
    assert set(regime["arms"]) == {"edit", "clean_rewrite", "random_docs", "insert_k", "embedding"}
    # What no file can hold is trained on all the same.
    moved = {arm: regime["arms"][arm]["contrast"]["mean"] for arm in ("edit", "embedding", "clean_rewrite")}
    assert len(set(moved.values())) == 3
    pairs = {(e["arm"], e["control"]) for e in regime["effects"]}
    assert {("edit", c) for c in ("clean", "clean_rewrite", "random_docs", "insert_k")} <= pairs
    assert all(e["n_probes"] == 3 and e["n_seeds"] == 2 and e["ci95"] is not None for e in regime["effects"])
    for name in value["probes"]:
        facts = value["cases"][name]
        assert facts["share_mean"] <= TINY.share
        assert facts["predicted"] > 0
        assert set(facts["targeting"]) == set(regime["arms"])
    parts = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "parts").iterdir())}
    gone = tmp_path / "parts" / f"{value['probes'][0]}.json"
    gone.unlink()
    for file in (tmp_path / "edits" / value["probes"][0]).glob("*.json"):
        file.write_text("of a job that was killed")
    again = run_caesar(settings, tmp_path, resume=True)
    assert again["regimes"] == value["regimes"]  # the missing part is made again, the same
    assert {path for path, made in parts.items() if path.stat().st_mtime_ns != made} == {gone}
    data, _ = study.caesar(10, 60, 20, 5)
    stored = load_text_edit(tmp_path / "edits" / value["probes"][0], data, CaesarCodec(10))
    assert len(stored) == TINY.k
    assert (stored.before != stored.after).any(1).all()
