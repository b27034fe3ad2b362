"""Convert weights from one file format to another and check them against a model: .pth to .ckpt and back.

focal-twins convert --input focal-tiny-is224-ws7.pth --model focal_tiny_patch4_window7_224 --output x.ckpt
focal-twins convert --to-pth --input best.ckpt --model focal_tiny_patch4_window7_224 --output x.pth

The suffix of --output is the format: .ckpt (MindSpore's), .safetensors or .pth (PyTorch's). Arguments of the model
follow as key=value, such as img_size=448 (position tables are interpolated) or num_classes=10 (the head is
initialised).
"""

from pathlib import Path

from focal_twins.cli import WEIGHTS, Parser
from focal_twins.errors import UserError


def main(arguments: list[str]) -> None:
    options = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("overrides", nargs="*", metavar="key=value", help="arguments of the model")
    options.add_argument("--input", required=True, type=Path, metavar="FILE", help=".pth, .ckpt or .safetensors")
    options.add_argument("--model", required=True, metavar="NAME", help="a published model or a family")
    options.add_argument("--output", required=True, type=Path, metavar="FILE")
    options.add_argument("--to-pth", action="store_true", help="write PyTorch's format, which the original code loads")
    options.add_argument("--weights", choices=WEIGHTS, default="auto", help="auto: EMA weights if the file has them")
    options.add_argument("--partial", action="store_true", help="convert what fits, and list what does not")
    options.add_argument("--seed", type=int, default=0, help="of what has to be initialised")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = options.parse_intermixed_args(arguments)

    import mindspore as ms

    from focal_twins.config.load import load_model_config
    from focal_twins.files.weights import PTH_SUFFIXES, load_weights, read_checkpoint, save_weights, select_weights
    from focal_twins.models import create_model

    if options.to_pth and options.output.suffix not in PTH_SUFFIXES:
        raise UserError(f"--to-pth: --output {options.output} must end in .pth")
    if options.output.exists() and options.output.samefile(options.input):
        raise UserError(f"--output {options.output}: is the input; converting would replace it")
    ms.set_device("CPU")
    ms.set_seed(options.seed)
    config = load_model_config(options.model, options.overrides)
    model = create_model(config.name, **config.arguments)
    label = f"checkpoint {options.input}"
    weights, used = select_weights(read_checkpoint(options.input), options.weights, label)
    report = load_weights(model, weights, strict=not options.partial, announce=print, label=label)
    save_weights(model, options.output)
    print(
        f"{options.input} ({used} weights) to {options.output}: {config.name}, "
        f"{report.loaded} of {report.total} tensors from the file",
        flush=True,
    )
