#!/usr/bin/env bash
# Exports a checkpoint:
# bash scripts/run_export.sh --checkpoint FILE [--cfg NAME] [--format MINDIR|AIR] [--output FILE] [section.key=value ...]
set -euo pipefail
source "$(dirname "$0")/launch.sh"
cfg=focalv2_small_useconv_patch4_window7_224 checkpoint= format=MINDIR output=
options "cfg checkpoint format output" "$@"
launch 1 export.py --config "$cfg" --format "$format" ${checkpoint:+--checkpoint "$checkpoint"} \
    ${output:+--output "$output"} "${rest[@]}"
