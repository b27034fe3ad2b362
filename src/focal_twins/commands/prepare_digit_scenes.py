"""Write scenes of handwritten digits for segmentation and detection: %(prog)s [--output data/digit_scenes]

Nothing is downloaded. data/digit_scenes.py says what the scenes are made of, data/digit_scene_files.py how they are
stored. The same options give the same files. A folder that is already whole is left alone.
"""

from dataclasses import replace
from pathlib import Path

from focal_twins.cli import Parser
from focal_twins.data.digit_scene_files import is_whole, write_scenes
from focal_twins.data.digit_scenes import SPLITS, Recipe
from focal_twins.errors import UserError


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    default = Recipe()
    parser.add_argument("--output", type=Path, default=Path("data/digit_scenes"), metavar="FOLDER")
    for split in SPLITS:
        number = getattr(default, split)
        parser.add_argument(f"--{split}", type=int, default=number, metavar="N", help=f"number of scenes ({number})")
    parser.add_argument("--size", type=int, default=default.size, metavar="PIXELS", help=f"side ({default.size})")
    parser.add_argument("--seed", type=int, default=default.seed, help=f"of all that is drawn ({default.seed})")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    for name, least in (("training", 1), ("validation", 1), ("size", 48), ("seed", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least {least}")
    recipe = replace(default, **{name: getattr(options, name) for name in ("training", "validation", "size", "seed")})
    output = options.output
    if is_whole(output, recipe):
        print(f"{output}: {recipe.training} training and {recipe.validation} validation scenes are there already")
        return
    own = {"images", "annotations", "classes.txt"}
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= own):
        raise UserError(f"{output} holds something else; name another folder with --output")
    try:
        written = write_scenes(output, recipe)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    print(f"{output}: wrote {' and '.join(written)}")
