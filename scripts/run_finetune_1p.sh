#!/usr/bin/env bash
# Fine-tunes weights (.ckpt, .pth or .safetensors) on the classes of a folder:
# bash scripts/run_finetune_1p.sh --data_path=FOLDER --finetune_model=FILE [--cfg=NAME] [section.key=value ...]
set -euo pipefail
source "$(dirname "$0")/launch.sh"
cfg=focalv2_tiny_useconv_folder_224 data_path= finetune_model=
options "cfg data_path finetune_model" "$@"
[ -n "$data_path" ] || fail "--data_path=FOLDER is needed, the folder with train/ and val/"
[ -n "$finetune_model" ] || fail "--finetune_model=FILE is needed, the weights to start from"
[ -d "$data_path/train" ] || fail "--data_path $data_path: holds no train folder"
classes=$(find "$data_path/train" -mindepth 1 -maxdepth 1 -type d -not -name '.*' | wc -l)
launch 1 train.py --config "$cfg" "data.path=$data_path" "train.pretrained=$finetune_model" \
    "model.num_classes=$classes" "${rest[@]}"
