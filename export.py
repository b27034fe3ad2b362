"""Export a checkpoint: python export.py --config X --checkpoint C --format MINDIR --output model.mindir"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from focal_twins.cli import configuration, inference_parser, parse, run, with_local_data
from focal_twins.distributed.launch import check_device_num


def main(arguments: list[str]) -> None:
    options = inference_parser("export.py", __doc__)
    options.add_argument("--format", default="MINDIR", type=str.upper, choices=("MINDIR", "AIR", "ONNX"))
    options.add_argument(
        "--output", metavar="FILE", help="default: beside the run's checkpoints, by the name of the configuration"
    )
    options.add_argument(
        "--outputs",
        metavar="WHAT",
        help="segmentation: logits (as the network gives them), full_size (logits of every pixel) or labels; "
        "detection: candidates (boxes and scores of classes) or detections (selected among them)",
    )
    batch = options.add_mutually_exclusive_group()
    batch.add_argument("--batch_size", type=int, default=1, help="images per call of the exported model (1)")
    batch.add_argument("--dynamic-batch", action="store_true", help="any number of images per call (MINDIR, ONNX)")
    options = parse(options, arguments)

    from focal_twins.distributed.ranks import start
    from focal_twins.inference.export import export_checkpoint

    check_device_num(options.device_num, "export.py", arguments)
    config = configuration(options)
    dist = start(config)
    export_checkpoint(
        with_local_data(config, options),
        dist,
        options.checkpoint,
        options.weights,
        options.format,
        options.output,
        None if options.dynamic_batch else options.batch_size,
        options.outputs,
    )


if __name__ == "__main__":
    sys.exit(run(main, "export.py"))
