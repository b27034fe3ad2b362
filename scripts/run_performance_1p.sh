#!/usr/bin/env bash
# Images per second of training on one device, from updates 11 to 20:
# bash scripts/run_performance_1p.sh --data_path=FOLDER [--cfg=NAME] [--batch_size=N] [--output=FOLDER]
set -euo pipefail
source "$(dirname "$0")/launch.sh"
performance 1 "$@"
