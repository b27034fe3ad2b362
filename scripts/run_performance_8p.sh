#!/usr/bin/env bash
# Images per second of training on eight devices together (RANKS: another number), from updates 11 to 20:
# bash scripts/run_performance_8p.sh --data_path=FOLDER [--cfg=NAME] [--batch_size=N] [--output=FOLDER]
set -euo pipefail
source "$(dirname "$0")/launch.sh"
performance "${RANKS:-8}" "$@"
