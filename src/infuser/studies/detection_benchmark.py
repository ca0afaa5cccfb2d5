"""The detection benchmark: attacks x detectors x seeds, after and before the edit, and what removing suspects undoes.

A job is one attack under one seed. The seed draws the probe, initialises the model and orders the data, so that each
job has a base model of its own, and the unit of every interval is the seed:

    train on the clean data, observed -> attack -> train on the edited data, observed -> every detector on both
    -> drop the top suspects (weight 0), retrain from scratch under other seeds, measure the behaviour
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import infuser.models
from infuser import detection
from infuser.checkpoints import Run
from infuser.config import dump, merge, of_data, override, parse, resolve
from infuser.data.dataset import Dataset
from infuser.data.source import load
from infuser.errors import InfuserError, listed
from infuser.evaluation.compare import compare
from infuser.evaluation.finding import Finding, find, lift
from infuser.evaluation.retrain import retrain
from infuser.evaluation.stats import mean_estimate
from infuser.executors import Executor, Local, Pool
from infuser.report import Caveat, Detection, DetectorResult, Provenance, Summary, report
from infuser.storage import write_json
from infuser.studies import stories
from infuser.studies.environment import environment
from infuser.studies.folder import opened
from infuser.studies.parts import Part, completed, determinants, key_of
from infuser.studies.poisons import ATTACKS, Poison
from infuser.studies.suspects import Effort, Observed, Search, observed, recall_at, search
from infuser.studies.worlds import TEXT_ATTACKS, Images, Role, Stories, TextPoison, World
from infuser.training import without_traces
from infuser.types import Arm, Array, Edit, Estimate, Measurement, Recipe, Suspicion, Trials

SCHEMA = 1
BEHAVIOUR = "the seed's behaviour"  # in rows over seeds whose behaviours have names of their own
STORIES = 1500  # texts of the benchmark on stories
_SHOWN = ("roc_auc", "recall_at_k")  # drawn in the report; all are in results.json


@dataclass(frozen=True)
class DetectionBenchmark:
    """All settings of the benchmark.

    Attributes:
        data: digits, mnist, cifar10, folder:PATH, parquet:PATH, npz:PATH, hf:NAME; or stories.
        data_folder: where the files of a named data set lie.
        limit: training documents, chosen by seed 0; None means all.
        model: a name in infuser.models, or module:function; for stories a model of transformers.
        recipe: of every training; its seed is replaced by the job's.
        attacks: which are made; none named means all that the data allow.
        poison: how they are made on images.
        text: how they are made on stories.
        effort: what detectors may cost.
        seeds: base models, each with a probe, or a pair of words, of its own. A pretrained model is the same under all
            of them: there a seed gives the order and the pair alone.
        remove: detectors whose top suspects are removed, at 1x and 3x the edited number; none skips retraining.
        retrain_seeds: of the models that are trained after the removal.
        workers: processes that jobs run in; 1 stays in this process.
    """

    data: str = "digits"
    data_folder: str | None = None
    limit: int | None = None
    model: str = "simple_cnn"
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.05, threads=1))
    attacks: tuple[str, ...] = ()
    poison: Poison = field(default_factory=Poison)
    text: TextPoison = field(default_factory=TextPoison)
    effort: Effort = field(default_factory=Effort)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    remove: tuple[str, ...] = ("loss", "fused_blind", "fused_told")
    retrain_seeds: tuple[int, ...] = (100,)
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("seeds", "attacks"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise InfuserError(f"{name} must be distinct", got=values)
        if not self.seeds:
            raise InfuserError("a benchmark needs at least one seed")
        known = TEXT_ATTACKS if self.data == "stories" else ATTACKS
        pairs = max(len(self.text.pairs), 1)
        if self.data == "stories" and len({seed % pairs for seed in self.seeds}) < len(self.seeds):
            raise InfuserError(
                "two seeds take the same pair of words",
                got=f"seeds {listed(self.seeds)}, {len(self.text.pairs)} pairs",
                expected="a pair of its own for every seed",
                remedy="give text.pairs as many pairs as there are seeds, and consecutive seeds",
            )
        unknown = [attack for attack in self.attacks if attack not in known]
        if unknown:
            said = f"attacks names what cannot be made on {self.data}"
            raise InfuserError(said, got=listed(unknown), expected=", ".join(known))


@dataclass(frozen=True)
class Shared:
    """What all jobs share.

    Attributes:
        settings: of the benchmark.
        world: data, model and attacks.
        searched: the last clean training with its search, which attacks on one behaviour have in common.
    """

    settings: DetectionBenchmark
    world: World
    searched: dict[tuple[str, int], tuple[Observed, Search]] = field(default_factory=dict, repr=False, compare=False)

    def clean(self, attack: str, seed: int, suspected: Measurement) -> tuple[Observed, Search]:
        """Return an observed training on the clean data and what every detector says about it."""
        settings, data = self.settings, self.world.data
        key = (self.world.behaviour_of(attack), seed)
        if key not in self.searched:
            self.searched.clear()
            found = observed(self.world.builder, data, settings.recipe.with_(seed=seed), settings.effort, suspected)
            self.searched[key] = found, search(found, data, settings.effort, suspected)
        return self.searched[key]


def benchmark_settings(
    what: str, settings: Sequence[str] = (), data_folder: str | Path | None = None
) -> DetectionBenchmark:
    """Return the settings of a benchmark on the data that `what` names, with "key=value" settings laid on top.

    Args:
        what: the data, or the path of a YAML file.
        settings: changes.
        data_folder: where the files of a named data set lie.

    Raises:
        InfuserError: an unknown setting, or a wrong value.
    """
    told = of_data(what)
    base: dict[str, Any] = {"recipe": asdict(DetectionBenchmark().recipe)}
    if told.get("data") == "stories":
        of_stories = stories.Stories()
        base = {"model": of_stories.model, "recipe": asdict(of_stories.recipe), "limit": STORIES}
    if data_folder is not None:
        told = merge(told, {"data_folder": str(data_folder)})
    return parse(DetectionBenchmark, override(merge(base, told), settings))


def run_detection_benchmark(
    settings: DetectionBenchmark,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Run the benchmark into the folder `out` and return what results.json holds.

    Raises:
        InfuserError: bad settings or data, or `out` holds another run.
    """
    with opened(out, dump(settings), resume=resume, overwrite=overwrite) as folder:
        made_with = environment()
        write_json(folder / "environment.json", made_with)
        world = world_of(settings, allow_code=allow_code)
        shared, data = Shared(settings, world), world.data
        jobs = {
            f"{attack}-{seed}": (attack, seed)
            for seed in settings.seeds
            for attack in settings.attacks or world.attacks
        }
        base = determinants(settings, made_with)
        # More seeds or attacks leave what was done alone.
        base["settings"] = {k: v for k, v in base["settings"].items() if k not in ("seeds", "attacks")}
        keys = {name: key_of({**base, "data": data.content_hash, "job": name}) for name in jobs}
        threads = settings.recipe.threads
        how = executor or (Local(threads) if settings.workers == 1 else Pool(settings.workers, threads or 1))
        parts = completed(folder, data, jobs, keys, how, partial(detection_job, shared))
        results = {**summarise(settings, [part.facts for part in parts.values()]), "environment": made_with}
        write_json(folder / "results.json", results)
        write_json(folder / "timing.json", {name: part.seconds for name, part in parts.items()})
        write_report(folder / "report.html", results, dump(settings))
    return results


