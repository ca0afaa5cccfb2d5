"""Executors keep the contract, and a pool gives what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from infuser.errors import InfuserError
from infuser.executors import Local, Pool
from infuser.testing import check_executor
from tests.processes import once_killed


def _threads_and_product(shared: int, job: int) -> tuple[int, int]:
    return torch.get_num_threads(), shared * job


def _die(job: int) -> int:
    os._exit(3)


@pytest.mark.parametrize("executor", [Local(), Pool(2)], ids=repr)
def test_the_contract_holds(executor: Local | Pool) -> None:
    check_executor(executor)


def test_workers_have_the_threads_that_were_asked_for() -> None:
    assert list(Pool(1, threads=1).map(partial(_threads_and_product, 3), [1, 2])) == [(1, 3), (1, 6)]


def test_jobs_in_this_process_have_the_threads_that_were_asked_for_and_no_others() -> None:
    before = torch.get_num_threads()
    assert list(Local(before + 1).map(partial(_threads_and_product, 3), [2])) == [(before + 1, 6)]
    assert torch.get_num_threads() == before
    assert list(Local().map(partial(_threads_and_product, 3), [2])) == [(before, 6)]


def test_a_worker_that_dies_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(InfuserError, match=r"(?s)worker process died.*--resume"):
        list(Pool(1).map(_die, [1]))


def test_a_pool_is_set_up_again_for_what_was_not_finished(tmp_path: Path) -> None:
    mends = Pool(1, retries=2, backoff=0.01)
    assert list(mends.map(partial(once_killed, tmp_path), range(2))) == [0, 1]
    for mark in tmp_path.iterdir():
        mark.unlink()
    with pytest.raises(InfuserError, match="worker process died"):
        list(Pool(1, retries=1, backoff=0.01).map(partial(once_killed, tmp_path), range(2)))


def _sleep(folder: Path, job: int) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(300)


def test_workers_do_not_outlive_their_driver(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        "from functools import partial\nfrom pathlib import Path\nfrom infuser.executors import Pool\n"
        "from tests.test_executors import _sleep\n"
        f"if __name__ == '__main__':\n    job = partial(_sleep, Path({str(tmp_path / 'pids')!r}))\n"
        "    list(Pool(1).map(job, [1, 2, 3]))\n"
    )
    (tmp_path / "pids").mkdir()
    root = str(Path(__file__).parents[1])
    driver = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root})
    try:
        pids = _until(lambda: [int(path.name) for path in (tmp_path / "pids").iterdir()])
        driver.kill()
        driver.wait()
        assert _until(lambda: not Path(f"/proc/{pids[0]}").exists())
    finally:
        driver.kill()


def _until(look: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (seen := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return seen


def test_a_script_without_a_guard_is_an_error_and_no_hang(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from functools import partial\nfrom infuser.executors import Pool\n"
        "print(list(Pool(1).map(partial(max, 'x' * 1_000_000), ['y'])))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "guard it with" in done.stderr


class _Shuffling:
    """An executor that breaks the contract."""

    def map(self, fn, jobs):  # type: ignore[no-untyped-def]
        return (fn(job) for job in reversed(list(jobs)))


def test_the_contract_suite_can_fail() -> None:
    with pytest.raises(AssertionError, match="in order"):
        check_executor(_Shuffling())
