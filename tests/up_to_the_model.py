"""Stands in for python, mpirun and msrun in commands that need data or devices that are not here.

Named `python`, it runs train.py, eval.py or export.py until the configuration is resolved, builds the model, loads the
weights that training would start from, and notes its name in the file $BUILT. Other scripts of the command come after
that and are passed over; `-c` runs. Named `mpirun` or `msrun`, it becomes the main rank.
"""

import os
import runpy
import sys
from pathlib import Path

ENTRY_POINTS = ("train.py", "eval.py", "export.py")


def build_only() -> None:
    """Have every entry point end where it would begin to compute."""
    import focal_twins.distributed.ranks

    def start(config):
        from focal_twins.files.download import locate
        from focal_twins.files.weights import load_weights

        model = config.build_model("CPU")
        if config.train.pretrained and sys.argv[0] == "train.py":
            path, published = locate(config.train.pretrained)
            if published is None:  # a file; published weights would have to be downloaded
                load_weights(model, path)
        with open(os.environ["BUILT"], "a", encoding="utf-8") as built:
            built.write(f"{config.model.name}\n")
        sys.exit(0)

    focal_twins.distributed.ranks.start = start


def python(arguments: list[str]) -> None:
    if arguments[0] == "-c":
        os.execv(sys.executable, [sys.executable, *arguments])
    if arguments[0] in ENTRY_POINTS:
        sys.argv = arguments
        sys.path.insert(0, str(Path("src").resolve()))
        build_only()
        runpy.run_path(arguments[0], run_name="__main__")


def mpirun(arguments: list[str]) -> None:
    while arguments[0].startswith("-"):
        flag, value, *arguments = arguments
        if flag == "-n":
            os.environ.update(OMPI_COMM_WORLD_SIZE=value, OMPI_COMM_WORLD_RANK="0")
        elif flag != "--hostfile" or not Path(value).is_file():
            sys.exit(f"mpirun: {flag} {value}: not known here")
    if Path(arguments.pop(0)).name != "python":
        sys.exit("mpirun: runs no python")
    python(arguments)


def msrun(arguments: list[str]) -> None:
    while arguments[0].startswith("--"):
        flag = arguments.pop(0).partition("=")[0]
        known = ("--worker_num", "--local_worker_num", "--join", "--master_addr", "--master_port", "--node_rank")
        if flag not in known:
            sys.exit(f"msrun: {flag}: not known here")
    python(arguments)


if __name__ == "__main__":
    {"python": python, "mpirun": mpirun, "msrun": msrun}[sys.argv[1]](sys.argv[2:])
