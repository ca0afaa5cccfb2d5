"""The demo's claim: 28 of 1,438 digits edited by at most 16/255 move a probe, beyond every control.

    python experiments/digits.py --out runs/digits

The settings are those of `infuser run digits`. Written to experiments/results/digits.json: the run's results.json,
which is a function of the settings, the machine and the versions in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from infuser.storage import write_json
from infuser.studies.presets import run_study, settings_of
from infuser.studies.show import summary

RESULTS = Path(__file__).parent / "results" / "digits.json"


def main() -> None:
    """Run, or resume, the study and store what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/digits")
    args = parser.parse_args()
    results = run_study(settings_of("digits"), args.out, resume=True)
    write_json(RESULTS, results)
    print(summary(results))


if __name__ == "__main__":
    main()
