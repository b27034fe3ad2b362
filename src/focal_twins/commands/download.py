"""Download published weights by name: focal-twins download twins_svt_small.in1k

Without a name it lists the published weights: where their files are, how large they are, and which are here already.
Files of the Hugging Face hub are downloaded (by the package huggingface_hub), checked against the published checksum
and put into the folder weights, where training, evaluation and prediction find them by the same name. For files that
are elsewhere it says how to get them.
"""

from pathlib import Path

from focal_twins.cli import Parser
from focal_twins.errors import UserError


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of published weights; none: list them")
    parser.add_argument("--folder", type=Path, help="where to put the files (weights)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)

    from focal_twins.files.download import FOLDER, check, download, locate

    folder = options.folder or FOLDER
    if not options.names:
        show_list(folder)
    for name in options.names:
        path, weights = locate(name, folder)
        if weights is None:
            raise UserError(f"{name}: no published weights of this name; without a name, the script lists them")
        if path.is_file():
            check(weights, path)
            print(f"{weights.name}: {path} is here already")
            continue
        if weights.repository is not None:
            print(f"{weights.name}: downloading {weights.address} ({weights.size or 'size not known'})", flush=True)
        download(weights, path)
        checked = "its checksum is the published one" if weights.sha256 else "no checksum of it was published"
        print(f"{weights.name}: {path} ({checked})")


def show_list(folder: Path) -> None:
    """Print a line for each file of published weights."""
    from focal_twins.files.published_weights import PUBLISHED_WEIGHTS

    for weights in PUBLISHED_WEIGHTS.values():
        if (folder / weights.file).is_file():
            where = f"here: {folder / weights.file}"
        elif weights.repository is not None:
            where = f"{weights.address}, {weights.size or 'size not known'}"
        else:
            where = f"{'link closed' if weights.is_closed else 'by browser'}: {weights.address}"
        print(f"{weights.name:<48}{where}")
