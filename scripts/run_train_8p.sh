#!/usr/bin/env bash
# Trains on eight devices (RANKS: another number), the batch size being that of each:
# bash scripts/run_train_8p.sh --data-path FOLDER [--cfg NAME] [--batch-size N] [--stop_step N] [section.key=value ...]
set -euo pipefail
source "$(dirname "$0")/launch.sh"
train "${RANKS:-8}" "$@"
