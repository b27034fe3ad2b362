"""Lists the weights that the authors of the models published: of which network they are, and where their files are.

Only what the places themselves say is here; no file was downloaded for this list. docs/weights.md names the sources.
"""

from dataclasses import dataclass
from typing import ClassVar

HUB = "https://huggingface.co"
DRIVE = "https://drive.google.com/file/d/{}/view"
# The authors' storage answers "Public access is not permitted" to every link of theirs.
CLOSED = "https://github.com/microsoft/Focal-Transformer/issues/24"
_FOCAL = "https://projects4jw.blob.core.windows.net/model/focal-transformer/imagenet1k"
_NOT_STATED = "not stated; the repository of the code is under {}"


@dataclass(frozen=True)
class PublishedWeights:
    """Describes one file of published weights.

    Attributes:
        name: the network's name, a dot and the data that the weights were trained on, as timm names them.
        config: the name of the configuration of the network.
        file: the file's name here.
        address: where the file is or, of a closed place, where it was.
        licence: the licence that its place states.
        size: the file's size as its place shows it; None where that is not known.
        sha256: hexadecimal checksum that its place shows; None where none is known.
        repository: the repository on the Hugging Face hub that holds it as `hub_file`; None elsewhere.
        is_closed: the address gives nobody the file any more.
    """

    name: str
    config: str
    file: str
    address: str
    licence: str
    size: str | None = None
    sha256: str | None = None
    repository: str | None = None
    is_closed: bool = False

    hub_file: ClassVar[str] = "model.safetensors"


def _on_the_hub(model: str, size: str | None, sha256: str | None) -> PublishedWeights:
    repository = f"timm/{model}.in1k"
    return PublishedWeights(
        name=f"{model}.in1k",
        config=model,
        file=f"{model}.in1k.safetensors",
        address=f"{HUB}/{repository}",
        licence="Apache-2.0",
        size=size,
        sha256=sha256,
        repository=repository,
    )


def _segmentor(model: str, drive_id: str) -> PublishedWeights:
    name, config = f"upernet_{model}.ade20k", f"upernet_{model}_ade20k"
    return PublishedWeights(name, config, f"{name}.pth", DRIVE.format(drive_id), _NOT_STATED.format("Apache-2.0"))


def _focal(model: str, file: str) -> PublishedWeights:
    licence = _NOT_STATED.format("MIT")
    return PublishedWeights(f"{model}.in1k", model, file, f"{_FOCAL}/{file}", licence, is_closed=True)


PUBLISHED_WEIGHTS: dict[str, PublishedWeights] = {
    weights.name: weights
    for weights in (
        _on_the_hub("twins_pcpvt_small", "96.5 MB", None),
        _on_the_hub("twins_pcpvt_base", "175 MB", "5722f0d29662fd5ff69a21701caaf5feebd1d657adb62391a75798c43b37760f"),
        _on_the_hub("twins_pcpvt_large", "244 MB", "423acdd738d41f7ed50bbafbfbf3e50f6ea098b5704bb749a969f1992ddd84c3"),
        _on_the_hub("twins_svt_small", "96.3 MB", "46e4bd7b30ae9ae3f2e9ec4fb669439c5f9676c6bc787687923424d704a06c1a"),
        _on_the_hub("twins_svt_base", None, None),
        _on_the_hub("twins_svt_large", "397 MB", "2fbe754f6e595bd07294f381302e0b3f1d449176977e35e4f30200fe4f3bcf97"),
        _segmentor("twins_pcpvt_small", "1PkkBULZZUhIkFKq_D9db1DXUIHwIPlvp"),
        _segmentor("twins_pcpvt_base", "16sCd0slLLz6xt3C2ma3TkS9rpMS9eezT"),
        _segmentor("twins_pcpvt_large", "1wsU9riWBiN22fyfsJCHDFhLyP2c_n8sk"),
        _segmentor("twins_svt_small", "18OhG0sbAJ5okPj0zn-8YTydKG9jS8TUx"),
        _segmentor("twins_svt_base", "1LNtdvACihmKO6XyBPoJDxbrd6AuHVVvq"),
        _segmentor("twins_svt_large", "1xS91hytfzuMZ5Rgb-W-cOJ9G7ptjVwlO"),
        _focal("focal_tiny_patch4_window7_224", "focal-tiny-is224-ws7.pth"),
        _focal("focal_tiny_useconv_patch4_window7_224", "focal-tiny-useconv-is224-ws7.pth"),
        _focal("focal_small_patch4_window7_224", "focal-small-is224-ws7.pth"),
        _focal("focal_small_useconv_patch4_window7_224", "focal-small-useconv-is224-ws7.pth"),
        _focal("focal_base_patch4_window7_224", "focal-base-is224-ws7.pth"),
        _focal("focal_base_useconv_patch4_window7_224", "focal-base-useconv-is224-ws7.pth"),
        _focal("focalv2_tiny_useconv_patch4_window7_224", "focalv2-tiny-useconv-is224-ws7.pth"),
        _focal("focalv2_small_useconv_patch4_window7_224", "focalv2-small-useconv-is224-ws7.pth"),
        _focal("focalv2_base_useconv_patch4_window7_224", "focalv2-base-useconv-is224-ws7.pth"),
    )
}