def world_of(settings: DetectionBenchmark, *, allow_code: bool = False) -> World:
    """Return the data with its model and attacks.

    Raises:
        InfuserError: the data or the model cannot be read.
    """
    if settings.data == "stories":
        chosen = stories.Stories(data_folder=settings.data_folder, model=settings.model)
        limited = chosen if settings.limit is None else replace(chosen, n_train=settings.limit)
        return Stories(stories.load(limited), settings.text)
    data, test = load(settings.data, settings.data_folder, limit=settings.limit)
    return Images(resolve(settings.model, infuser.models, allow_code), data, test, settings.poison)


def detection_job(shared: Shared, job: tuple[str, int]) -> Part:
    """Make one attack under one seed, search the edited and the clean data, and remove what was found."""
    begun = time.monotonic()
    attack, seed = job
    settings, world, data = shared.settings, shared.world, shared.world.data
    roles: tuple[Role, ...] = ("attacker", "defender", "judge")
    aim, suspected, judged = (world.behaviour(attack, seed, role) for role in roles)
    clean, before = shared.clean(attack, seed, suspected)
    edit = world.poison(attack, without_traces(clean.run), aim, seed)
    edited = data.apply(edit)
    found = observed(world.builder, edited, settings.recipe.with_(seed=seed), settings.effort, suspected)
    after = search(found, edited, settings.effort, suspected)
    facts: dict[str, Any] = {"attack": attack, "seed": seed, "k": len(edit), "n": len(data), "made_by": edit.made_by}
    facts["detectors"] = {name: compared(after, before, name, edit.ids) for name in after.suspicions}
    trials: dict[str, Trials] = {}
    if settings.remove:
        trials["scratch"] = removal(shared, without_traces(found.run), edit, edited, after.suspicions, judged)
        facts["intact"] = world.intact.name
        facts["removal"] = changes(trials["scratch"], (judged.name, world.intact.name))
    return Part(trials, edit, facts, round(time.monotonic() - begun, 1))


