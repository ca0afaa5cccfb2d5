"""Does f-INE, read off one run, rank subsets as their true influence over retrainings does?

    INFUSER_DATA=... python experiments/f_ine_fidelity.py truth mnist-0 --seeds 100
    INFUSER_DATA=... python experiments/f_ine_fidelity.py runs mnist-0
    python experiments/f_ine_fidelity.py table

`truth` trains with and without each of 38 subsets, 5 seeds a slice; finished slices under runs/f_ine_fidelity are not
trained again. `runs` records three runs with seeds of their own. `table` writes results/f_ine_fidelity.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from f_ine_cases import case
from f_ine_fidelity_runs import observe
from f_ine_fidelity_table import write
from f_ine_fidelity_truth import RUNS, truth


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("truth", "runs", "table"))
    parser.add_argument("cases", nargs="*", default=["mnist-0"])
    parser.add_argument("--seeds", type=int, default=100)
    chosen = parser.parse_args()
    begun = time.perf_counter()
    if chosen.stage == "truth":
        for name in chosen.cases:
            truth(case(name), chosen.seeds)
    elif chosen.stage == "runs":
        for name in chosen.cases:
            observe(case(name), RUNS / name)
    else:
        write(RUNS, Path(__file__).parent / "results" / "f_ine_fidelity.json")
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
