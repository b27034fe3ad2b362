"""Evaluate a checkpoint or an exported file: %(prog)s --config X [--checkpoint C] (without C, the run's best)."""

from focal_twins.cli import configuration, make_inference_parser, parse, with_local_data
from focal_twins.distributed.launch import check_device_num


def main(arguments: list[str]) -> None:
    parser = make_inference_parser(__doc__)
    parser.add_argument(
        "--json", metavar="FILE", help="the report; default: in the run's folder, or beside a lone checkpoint"
    )
    options = parse(parser, arguments)

    from focal_twins.distributed.ranks import start
    from focal_twins.inference.evaluate import evaluate_checkpoint

    check_device_num(options.device_num, parser.prog, arguments)
    config = configuration(options)
    dist = start(config)
    evaluate_checkpoint(with_local_data(config, options), dist, options.checkpoint, options.weights, options.json)