def compared(after: Search, before: Search, name: str, ids: Array) -> dict[str, Any]:
    """Return the metrics of one detector on the edited data, on the clean data, and their difference."""
    suspicion = after.suspicions[name]
    finding = find(suspicion, ids)
    values: dict[str, Any] = {"told": suspicion.told, "epochs": after.epochs[name], "reasons": finding.reasons}
    values["after"] = _values(finding) | {"recall_at_3k": float(recall_at(suspicion, ids, [3 * len(ids)])[0])}
    early = before.suspicions[name]
    values["before"] = _values(find(early, ids)) | {"recall_at_3k": float(recall_at(early, ids, [3 * len(ids)])[0])}
    # Within one seed documents are the unit; across seeds see `rows`.
    values["within"] = {
        metric: {"lift_ci95": difference.interval, "after_ci95": _interval(finding.estimates[metric])}
        for metric, difference in lift(suspicion, early, ids).items()
    }
    return values


def removal(
    shared: Shared, run: Run, edit: Edit, edited: Dataset, suspicions: Mapping[str, Suspicion], judged: Measurement
) -> Trials:
    """Return the behaviour after the top suspects were given weight 0 and the model was trained anew."""
    settings, k = shared.settings, len(edit)
    chosen = {name: suspicions[name] for name in settings.remove if name in suspicions}
    chosen["random"] = detection.RandomOrder(run.recipe.seed).suspicion(run, edited)
    arms = [
        Arm("poisoned", edited, "the edited data, nothing removed"),
        Arm("clean", shared.world.data, "what perfect knowledge of the originals would give"),
        Arm("perfect", edited.with_weights(edit.ids, 0), "exactly the edited documents removed"),
    ]
    for name, suspicion in chosen.items():
        for times in (1, 3):
            top = suspicion.top(min(times * k, len(edited) - 1))
            reason = f"the {len(top)} most suspicious documents of {name} removed"
            arms.append(Arm(f"{name} {times}x", edited.with_weights(top, 0), reason))
    return retrain(run, arms, [judged, shared.world.intact], settings.retrain_seeds, "scratch")


