#!/usr/bin/env bash
# From a fresh clone to a trained, evaluated and exported Focal Transformer v2: real handwritten digits, two CPU cores.
# Needs Python 3.10 to 3.12. A second run skips what is there; an interrupted one goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh requirements.txt

config=configs/quickstart/focalv2_digits.yaml
run=runs/focalv2_digits

"$PYTHON" scripts/prepare_digits.py
"$PYTHON" train.py --config "$config" train.resume=auto
for weights in raw ema; do
    [ "$run/eval_$weights.json" -nt "$run/checkpoints/best.ckpt" ] ||
        "$PYTHON" eval.py --config "$config" --weights "$weights" --json "$run/eval_$weights.json"
done
[ "$run/focalv2_digits.mindir" -nt "$run/checkpoints/best.ckpt" ] ||
    "$PYTHON" export.py --config "$config" --format MINDIR --output "$run/focalv2_digits.mindir"
if [ ! "$run/prediction.json" -nt "$run/checkpoints/best.ckpt" ]; then
    images=(data/digits/val/7/*.png)
    "$PYTHON" scripts/predict.py --checkpoint "$run/checkpoints/best.ckpt" --top 1 --format json "${images[0]}" \
        > "$run/.prediction.json"
    mv "$run/.prediction.json" "$run/prediction.json"
fi
"$PYTHON" scripts/run_summary.py "$run"
