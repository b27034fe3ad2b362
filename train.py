"""Train a model: python train.py --config configs/quickstart/focalv2_digits.yaml [section.key=value ...]"""

import sys

from src.cli import boolean, configuration, parser, run


def main(arguments: list[str]) -> None:
    options = parser("train.py", __doc__)
    options.add_argument("--pretrained", metavar="FILE", help="weights to start from (train.pretrained)")
    options.add_argument(
        "--train_url", metavar="PATH", help="folder of the run; with --run_openi, where it is copied to"
    )
    options.add_argument(
        "--run_openi",
        nargs="?",
        const=True,
        default=False,
        type=boolean,
        help="copy the data from --data_url to local disk first and the run to --train_url afterwards",
    )
    options = options.parse_args(arguments)

    from src.distributed import check_device_num, start
    from src.staging import stage_in, stage_out
    from src.training.trainer import Trainer

    check_device_num(options.device_num, "train.py", arguments)
    output = None if options.run_openi else options.train_url
    config = configuration(options, train__pretrained=options.pretrained, runtime__output=output)
    if options.run_openi:
        config = config.with_data_path(stage_in(config.data.path))
    dist = start(config.runtime)
    Trainer(config, dist).run()
    if options.run_openi and options.train_url and dist.is_main:
        stage_out(config.output, options.train_url)


if __name__ == "__main__":
    sys.exit(run(main, "train.py"))
