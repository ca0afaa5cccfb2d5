"""Does a sweep give the same tables wherever it runs, and whoever dies? 220 jobs on digits, three times.

    python experiments/sweep.py --out runs/sweep

Once in two processes of this machine, once on Ray, once on Ray with a worker killed twice (kill -9, at seeded times).
results.json and table.csv of the sweep, and results.json, trials.parquet and scores.parquet of every point, are
compared byte for byte. The models are tiny: what is tried is where jobs run, not what they find.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from infuser.storage import write_json
from infuser.studies.environment import environment

CONFIG = {
    "like": "digits",
    "model": "mlp",
    "model_options": {"hidden": [16]},
    "limit": 300,
    "recipe": {"epochs": 2, "batch_size": 32, "lr": 0.1, "threads": 1},
    "probes": 10,
    "judged": 50,
    "k": 4,
    "steps": 4,
    "seeds": [1, 2],
    "controls": ["noise", "random_docs", "no_curvature"],
    "workers": 2,
    "grid": {"radius": [2, 4, 8, 16, 32], "select": ["post_edit", "random"], "probe_seed": [0, 1]},
}
SWEEP = ("results.json", "table.csv")
POINT = ("results.json", "trials.parquet", "scores.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    config = out / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    seconds, kills = {}, 0
    for name, on, deaths in (("local", "local", 0), ("ray", "ray", 0), ("ray-killed", "ray", 2)):
        begun = time.monotonic()
        kills += run(config, out / name, on, deaths)
        seconds[name] = round(time.monotonic() - begun, 1)
        print(f"{name}: {seconds[name]} s", flush=True)
    jobs = len(list((out / "local" / "points").glob("*/parts/*.json")))
    differ = [str(path) for name in ("ray", "ray-killed") for path in different(out / "local", out / name)]
    found = {"jobs": jobs, "workers_killed": kills, "seconds": seconds, "files_that_differ": differ}
    found["environment"] = environment()
    write_json(Path(__file__).parent / "results" / "sweep.json", found)
    print(found)
    sys.exit(bool(differ) or jobs < 200 or kills < 2)


def run(config: Path, folder: Path, on: str, deaths: int) -> int:
    """Run the sweep, kill `deaths` workers of Ray meanwhile, and return how many were killed."""
    command = [sys.executable, "-m", "infuser.cli", "sweep", str(config), "--out", str(folder), "--on", on]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}  # else they give way to anything
    driver = subprocess.Popen([*command, "--overwrite"], stdout=subprocess.DEVNULL, env=environment)
    rng, killed = random.Random(0), 0
    while killed < deaths and driver.poll() is None:
        done = len(list(folder.glob("points/*/parts/*.json")))
        if done >= 40 * (killed + 1):
            time.sleep(rng.uniform(0, 1))
            if workers := workers_of(driver.pid):
                rng.choice(workers).kill()
                killed += 1
        time.sleep(0.05)
    if driver.wait() != 0:
        raise SystemExit(f"{folder.name} failed; see infuser show {folder}")
    return killed


def different(one: Path, other: Path) -> list[Path]:
    """Return the files of a sweep that are not byte for byte those of another."""
    names = [Path(name) for name in SWEEP]
    names += [path.relative_to(one) / name for path in sorted((one / "points").iterdir()) for name in POINT]
    return [other / name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


def workers_of(driver: int) -> list[psutil.Process]:
    """Return the Ray workers below a process that are at a job."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(driver).children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if " ".join(child.cmdline()).startswith("ray::_work"):
                    found.append(child)
    return found


if __name__ == "__main__":
    main()
