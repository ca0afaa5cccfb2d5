"""Whatever is killed, whenever: after a restart every file says what it says when nothing happens.

Everything here starts real processes and takes minutes: `make test-slow`. Times are drawn by seed, though where a
process stands at that time is the machine's affair.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import SWEEP, TINY, Started, contents, leftovers, write_config

pytestmark = pytest.mark.slow

KILLS: dict[str, int] = {}  # by case; the last test counts them


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What an undisturbed run and an undisturbed sweep give."""
    folder = tmp_path_factory.mktemp("calm")
    given = {}
    for kind, values in (("run", TINY), ("sweep", SWEEP)):
        started = Started(*_arguments(kind, folder, values), log=folder / f"{kind}.log")
        assert started.wait() == 0, started.said
        given[kind] = contents(folder / kind)
        assert leftovers(folder / kind) == []
    assert len(given["run"]) > 20
    assert {"table.csv", "results.json"} <= given["sweep"].keys()
    return given


def _arguments(kind: str, folder: Path, values: dict[str, object], *more: str) -> list[str]:
    config = write_config(folder / f"{kind}.yaml", values)
    return [kind, str(config), "--out", str(folder / kind), "--resume", *more]


def _survives(
    case: str,
    kind: str,
    folder: Path,
    arguments: list[str],
    calm: dict[str, bytes],
    kills: int,
    strike: Callable[[Started, random.Random], bool],
    span: float,
) -> None:
    """Strike `kills` times at random moments after the folder is first written to, restarting; then compare."""
    rng, out, struck = random.Random(case), folder / kind, 0
    for attempt in range(6 * kills):
        if struck == kills:
            break
        started = Started(*arguments, log=folder / "log")
        before = time.time()
        # .owner is written anew by every driver that has the lock.
        begun = started.until(
            lambda at=before: (out / ".owner").exists() and (out / ".owner").stat().st_mtime >= at - 1
        )
        if begun:
            time.sleep(rng.uniform(0, span))
            if started.running and strike(started, rng):
                struck += 1
        code = started.wait()
        assert code in (0, 1, 2, -signal.SIGKILL), (attempt, code, started.said)
        assert "Traceback" not in started.said or "ray" in case, started.said
        if code == 0:
            assert contents(out) == calm, _unlike(contents(out), calm)
            shutil.rmtree(out)
    assert struck == kills
    KILLS[case] = struck
    last = Started(*arguments, log=folder / "log")
    assert last.wait() == 0, last.said
    assert contents(out) == calm, _unlike(contents(out), calm)
    assert leftovers(out) == []


def _unlike(got: dict[str, bytes], want: dict[str, bytes]) -> str:
    return f"differ: {[name for name in want if got.get(name) != want[name]]}, more: {sorted(got.keys() - want.keys())}"


def _driver(started: Started, _: random.Random) -> bool:
    return started.kill()


def _worker(started: Started, rng: random.Random) -> bool:
    # They come late, where the machine is busy; what matters is when in their own life they go.
    if started.until(lambda: bool(started.below("spawn_main"))):
        time.sleep(rng.uniform(0, 6))
    return started.kill_below(rng, "spawn_main")


def test_the_driver_of_a_run_is_killed(tmp_path: Path, calm: dict[str, dict[str, bytes]]) -> None:
    _survives("run", "run", tmp_path, _arguments("run", tmp_path, TINY), calm["run"], 12, _driver, 5.0)


def test_the_driver_of_a_pool_is_killed(tmp_path: Path, calm: dict[str, dict[str, bytes]]) -> None:
    arguments = _arguments("run", tmp_path, TINY, "--set", "workers=2")
    _survives("pool", "run", tmp_path, arguments, calm["run"], 4, _driver, 10.0)


def test_a_worker_of_a_pool_is_killed(tmp_path: Path, calm: dict[str, dict[str, bytes]]) -> None:
    arguments = _arguments("run", tmp_path, TINY, "--set", "workers=2")
    _survives("worker", "run", tmp_path, arguments, calm["run"], 4, _worker, 1.0)


def test_a_worker_of_a_sweep_is_killed(tmp_path: Path, calm: dict[str, dict[str, bytes]]) -> None:
    arguments = _arguments("sweep", tmp_path, SWEEP)
    _survives("sweep worker", "sweep", tmp_path, arguments, calm["sweep"], 3, _worker, 1.0)


