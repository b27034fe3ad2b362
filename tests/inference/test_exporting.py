"""Exported files against the checkpoints that they were made of, run by the runtimes that users have."""

import hashlib
import json
import shutil

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import save_file

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.weights import official_names
from focal_twins.inference import export as exporting
from focal_twins.inference.export import export_checkpoint, exportable, verify
from focal_twins.inference.exported import ExportedModel, description_path
from focal_twins.inference.onnx_files import make_expressible, write_onnx
from focal_twins.models import create_model
from focal_twins.models.device_options import set_device_options
from focal_twins.tasks.find_task import create_task
from focal_twins.tasks.task import Signature, TensorSpec
from tests.models.test_training_options import FAMILIES
from tests.reference import images
from tests.trained import with_formula_weights


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    """For each family: its configuration, a file with its weights, and its model."""
    folder = tmp_path_factory.mktemp(request.param)
    config_file = folder / "small.yaml"
    model = {"name": request.param, **FAMILIES[request.param]}
    config_file.write_text(
        json.dumps({"model": model, "data": {"path": str(folder), "mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    config = load_config(config_file)
    network = with_formula_weights(config.build_model("CPU"))
    weights = {name: np.ascontiguousarray(p.asnumpy()) for name, p in official_names(network).items()}
    save_file(weights, folder / "small.safetensors")
    return config, folder / "small.safetensors", network


# What has nothing to do with the network is shown by one.
of_one_family = pytest.mark.parametrize("trained", ["focalv2"], indirect=True)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The MINDIR file of a family's network, for any batch."""
    config, checkpoint, _ = trained
    path = tmp_path_factory.mktemp("exported") / "x"
    return export_checkpoint(config, Dist(), checkpoint, output=path, batch_size=None)


@pytest.fixture
def mindir(exported, tmp_path):
    """A copy of it, with the description beside it, and nothing else in its folder."""
    for file in (exported, description_path(exported)):
        shutil.copy(file, tmp_path)
    return tmp_path / exported.name


def assert_equal_logits(run, network):
    """In batches of any size, within 1e-4 of the largest logit."""
    for batch in (1, 3, 8):
        x = images((batch, 3, 32, 32))
        expected = network(Tensor(x)).asnumpy()
        np.testing.assert_allclose(run(x), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_mindir_for_any_batch(trained, exported):
    network = trained[2]
    cell = nn.GraphCell(ms.load(str(exported)))
    assert_equal_logits(lambda x: cell(Tensor(x)).asnumpy(), network)
    assert exported.stat().st_mode & 0o444 == 0o444  # readable by those whom the umask lets, not by the owner alone


def test_onnx_for_any_batch(trained, tmp_path, capsys):
    config, checkpoint, network = trained
    path = export_checkpoint(config, Dist(), checkpoint, "auto", "ONNX", tmp_path / "x.onnx", batch_size=None)
    assert "verified on random input (no validation images here), 1 and 3 at a time" in capsys.readouterr().out
    content = onnx.load(path)
    onnx.checker.check_model(content, full_check=True)
    session = onnxruntime.InferenceSession(path)
    assert_equal_logits(lambda x: session.run(["logits"], {"images": x})[0], network)
    for entry in (*content.graph.input, *content.graph.output):
        assert entry.type.tensor_type.shape.dim[0].dim_param == "batch"
    # What computes position biases is gone from the file, and they are there.
    named = {entry.name for entry in content.graph.initializer}
    assert not [name for name in named if "coord2rpb" in name or "relative_position" in name]
    assert len(content.graph.input) == 1


@of_one_family
def test_onnx_for_one_batch_size(trained, tmp_path):
    config, checkpoint, network = trained
    path = export_checkpoint(config, Dist(), checkpoint, "raw", "ONNX", tmp_path / "two.onnx", batch_size=2)
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == [2, 3, 32, 32]
    x = images((2, 3, 32, 32))
    np.testing.assert_allclose(session.run(None, {"images": x})[0], network(Tensor(x)).asnumpy(), atol=1e-5)
    assert ExportedModel(path).batch_size == 2


@of_one_family
def test_exported_files_are_timed_in_turns(trained, mindir, tmp_path, run_script):
    config, checkpoint, _ = trained
    onnx_file = export_checkpoint(config, Dist(), checkpoint, "raw", "ONNX", tmp_path / "y.onnx", batch_size=2)
    flags = ["--repeats", "2", "--warmup", "0", "--batch-size", "2", "--json", tmp_path / "turns.json"]
    code, out, err = run_script("scripts/benchmark.py", "--exported", onnx_file, mindir, *flags)
    assert (code, err) == (0, "")
    first, second = json.loads((tmp_path / "turns.json").read_text())
    assert [first["runtime"], second["runtime"]] == ["onnxruntime", "MindSpore"]
    assert first["images"] == second["images"] == [2, 3, 32, 32]
    assert (first["threads"], first["processors"]) == (second["threads"], second["processors"])
    for line, result in zip(out.splitlines()[2:], (first, second), strict=False):
        assert 0 < result["fastest_seconds"] <= result["median_seconds"] <= result["slowest_seconds"]
        assert f"| {result['median_seconds'] * 1e3:.1f} ms (" in line
    code, out, err = run_script("scripts/benchmark.py", "--exported", onnx_file, "--batch-size", "3")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "--batch-size 3: " in err and "takes 2 at a time" in err


@of_one_family
def test_the_description_is_of_the_file(trained, mindir):
    config, checkpoint, _ = trained
    described = json.loads(description_path(mindir).read_text())
    assert described["sha256"] == hashlib.sha256(mindir.read_bytes()).hexdigest()
    assert described["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert described["checkpoint"]["weights"] == "raw"
    assert described["input"] == {"name": "images", "shape": [None, 3, 32, 32], "dtype": "float32"}
    assert described["output"]["shape"] == [None, 5]
    preprocessing = described["preprocessing"]
    assert (preprocessing["resize"], preprocessing["size"]) == ([36, 36], [32, 32])  # floor(32 / 0.875)
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.5] * 3, [0.25] * 3)
    assert described["configuration"] == config.to_dict()
    mindir.write_bytes(mindir.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"not the file that x\.mindir\.json describes"):
        ExportedModel(mindir)
    description_path(mindir).unlink()
    with pytest.raises(UserError, match="which tells its preprocessing, is not beside it"):
        ExportedModel(mindir)


def test_folding_fixes_the_bias_of_the_present_weights(trained):
    config, _, network = trained
    x = Tensor(images((2, 3, 32, 32)))
    copy = exportable(config, network, "CPU", "MINDIR")
    biases = [p for p in copy.get_parameters() if "coord2rpb" in p.name or "relative_position" in p.name]
    assert bool(biases) == (config.model.name != "twins")
    for parameter in biases:
        parameter.set_data(Tensor(np.full(parameter.shape, 7, np.float32)))
    np.testing.assert_allclose(copy(x).asnumpy(), network(x).asnumpy(), atol=1e-5)


@of_one_family
def test_a_file_of_other_weights_is_refused_and_leaves_no_trace(trained, mindir, monkeypatch):
    config, checkpoint, _ = trained
    other = config.build_model("CPU").set_train(False)
    with pytest.raises(UserError, match="differ from the checkpoint's"):
        verify(mindir, other, images((1, 3, 32, 32)), (1,))
    before = mindir.read_bytes()
    monkeypatch.setattr(exporting, "exportable", lambda *_: other)
    with pytest.raises(UserError, match="differ from the checkpoint's"):
        export_checkpoint(config, Dist(), checkpoint, output=mindir)
    assert mindir.read_bytes() == before
    assert {entry.name for entry in mindir.parent.iterdir()} == {"x.mindir", "x.mindir.json"}


@of_one_family
def test_without_the_packages_onnx_is_written_and_said_to_be_unverified(trained, tmp_path, monkeypatch, capsys):
    config, checkpoint, _ = trained
    monkeypatch.setattr("focal_twins.inference.onnx_files.find_spec", lambda name: None)
    path = export_checkpoint(config, Dist(), checkpoint, "auto", "ONNX", tmp_path / "x.onnx", batch_size=None)
    assert "written but not verified: onnx and onnxruntime not installed: pip install" in capsys.readouterr().out
    assert json.loads(description_path(path).read_text())["verified"] is None
    with pytest.raises(UserError, match="run by onnxruntime, which is not installed"):
        ExportedModel(path)


OPTIONS = {
    "padded maps, three levels": ("focal", {
        "img_size": 36, "window_size": 4, "focal_levels": [3, 2], "focal_pool": "conv",
    }),
    "every extra of v1": ("focal", {
        "use_shift": True, "ape": True, "use_layerscale": True, "use_pre_norm": True, "focal_pool": "mean",
    }),
    "v2, maximum": ("focalv2", {"focal_pool": "max", "use_conv_embed": True, "use_pre_norm": True}),
    "PCPVT": ("twins", {"wss": None}),
}  # fmt: skip


@pytest.mark.parametrize(("family", "options"), OPTIONS.values(), ids=OPTIONS.keys())
def test_onnx_says_every_option(family, options, tmp_path):
    arguments = FAMILIES[family] | options
    network = with_formula_weights(create_model(family, **arguments))
    fresh = set_device_options(with_formula_weights(create_model(family, **arguments)), conv_implementation="conv2d")
    make_expressible(fresh)
    path, inputs = tmp_path / "x.onnx", (None, 3, *network.img_size)
    write_onnx(fresh, path, Signature((TensorSpec("images", inputs),), (TensorSpec("logits", (None, 5)),)))
    session = onnxruntime.InferenceSession(path)
    for batch in (2, 3):
        x = images((batch, 3, *network.img_size))
        expected = network(Tensor(x)).asnumpy()
        got = session.run(None, {"images": x})[0]
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_sample_inputs_are_those_of_evaluation(digits):
    """Bit for bit what the input pipeline gives evaluation."""
    from focal_twins.data.open_images import open_images
    from focal_twins.data.pipeline import EvalBatches, UnreadableImages

    config = load_config("focalv2_digits", [f"data.path={digits}"])
    model = config.build_model("CPU")
    found = open_images(digits, "val")
    task = create_task(config)
    samples = task.eval_samples(model, found, UnreadableImages(digits / "unreadable.txt"))
    batches = EvalBatches(found, samples, batch_size=60)
    evaluated = np.concatenate([batch[0] for batch in batches])
    first = [int(np.flatnonzero(found.labels == label)[0]) for label in range(10)]
    sampled, source = task.sample_inputs(model, 10)
    assert source == "validation images"
    np.testing.assert_array_equal(sampled, evaluated[first])
