"""Export a checkpoint: %(prog)s --config X --checkpoint C --format MINDIR --output model.mindir"""

from focal_twins.cli import configuration, make_inference_parser, parse, with_local_data
from focal_twins.distributed.launch import check_device_num


def main(arguments: list[str]) -> None:
    parser = make_inference_parser(__doc__)
    parser.add_argument("--format", default="MINDIR", type=str.upper, choices=("MINDIR", "AIR", "ONNX"))
    parser.add_argument(
        "--output", metavar="FILE", help="default: beside the run's checkpoints, by the name of the configuration"
    )
    parser.add_argument(
        "--outputs",
        metavar="WHAT",
        help="segmentation: logits (as the network gives them), full_size (logits of every pixel) or labels; "
        "detection: candidates (boxes and scores of classes) or detections (selected among them)",
    )
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--batch_size", type=int, default=1, help="images per call of the exported model (1)")
    batch.add_argument("--dynamic-batch", action="store_true", help="any number of images per call (MINDIR, ONNX)")
    options = parse(parser, arguments)

    from focal_twins.distributed.ranks import start
    from focal_twins.inference.export import export_checkpoint

    check_device_num(options.device_num, parser.prog, arguments)
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