def changes(trials: Trials, measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return arm -> measure -> mean change against the poisoned arm, over queries and retraining seeds."""
    arms = [arm for arm in dict.fromkeys(trials.arm.tolist()) if arm != "poisoned"]
    found: dict[str, dict[str, float]] = {}
    for arm in arms:
        found[arm] = {name: compare(trials, arm, "poisoned", name).value for name in measures}
    return found


def summarise(settings: DetectionBenchmark, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what results.json says of finished jobs, but for the environment."""
    made = dict.fromkeys(fact["attack"] for fact in facts)
    attacks = [attack for attack in settings.attacks or made if attack in made]
    return {
        "schema": SCHEMA,
        "dataset": settings.data,
        "model": settings.model,
        "n_train": facts[0]["n"],
        "seeds": sorted({fact["seed"] for fact in facts}),
        "intact": facts[0].get("intact"),
        "rows": [row for attack in attacks for row in rows(attack, facts)],
        "removal": [row for attack in attacks for row in removal_rows(attack, facts)],
    }


def rows(attack: str, facts: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per detector, metric and moment: mean over seeds with its interval.

    Moments are after, before, lift (after - before), and over_loss: after, less what the training loss alone gives.
    """
    of = [fact for fact in facts if fact["attack"] == attack]
    seeds = [fact["seed"] for fact in of]
    for name in sorted(of[0]["detectors"]) if of else ():  # JSON keeps no order
        blocks = [fact["detectors"][name] for fact in of]
        told = blocks[0]["told"]
        common = {"attack": attack, "detector": name, "told": told, "k": of[0]["k"], "n_documents": of[0]["n"]}
        common["epochs"] = float(np.mean([block["epochs"] for block in blocks]))
        for metric in sorted(blocks[0]["after"]):
            columns = {when: [block[when][metric] for block in blocks] for when in ("after", "before")}
            if any(value is None for value in columns["after"]):
                reason = blocks[0]["reasons"].get(metric, "not measured")
                yield {**common, "metric": metric, "when": "after", "value": None, "reason": reason}
                continue
            columns["lift"] = list(np.subtract(columns["after"], columns["before"]))
            if name != "loss":
                alone = [fact["detectors"]["loss"]["after"][metric] for fact in of]
                columns["over_loss"] = list(np.subtract(columns["after"], alone))
            for when, values in columns.items():
                found = estimated(values, seeds)
                if found["ci95"]:  # a metric lies in [0, 1], a difference of two in [-1, 1]
                    least = 0.0 if when in ("after", "before") else -1.0
                    found["ci95"] = [max(least, found["ci95"][0]), min(1.0, found["ci95"][1])]
                yield {**common, "metric": metric, "when": when, **found}


def removal_rows(attack: str, facts: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per arm and measure: mean change against the poisoned arm over seeds, with its interval."""
    of = [fact for fact in facts if fact["attack"] == attack and "removal" in fact]
    for arm in sorted(of[0]["removal"]) if of else ():
        for intact in (True, False):
            # Every seed has a behaviour of its own, and one name for what has to stay intact.
            found = [
                (name, value)
                for fact in of
                for name, value in fact["removal"][arm].items()
                if (name == fact["intact"]) == intact
            ]
            names = list(dict.fromkeys(name for name, _ in found))
            measure = names[0] if len(names) == 1 else BEHAVIOUR
            common = {"attack": attack, "arm": arm, "control": "poisoned", "measure": measure}
            yield {**common, **estimated([value for _, value in found], [fact["seed"] for fact in of])}


def estimated(values: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    """Return value, interval, n and what each seed gave."""
    estimate = mean_estimate(np.asarray(values), "seeds", seeds)
    shared = {"n": estimate.n, "unit": "seeds", "seeds": list(seeds), "per_seed": [float(v) for v in values]}
    ends = None if estimate.interval is None else list(estimate.interval)
    return {"value": estimate.value, "ci95": ends, "interval": estimate.method, **shared}


def table(results: Mapping[str, Any]) -> str:
    """Return recall at k of every detector on every attack, after and lift, and what removal changed, as plain text."""
    lines = [f"{results['dataset']}, {results['n_train']} documents: recall at k (after; lift; seeds)"]
    for row in results["rows"]:
        if row["metric"] == "recall_at_k" and row["when"] == "after":
            same = ("attack", "detector", "metric")
            [up] = [r for r in results["rows"] if r["when"] == "lift" and all(r[key] == row[key] for key in same)]
            name = f"{row['attack']:<20}{row['detector']:<22}"
            lines.append(f"{name}{row['value']:5.2f}{up['value']:+6.2f}  n = {row['n']}")
    for row in results["removal"]:
        name = f"{row['attack']:<20}{row['arm']:<22}"
        lines.append(f"{name}{row['measure']} {row['value']:+.3f} against poisoned, n = {row['n']}")
    return "\n".join(lines)


def write_report(path: Path, results: Mapping[str, Any], config: str) -> None:
    """Write report.html: detectors by attack, after and lift, and the effect of removal."""
    attacks = dict.fromkeys(row["attack"] for row in results["rows"])
    shown = [_detection(attack, results["rows"]) for attack in attacks]
    count, n = len(results["seeds"]), results["n_train"]
    found = tuple(
        f"{row['attack']}, {row['arm']}: {row['measure']} {row['value']:+.3f} against the poisoned model"
        f" (n = {row['n']} seeds)"
        for row in results["removal"]
        if row["measure"] != results["intact"]
    )
    asked = f"Which detector finds which attack on {results['dataset']} ({n} documents, {count} base models)?"
    scope = "A figure holds for this data set, model and budget of the attacker, and for attackers who do not adapt."
    caveat = Caveat("", scope)
    provenance = Provenance(config, results["environment"], {"base models": results["seeds"]})
    report(path, Summary(asked, found), caveat, *shown, provenance, title=f"Detection on {results['dataset']}")


def _detection(attack: str, table: Sequence[Mapping[str, Any]]) -> Detection:
    of = {(row["detector"], row["metric"], row["when"]): row for row in table if row["attack"] == attack}
    results = tuple(
        DetectorResult(name, metric, _estimate(row), _estimate(of[name, metric, "lift"]))
        for (name, metric, when), row in of.items()
        if when == "after" and metric in _SHOWN
    )
    first = next(iter(of.values()))
    return Detection(attack, (), results, first["k"], first["n_documents"] - first["k"])


def _estimate(row: Mapping[str, Any]) -> Estimate:
    ends = row["ci95"]
    interval = None if ends is None else (ends[0], ends[1])
    return Estimate(row["value"], interval, row["n"], tuple(row["seeds"]), "seeds", row["interval"])


def _values(finding: Finding) -> dict[str, float | None]:
    return {name: None if value is None else value.value for name, value in finding.estimates.items()}


def _interval(estimate: Estimate | None) -> tuple[float, float] | None:
    return None if estimate is None else estimate.interval
