#!/usr/bin/env bash
# Trains on one device:
# bash scripts/run_train_1p.sh --data-path FOLDER [--cfg NAME] [--batch-size N] [--stop_step N] [section.key=value ...]
set -euo pipefail
source "$(dirname "$0")/launch.sh"
train 1 "$@"
