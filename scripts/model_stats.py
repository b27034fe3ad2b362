"""Count parameters, multiply-accumulates and activation memory of models: python scripts/model_stats.py [NAME ...]

It counts on the compiled graph of inference on one image (src/focal_twins/measuring/graph.py says how), and prints the
authors' own figures beside. A network that stands on a backbone goes by the name of its configuration
(configs/segmentation, configs/detection). Masks of detections are left out: a graph of its own draws them.
"""

import difflib
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))  # Python puts only scripts/ there

from focal_twins.cli import Parser, run
from focal_twins.errors import UserError

DENSE = ("segmentation", "detection")  # tasks of networks that stand on a backbone: folders of configurations


def image_size(text: str) -> tuple[int, int]:
    """Parse "224" or "224x320" into (height, width)."""
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0], sides[-1]


def network_of(name: str, size: tuple[int, int] | None):
    """Return a function that builds a network, and the size of its images: the given one, else the network's own.

    Args:
        name: a model, or a configuration of a network on a backbone.

    Raises:
        UserError: unknown name, or a size that the network cannot have.
    """
    from focal_twins.config.load import CONFIG_ROOT, ConfigError, load_config
    from focal_twins.models import ArgumentError, create_model, find_model, resolve_arguments

    configurations = [path.stem for task in DENSE for path in sorted(CONFIG_ROOT.glob(f"{task}/*.yaml"))]
    if name in configurations:
        try:
            config = load_config(name, [] if size is None else [f"backbone.img_size={list(size)}"])
        except ConfigError as error:
            raise UserError(f"{name}: {str(error).partition(': ')[2]}") from error
        assert config.backbone is not None
        return lambda: config.build_model("CPU"), pair(config.backbone.resolved()["img_size"])
    try:
        if find_model(name)[0].has_backbone:
            raise UserError(f"{name}: stands on a backbone; name a configuration, such as {configurations[0]}")
        overrides: dict[str, Any] = {} if size is None else {"img_size": list(size)}
        own = resolve_arguments(name, overrides)[1]["img_size"]
        return lambda: create_model(name, **overrides), pair(own)
    except ArgumentError as error:
        raise UserError(f"{name}: {error}") from error
    except ValueError as error:
        near = difflib.get_close_matches(name, configurations, n=1, cutoff=0.8)
        raise UserError(f"unknown model {name!r}; did you mean {near[0]}?" if near else str(error)) from error


def pair(size: int | list[int]) -> tuple[int, int]:
    """Return (height, width) of an img_size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def measure(name: str, build, size: tuple[int, int]) -> dict:
    """Count one network exactly at one image size."""
    import mindspore as ms
    import numpy as np
    from mindspore.nn.utils import no_init_parameters

    from focal_twins.measuring.graph import activation_bytes, compiled_operators, multiply_accumulates, peak_bytes
    from focal_twins.models.device_options import set_device_options

    with no_init_parameters():  # nothing runs
        model = build().set_train(False)
    # Unfolded convolutions cost the same, but also hold the patches, which belongs to the CPU and not to the model; and
    # enlarging after a convolution costs less than the convolution of the enlarged map that the published network has.
    set_device_options(model, conv_implementation="conv2d")
    image = ms.Tensor(np.zeros((1, model.in_chans, *size), np.float32))
    operators = compiled_operators(model, image)
    return {
        "model": name,
        "image_size": list(size),
        "parameters": sum(parameter.size for parameter in model.trainable_params()),
        "multiply_accumulates": multiply_accumulates(operators),
        "activation_bytes": activation_bytes(operators),
        "peak_bytes": peak_bytes(operators),
        "operators": len(operators),
    }


HEADINGS = (
    f"{'model':42} {'image':>9} | {'parameters':>11} {'MACs':>8} {'activations':>11} {'peak':>8}"
    f" | {'parameters':>10} {'MACs':>9} {'result':>6}"  # top-1, mIoU or box AP, by task
)


def row(result: dict) -> str:
    """Format one line of the table, under HEADINGS."""
    size = "x".join(map(str, result["image_size"]))
    counted = (
        f"{result['parameters']:11,} {result['multiply_accumulates'] / 1e9:6.3f} G"
        f" {result['activation_bytes'] / 1e6:8.1f} MB {result['peak_bytes'] / 1e6:5.1f} MB"
    )
    published = result["published"]
    if published is None:
        figures = f"{'-':>10} {'-':>9} {'-':>6}"
    else:
        figures = (
            f"{published['parameters']:8.1f} M {published['multiply_accumulates']:7.1f} G"
            f" {next(published[key] for key in ('top1', 'miou', 'box_ap') if key in published):5.1f}%"
        )
    return f"{result['model']:42} {size:>9} | {counted} | {figures}"


def main(arguments: list[str]) -> None:
    options = Parser(prog="model_stats.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("names", nargs="*", metavar="NAME", help="default: every published model")
    options.add_argument("--img-size", nargs="+", type=image_size, metavar="SIDE|HxW", help="default: the model's own")
    options.add_argument("--json", type=Path, metavar="FILE", help="also write exact figures and sources there")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = options.parse_args(arguments)

    from dataclasses import asdict

    import mindspore as ms

    from focal_twins.files.atomic import write_text
    from focal_twins.measuring.published import IMAGE_SIZE, PUBLISHED, PUBLISHED_DETECTORS, PUBLISHED_SEGMENTORS
    from focal_twins.models import list_models

    ms.set_device("CPU")  # the graph is the same, and counting needs no accelerator
    for name, size in product(options.names, options.img_size or [None]):
        network_of(name, size)

    print(f"{'':52} | {'counted, for one image':41} | published\n{HEADINGS}", flush=True)
    results = []
    for name, given_size in product(options.names or list_models(), options.img_size or [None]):
        try:
            build, size = network_of(name, given_size)
        except UserError as error:  # some models cannot have every size
            print(f"{name:42} {'x'.join(map(str, given_size)):>9} | {error.args[0].partition(': ')[2]}", flush=True)
            continue
        published = PUBLISHED.get(name) if size == IMAGE_SIZE else PUBLISHED_DETECTORS.get(name)
        segmentor = PUBLISHED_SEGMENTORS.get(name)
        if segmentor is not None and size == segmentor.image_size:
            published = segmentor
        results.append(measure(name, build, size) | {"published": asdict(published) if published else None})
        print(row(results[-1]), flush=True)
    if options.json:
        units = {
            "counted": "for one image, float32; definitions in src/focal_twins/measuring/graph.py",
            "published": "parameters in millions, multiply-accumulates in 10^9 (there: FLOPs), results in %",
        }
        write_text(options.json, json.dumps({"units": units, "mindspore": ms.__version__, "models": results}, indent=2))


if __name__ == "__main__":
    sys.exit(run(main, "model_stats.py"))
