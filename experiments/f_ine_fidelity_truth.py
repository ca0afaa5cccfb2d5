"""True mu of each subset over retrainings: the first stage of f_ine_fidelity.py, and what the others take from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from f_ine_cases import Case

from infuser.attribution.loss_trace import LossTrace
from infuser.evaluation.true_mu import TrueInfluence, true_influence
from infuser.measure import Losses
from infuser.params import trainable
from infuser.training import train

RUNS = Path(__file__).resolve().parents[1] / "runs" / "f_ine_fidelity"
FIRST_SEED, SLICE = 1000, 5  # seeds of the truth; those of the observed runs are 0, 1, 2
ARRAYS = ("with_all", "without", "self_with", "self_without")


def subsets(made: Case) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return 38 subsets by name (12 for the convolutional net), and the ids of 40 test points."""
    rng = np.random.default_rng([11, 5] if made.name.startswith("generated") else [7, 5])
    run = train(made.builder, made.data, made.recipe.with_(seed=999), observers=[LossTrace().observer(made.data)])
    loss = LossTrace("mean").score(run, made.data).values[0]
    is_wrong = np.isin(made.data.ids, made.wrong)
    clean = made.data.ids[~is_wrong][np.argsort(loss[~is_wrong])]
    few = made.name.startswith("cnn")
    singles, repeats = (4, 1) if few else (10, 4)
    chosen = {f"wrong 1 #{i}": [x] for i, x in enumerate(rng.choice(made.wrong, singles, replace=False))}
    spread = clean[np.linspace(0, len(clean) - 1, singles).astype(int)]
    chosen |= {f"clean 1 #{i}": [x] for i, x in enumerate(spread)}
    for i in range(repeats):
        chosen[f"random 5 #{i}"] = rng.choice(made.data.ids, 5, replace=False)
        chosen[f"random 20 #{i}"] = rng.choice(made.data.ids, 20, replace=False)
        of_class = made.data.ids[(made.data.targets == rng.integers(10)) & ~is_wrong]
        chosen[f"class 10 #{i}"] = rng.choice(of_class, 10, replace=False)
    for i in range(1 if few else 3):
        chosen[f"wrong 5 #{i}"] = rng.choice(made.wrong, 5, replace=False)
        if not few:
            chosen[f"hard 5 #{i}"] = rng.choice(clean[-100:], 5, replace=False)
    model = run.model()
    hard = made.test.ids[np.argsort(Losses(made.test)(model, trainable(model)).detach().numpy())[:60]]
    points = np.concatenate([rng.choice(hard, 20, replace=False), rng.choice(made.test.ids, 60, replace=False)])
    points = points[np.sort(np.unique(points, return_index=True)[1])][:40]
    return {name: np.asarray(ids) for name, ids in chosen.items()}, points


def truth(made: Case, seeds: int) -> None:
    named, points = subsets(made)
    folder = RUNS / made.name
    folder.mkdir(parents=True, exist_ok=True)
    randomness = "order" if "_order" in made.name else "init+order"
    for start in range(FIRST_SEED, FIRST_SEED + seeds, SLICE):
        path = folder / f"truth-{start}.npz"
        if path.exists():
            continue
        part = true_influence(
            made.builder, made.data, made.recipe, named, made.test[points], range(start, start + SLICE), randomness
        )
        save(part, path)
        print(
            f"{made.name} seeds {start} to {start + SLICE - 1}: {60 * part.models / part.seconds:.0f} models a minute",
            flush=True,
        )


def save(part: TrueInfluence, path: Path) -> None:
    about = {"names": part.names, "queries": part.queries, "seeds": part.seeds, "randomness": part.randomness}
    about |= {"statistic": part.statistic, "seconds": part.seconds}
    temporary = path.with_suffix(".partial.npz")
    np.savez(temporary, about=json.dumps(about), **{name: getattr(part, name) for name in ARRAYS})
    temporary.rename(path)


def load(path: Path) -> TrueInfluence:
    with np.load(path) as stored:
        about = json.loads(str(stored["about"]))
        arrays = {name: stored[name] for name in ARRAYS}
    about |= {key: tuple(about[key]) for key in ("names", "queries", "seeds")}
    return TrueInfluence(**about, **arrays)


def true_mu_of(name: str) -> TrueInfluence:
    return TrueInfluence.concat([load(path) for path in sorted((RUNS / name).glob("truth-????.npz"))])
