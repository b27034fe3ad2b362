"""What the configuration of a published result has to say of itself."""

from pathlib import Path


def comment_of(path: Path) -> str:
    """The comments of a configuration, on one line."""
    return " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))


def assert_says_what_it_is(path: Path, published: str) -> None:
    """The command, parameters, the published figure or that there is none, and that nothing was trained here."""
    comment = comment_of(path)
    assert f"--config configs/{path.parent.name}/{path.name}" in comment
    assert "trained here" in comment
    assert published in comment or "no result was published" in comment
    assert " M parameters" in comment
