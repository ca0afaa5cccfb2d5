"""
The demo on the command line
============================

What ``make demo`` runs, smaller: find the digits that matter for 4 probes, edit 10 of 500, retrain, compare.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

settings = {
    "limit": 500,
    "model": "mlp",
    "model_options": "{}",
    "recipe.epochs": 4,
    "recipe.lr": 0.1,
    "recipe.momentum": 0.9,
    "probes": 4,
    "k": 10,
    "steps": 10,
    "seeds": "[1, 2]",
    "controls": "[noise, random_docs, insert_1]",
    "workers": 1,
}

with tempfile.TemporaryDirectory() as place:
    infuser = [str(Path(sys.executable).with_name("infuser"))]
    out = Path(place) / "digits"
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    subprocess.run([*infuser, "run", "digits", "--out", str(out), *words], check=True)

    # The same numbers as the table, for programs; report.html shows them with pictures.
    results = json.loads((out / "results.json").read_text())
    for effect in results["regimes"]["last_epoch"]["effects"]:
        if effect["arm"] == "edit":
            print(f"edit against {effect['control']}: {effect['mean']:+.2f} log-odds, interval {effect['ci95']}")
    print(f"report.html: {(out / 'report.html').stat().st_size / 1e6:.1f} MB")

    # The edited training set as files, and every document put back, byte for byte.
    subprocess.run([*infuser, "edit", str(out), "--out", str(Path(place) / "edited")], check=True)
    subprocess.run([*infuser, "edit", str(Path(place) / "edited"), "--undo"], check=True)
