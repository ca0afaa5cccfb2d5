#!/bin/sh
# All f-INE experiments, in slices: stop it at any time, start it again, finished slices are kept under runs/.
# INFUSER_DATA and PYTHON are taken from the environment; one thread.
set -e
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
F="${PYTHON:-python} experiments/f_ine_fidelity.py"; C="${PYTHON:-python} experiments/f_ine_consistency.py"
$F truth mnist-0 mnistweak-0 --seeds 100
$C runs --noise 20 --epochs 10 --data-seeds 0
$F runs mnist-0 mnistweak-0
$F truth digits-0 generated-0 --seeds 50
$F runs digits-0 generated-0
$C runs --noise 20 --epochs 10 --data-seeds 1 2
$C runs --noise 20 --epochs 40 --data-seeds 0 1 2
$F truth mnist-1 --seeds 50
$F truth mnist-2 --seeds 100
$F runs mnist-1 mnist-2
$F truth digits_e5-0 digits_e60-0 digits_b10-0 digits_b200-0 --seeds 50
$F runs digits_e5-0 digits_e60-0 digits_b10-0 digits_b200-0
$F truth digits_order-0 --seeds 50
$F runs digits_order-0
$F truth cnn-0 --seeds 100
$F runs cnn-0
$F truth digits-1 digits-2 generated-1 generated-2 --seeds 50
$F runs digits-1 digits-2 generated-1 generated-2
$C runs --noise 10 --epochs 10
$C runs --noise 40 --epochs 10
$C runs --noise 10 --epochs 40
$C runs --noise 40 --epochs 40
$F table
$C table
