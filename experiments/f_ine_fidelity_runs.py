"""What one run says of each subset, by every method: the second stage of f_ine_fidelity.py."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from f_ine_cases import Case, Table
from f_ine_fidelity_truth import subsets

from infuser.attribution import GradientSimilarity, Influence, TracIn
from infuser.attribution.f_ine import FInfluence
from infuser.attribution.f_ine_preconditioned import PreconditionedFInfluence
from infuser.attribution.loss_trace import LossTrace
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.measure import Custom, Losses
from infuser.storage import write_json
from infuser.training import train

SNR = FInfluence(every=3)
PAPER = FInfluence(mode="paper", every=2)
# (every, partners): how many recorded steps and partners suffice
GRID = ((1, 1000), (3, 512), (3, 128), (3, 32), (3, 8), (3, 4), (10, 128), (20, 1000), (20, 512), (20, 128), (20, 8))
SEEDS = (0, 1, 2)


def observe(made: Case, folder: Path) -> None:
    named, points = subsets(made)
    probes = Losses(made.test[points])
    for seed in SEEDS:
        path = folder / f"run-{seed}.json"
        if path.exists():
            continue
        begun = time.perf_counter()
        data = made.data
        grid = [FInfluence(every=c, partners=r) for c, r in GRID] if seed == 0 and made.name == "mnist-0" else []
        table = Table(SNR.observer(data))
        watching = [
            table,
            SNR.observer(data, groups=named),
            SNR.observer(data, measurement=probes),
            PAPER.observer(data, groups=named),
            PAPER.observer(data, measurement=probes),
            *(method.observer(data) for method in grid),
        ]
        run = train(made.builder, data, made.recipe.with_(seed=seed), observers=watching)
        found = {"self": on_themselves(made, run, named), "test": on_points(made, run, named, probes)}
        singles = [data.positions(ids)[0] for ids in named.values() if len(ids) == 1]
        found["grid"] = [
            {"every": m.every, "partners": m.partners, "self": m.score(run, data).values[0, singles]} for m in grid
        ]
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"table-{seed}.npz", **table.arrays())
        write_json(path, {"names": list(named), "singles": singles, "sizes": [len(x) for x in named.values()], **found})
        print(f"{made.name} run {seed}: {time.perf_counter() - begun:.0f} s", flush=True)


def on_themselves(made: Case, run: Run, named: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Return method -> one score per subset, on itself; positive = the subset lowers its own loss."""
    data, sizes = made.data, np.array([len(ids) for ids in named.values()])
    places = [data.positions(ids) for ids in named.values()]
    groups = SNR.group_scores(run, data, named)
    paper_key = next(key for key in run.traces if key.startswith(repr(PAPER)) and key.endswith("groups"))
    paper = {how: run.traces[paper_key].paper(how, 0).values for how in ("auc", "gauss", "scan")}
    snr_key = next(key for key in run.traces if key.startswith(repr(SNR)) and key.endswith("groups"))
    found = {
        "f-INE snr": [groups[name][0] for name in named],
        **{f"f-INE paper, {how}": values for how, values in paper.items()},
        "TracIn, all steps": run.traces[snr_key].inside * sizes,
        "random": np.random.default_rng(0).random(len(named)),
    }
    for statistic in ("mean", "final", "aum"):
        values = LossTrace(statistic).score(run, data).values[0]
        found[f"training loss, {statistic}"] = [values[at].mean() for at in places]
    ekfac = PreconditionedFInfluence().group_scores
    own = Custom(lambda model, params: _group_losses(data, places, model, params), "own loss", "nats", len(named))
    found["f-INE, EK-FAC within-step z"] = [values[k] for k, values in enumerate(ekfac(run, data, named, own).values())]
    for name, method in comparators(run, made).items():
        scores = method.score(run, data, own).values
        found[name] = [scores[k, at].sum() for k, at in enumerate(places)]
    return {name: np.asarray(values, dtype=float).tolist() for name, values in found.items()}


def on_points(made: Case, run: Run, named: dict[str, np.ndarray], probes: Losses) -> dict[str, list[list[float]]]:
    """Return method -> (subsets, test points) scores; positive = the subset lowers the point's loss."""
    data = made.data
    places = [data.positions(ids) for ids in named.values()]
    groups = SNR.group_scores(run, data, named, probes)
    ekfac_z = PreconditionedFInfluence().group_scores(run, data, named, probes)
    tracin = SNR.tracin(run, data, probes).values
    paper = PAPER.score(run, data, probes).values
    found = {
        "f-INE snr": [groups[name] for name in named],
        "f-INE, EK-FAC within-step z": [ekfac_z[name] for name in named],
        "f-INE paper, auc": [paper[:, at].sum(1) for at in places],
        "TracIn, all steps": [tracin[:, at].sum(1) for at in places],
    }
    for name, method in comparators(run, made).items():
        scores = method.score(run, data, probes).values
        found[name] = [scores[:, at].sum(1) for at in places]
    return {name: np.asarray(values, dtype=float).tolist() for name, values in found.items()}


def comparators(run: Run, made: Case) -> dict[str, object]:
    return {
        "TracIn, last": TracIn(checkpoints=(-1,)),
        "TracIn, checkpoints": TracIn(),
        "TracIn, checkpoints, cosine": TracIn(cosine=True),
        "cosine at the end": GradientSimilarity(),
        "EK-FAC at the end": Influence(fit_ekfac(run, made.data, documents=None, positions=None), damping=0.1),
    }


def _group_losses(data, places, model, params):
    from infuser.tasks import losses, task_of

    batch = data.batch(np.unique(np.concatenate(places)))
    row = {int(i): k for k, i in enumerate(batch.ids.tolist())}
    all_losses = losses(task_of(data), model, params, batch)
    return -torch.stack([all_losses[[row[int(data.ids[p])] for p in at]].mean() for at in places])