@pytest.mark.parametrize(
    ("case", "names", "kills"),
    [("driver", (), 3), ("worker", ("ray::_work", "ray::IDLE"), 4), ("raylet", ("raylet/raylet",), 1)],
)
def test_ray_is_killed(
    case: str, names: tuple[str, ...], kills: int, tmp_path: Path, calm: dict[str, dict[str, bytes]]
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'infuser[ray]'")

    def strike(started: Started, rng: random.Random) -> bool:
        return started.kill_below(rng, *names) if names else started.kill()

    arguments = _arguments("sweep", tmp_path, SWEEP, "--on", "ray")
    _survives(f"ray {case}", "sweep", tmp_path, arguments, calm["sweep"], kills, strike, 8.0)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {made.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.95])
def test_the_disk_is_full(share: float, tmp_path: Path, calm: dict[str, dict[str, bytes]]) -> None:
    arguments = _arguments("run", tmp_path, TINY)
    disk = tmp_path / "disk"
    arguments[arguments.index("--out") + 1] = str(disk / "run")
    needed = 4096 * 150 + sum(len(raw) + 4096 for raw in calm["run"].values())
    with _small_disk(disk, int(share * needed)):
        started = Started(*arguments, log=tmp_path / "log")
        assert started.wait() == 2, started.said
        assert "the disk is full" in started.said
        assert "Traceback" not in started.said
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = Started(*arguments, log=tmp_path / "log")
        assert again.wait() == 0, again.said
        assert contents(disk / "run") == calm["run"], _unlike(contents(disk / "run"), calm["run"])
        assert leftovers(disk) == []


@pytest.mark.parametrize("size", [100, 2_000, 20_000])
def test_no_file_may_grow_beyond_a_limit(size: int, tmp_path: Path, calm: dict[str, dict[str, bytes]]) -> None:
    arguments = _arguments("run", tmp_path, TINY)
    limited = Started(
        *arguments, log=tmp_path / "log", limits=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    )
    assert limited.wait() != 0
    again = Started(*arguments, log=tmp_path / "log")
    assert again.wait() == 0, again.said
    assert contents(tmp_path / "run") == calm["run"]
    assert leftovers(tmp_path / "run") == []


@pytest.mark.parametrize("seed", range(4))
def test_checkpoints_and_parts_are_truncated(seed: int, tmp_path: Path, calm: dict[str, dict[str, bytes]]) -> None:
    arguments = _arguments("run", tmp_path, TINY)
    started = Started(*arguments, log=tmp_path / "log")
    assert started.wait() == 0, started.said
    rng, out = random.Random(seed), tmp_path / "run"
    damaged = [rng.choice(sorted((out / "checkpoints" / "main").rglob("epoch-*/*")))]
    damaged += rng.sample(sorted((out / "parts").iterdir()), 2)
    damaged += [rng.choice(sorted((out / "edits").rglob("*.png"))), out / "results.json", out / "trials.parquet"]
    for path in damaged:
        os.truncate(path, rng.randrange(path.stat().st_size))
    again = Started(*arguments, log=tmp_path / "log")
    assert again.wait() == 0, again.said
    assert contents(out) == calm["run"], _unlike(contents(out), calm["run"])


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_two_drivers_start_on_one_folder(kind: str, tmp_path: Path, calm: dict[str, dict[str, bytes]]) -> None:
    arguments = _arguments(kind, tmp_path, TINY if kind == "run" else SWEEP)
    drivers = [Started(*arguments, log=tmp_path / f"log-{i}") for i in range(2)]
    codes = sorted(driver.wait() for driver in drivers)
    # The second is refused, or came so late that the first had done everything.
    assert codes in ([0, 2], [0, 0]), [driver.said for driver in drivers]
    if codes == [0, 2]:
        assert any("the output folder is in use" in driver.said for driver in drivers)
    assert contents(tmp_path / kind) == calm[kind]
    assert leftovers(tmp_path / kind) == []


def test_at_least_thirty_were_killed() -> None:
    if len(KILLS) < 7:
        pytest.skip(f"only counted where all cases ran: {KILLS}")
    assert sum(KILLS.values()) >= 30, KILLS
