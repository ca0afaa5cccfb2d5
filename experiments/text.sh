#!/bin/sh
# All experiments on text, most important first: stop it at any time, start it again, finished cases are kept under runs/.
# INFUSER_DATA and PYTHON are taken from the environment; one thread. `--table` of each script writes what is there.
set -e
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
P="${PYTHON:-python}"
$P experiments/stories.py --only "token 5 %"
$P experiments/f_ine_opinion.py runs
$P experiments/stories.py --only "word 5 %" "token 1 %" "token 5 %, top" "token 5 %, anchored" "token 5 %, adapters"
$P experiments/caesar.py --models 3
$P experiments/stories_transfer.py
$P experiments/amplify.py
$P experiments/proposers.py
$P experiments/stories.py
$P experiments/stories.py --rates
$P experiments/caesar.py
