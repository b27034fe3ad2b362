"""Draw what a layer attends to in an image: %(prog)s --checkpoint C IMAGE --output FOLDER

It draws, for one window of queries (or one query), the focal region at each granularity, the attention on it, and
Grad-CAM for the predicted class, as PNG files and a page (index.html) with all of them. It works for Focal v1 and v2;
for Twins it draws the windows and the subsampled map.
"""

from pathlib import Path

from focal_twins.cli import WEIGHTS, Parser
from focal_twins.errors import UserError
from focal_twins.phrases import counted

CAM_TOKENS = 6  # a map for Grad-CAM should have that many tokens on a side


def pair(text: str) -> tuple[float, float]:
    """Parse two numbers with a comma between."""
    first, second = map(float, text.split(","))
    return first, second


def window(text: str) -> tuple[int, int]:
    """Parse two whole numbers with a comma between."""
    first, second = map(int, text.split(","))
    return first, second


def head(text: str) -> int | None:
    """Parse a number, or "mean" as None."""
    return None if text == "mean" else int(text)


def place(text: str):
    """Parse STAGE.BLOCK; argparse shows the user this function's name."""
    from focal_twins.explaining.attention_maps import BlockAddress

    return BlockAddress.parse(text)


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=".ckpt, .pth or .safetensors")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--layer", type=place, metavar="STAGE.BLOCK", help="from 0.0 (default: the first stage's last)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--window", type=window, metavar="ROW,COL", help="of the layer's windows, from 0,0")
    where.add_argument("--point", type=pair, metavar="X,Y", help="one query: a point in pixels of the image file")
    parser.add_argument("--head", type=head, metavar="mean|N", help="attention of all heads (mean, default) or of one")
    parser.add_argument(
        "--cam",
        type=place,
        metavar="STAGE.BLOCK",
        help=f"where Grad-CAM looks (default: the last block of the last stage of {CAM_TOKENS} tokens a side or more)",
    )
    parser.add_argument("--class", dest="label", metavar="NAME|N", help="of Grad-CAM (default: the predicted class)")
    parser.add_argument("--config", metavar="NAME", help="of weights that come without a configuration")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="configuration values")
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help="auto: EMA weights if the file has them")
    parser.add_argument("--device_target", choices=("auto", "CPU", "Ascend"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = parser.parse_intermixed_args(arguments)

    from focal_twins.config.task_sections import DEFAULT_TASK
    from focal_twins.data.decoding import UnreadableImage
    from focal_twins.data.transforms import Preprocessing
    from focal_twins.explaining.attention_maps import BlockAddress, grad_cam, observe, token_at, view
    from focal_twins.explaining.attention_pictures import pictures, write_pictures
    from focal_twins.inference.exported import RUNNABLE
    from focal_twins.inference.trained import open_checkpoint
    from focal_twins.tasks.classification.predictor import Prediction, softmax

    if Path(options.checkpoint).suffix.lower() in RUNNABLE:
        raise UserError(f"model {options.checkpoint}: an exported file keeps its attention inside; give a checkpoint")
    trained = open_checkpoint(
        options.checkpoint,
        options.config,
        [*options.set, "runtime.mode=pynative"],
        options.weights,
        options.device_target,
    )
    if trained.config.task != DEFAULT_TASK:
        raise UserError(
            f"checkpoint {options.checkpoint}: is a model of {trained.config.task}; attention is shown of classifiers"
        )
    model, preprocessing = trained.network, Preprocessing.from_dict(trained.preprocessing)
    try:
        array = preprocessing.read(options.image)
    except (UnreadableImage, OSError) as error:
        raise UserError(f"image {options.image}: cannot be read ({error})") from error
    pixels = preprocessing.transform(array)

    layer = options.layer or BlockAddress(0, model.depths[0] - 1)
    layer.of(model)
    large = [stage for stage in range(len(model.depths)) if min(model.stage_map(stage)) >= CAM_TOKENS] or [0]
    cam = options.cam or BlockAddress(large[-1], model.depths[large[-1]] - 1)
    token = None
    if options.point is not None:
        height, width = array.shape[:2]
        point = preprocessing.transform.position(options.point, (height, width))
        if point is None:
            left, top, right, bottom = preprocessing.transform.visible_box((height, width))
            raise UserError(
                f"--point {options.point[0]:g},{options.point[1]:g}: outside of what the model sees of the image, "
                f"x from {left:g} to {right:g} and y from {top:g} to {bottom:g}"
            )
        token = token_at(point, model.img_size, model.stage_map(layer.stage))
    names = trained.classes or tuple(f"class {index}" for index in range(model.num_classes))
    seen = observe(
        model, preprocessing.normalise(pixels[None]), layer, cam, chosen_class(options.label, trained.classes, names)
    )
    shown = view(model, layer, seen.inputs, options.window, token, options.head)
    heat = grad_cam(seen, model.stage_map(cam.stage))
    made = pictures(pixels, shown, heat, cam, names[seen.label], options.head)
    best = [(names[index], p) for index, p in Prediction(options.image, softmax(seen.logits)).top(5)]
    title = f"{Path(options.image).name}: layer {layer} of {trained.config.name}"
    write_pictures(options.output, title, shown.kind, made, best)

    classes = ", ".join(f"{name} {p:.1%}" for name, p in best[:3])
    print(f"{options.image}: {classes}", flush=True)
    for group in shown.groups:
        print(f"layer {layer}, {group.name}: {counted(len(group.covers), 'key')}, {group.share():.1%} of the attention")
    print(f"{len(made)} pictures in {options.output}; open {options.output / 'index.html'}", flush=True)


def chosen_class(label: str | None, classes: tuple[str, ...] | None, names: tuple[str, ...]) -> int | None:
    """Return the output that a class's name or number stands for.

    Raises:
        UserError: it stands for none.
    """
    if label is None:
        return None
    if classes is not None and label in classes:
        return classes.index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise UserError(f"--class {label}: neither a class of the model nor a number below {len(names)}")
