"""Pack images into MindRecord files: %(prog)s data/imagenet train val --output data/packed

Afterwards, data.path=data/packed reads the same images as data/imagenet. The command decodes every image once before it
packs it (unreadable ones are left out and named), and reads every file back. An interrupted packing goes on where it
was cut; files that are there and whole are not made again.
"""

from pathlib import Path

from focal_twins.cli import Parser


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("data_path", help="folder that holds the images as data.path does")
    parser.add_argument("names", nargs="+", metavar="NAME", help="what to pack, such as train and val")
    parser.add_argument("--output", required=True, help="folder of the MindRecord files")
    parser.add_argument("--images-per-file", type=int, default=10000)
    parser.add_argument("--max-pixels", type=int, help="data.max_pixels of the runs that will read them")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one per core)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = parser.parse_args(arguments)

    from focal_twins.data.decoding import MAX_PIXELS
    from focal_twins.data.mindrecord_images import MindRecordImages
    from focal_twins.data.pack_mindrecord import make_mindrecord

    classes = None
    for name in options.names:
        index = make_mindrecord(
            Path(options.data_path),
            name,
            Path(options.output),
            options.images_per_file,
            options.workers,
            classes,
            MAX_PIXELS if options.max_pixels is None else options.max_pixels,
        )
        classes = MindRecordImages.open(index).classes
        print(f"made {index}", flush=True)
