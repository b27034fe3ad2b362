#!/usr/bin/env bash
# Evaluates a checkpoint on one device:
# bash scripts/run_eval.sh --data-path FOLDER --checkpoint FILE [--cfg NAME] [--weights raw|ema] [section.key=value ...]
set -euo pipefail
source "$(dirname "$0")/launch.sh"
cfg=focalv2_small_useconv_patch4_window7_224 data_path= checkpoint= weights=auto
options "cfg data_path checkpoint weights" "$@"
launch 1 eval.py --config "$cfg" --weights "$weights" ${checkpoint:+--checkpoint "$checkpoint"} \
    ${data_path:+"data.path=$data_path"} "${rest[@]}"
