"""Convert weights from one file format to another and check them against a model: .pth to .ckpt and back.

focal-twins convert --input focal-tiny-is224-ws7.pth --model focal_tiny_patch4_window7_224 --output x.ckpt
focal-twins convert --to-pth --input runs/NAME/checkpoints/best.ckpt --output x.pth

The suffix of --output is the format: .ckpt (MindSpore's), .safetensors or .pth (PyTorch's). A checkpoint that was
trained here knows its model. Files of others need --model NAME or, for networks of segmentation and detection,
--config NAME. Arguments of the model follow as key=value, such as img_size=448 (position tables are interpolated) or
num_classes=10 (the head is initialised).
"""

from pathlib import Path

from focal_twins.cli import WEIGHTS, Parser
from focal_twins.errors import UserError


def main(arguments: list[str]) -> None:
    options = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("overrides", nargs="*", metavar="key=value", help="arguments of the model")
    options.add_argument("--input", required=True, type=Path, metavar="FILE", help=".pth, .ckpt or .safetensors")
    network = options.add_mutually_exclusive_group()
    network.add_argument("--model", metavar="NAME", help="a published model or a family; default: the file's own")
    network.add_argument("--config", metavar="NAME", help="a configuration, in place of --model")
    options.add_argument("--output", required=True, type=Path, metavar="FILE")
    options.add_argument("--to-pth", action="store_true", help="write PyTorch's format, which the original code loads")
    options.add_argument("--weights", choices=WEIGHTS, default="auto", help="auto: EMA weights if the file has them")
    options.add_argument("--partial", action="store_true", help="convert what fits, and list what does not")
    options.add_argument("--seed", type=int, default=0, help="of what has to be initialised")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = options.parse_intermixed_args(arguments)

    import mindspore as ms

    from focal_twins.files.weights import (
        CLASSES,
        CONFIG,
        PTH_SUFFIXES,
        load_weights,
        read_checkpoint,
        save_weights,
        select_weights,
    )

    if options.to_pth and options.output.suffix not in PTH_SUFFIXES:
        raise UserError(f"--to-pth: --output {options.output} must end in .pth")
    if options.output.exists() and options.output.samefile(options.input):
        raise UserError(f"--output {options.output}: is the input; converting would replace it")
    ms.set_device("CPU")
    ms.set_seed(options.seed)
    label = f"checkpoint {options.input}"
    content = read_checkpoint(options.input)
    name, model, config = build(options, str(content[CONFIG]) if CONFIG in content else None)
    weights, used = select_weights(content, options.weights, label)
    report = load_weights(model, weights, strict=not options.partial, announce=print, label=label)
    # What was trained here stays a checkpoint that names its configuration and, with all rows of its head, its classes.
    texts = {} if config is None else {CONFIG: config.to_yaml()}
    if config is not None and CLASSES in content and not report.reset:
        texts[CLASSES] = str(content[CLASSES])
    save_weights(model, options.output, texts)
    print(
        f"{options.input} ({used} weights) to {options.output}: {name}, "
        f"{report.loaded} of {report.total} tensors from the file",
        flush=True,
    )


def build(options, saved: str | None):
    """Build the network of --model or --config or, without these, that of the configuration in the file.

    Returns:
        The network's name, the network, and its configuration: None for --model.

    Raises:
        UserError: none of the three is there.
    """
    from focal_twins.config.load import load_config, load_model_config, parse_config
    from focal_twins.files.download import find_published
    from focal_twins.models import create_model

    if options.model is not None:
        named = load_model_config(options.model, options.overrides)
        return named.name, create_model(named.name, **named.arguments), None
    overrides = [text if "." in text.partition("=")[0] else f"model.{text}" for text in options.overrides]
    if options.config is not None:
        config = load_config(options.config, overrides)
    elif saved is not None:
        config = parse_config(saved, options.input, overrides)
    elif published := find_published(options.input):
        config = load_config(published.config, overrides)
    else:
        raise UserError(
            f"checkpoint {options.input}: holds weights without their configuration; name the network with --model "
            "NAME or --config NAME"
        )
    return config.model.name, config.build_model("CPU"), config
