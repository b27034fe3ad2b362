"""Starting from other weights: frozen stages, rates by block, other classes and sizes; and the average beside them."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

from focal_twins.config.load import CONFIG_ROOT, ConfigError, load_config
from focal_twins.distributed.ranks import start
from focal_twins.files.weights import load_weights, read_checkpoint, select_weights
from focal_twins.models import create_model
from focal_twins.models.layers import Dropout, DropPath
from focal_twins.training.checkpoint import CheckpointError
from focal_twins.training.trainer import Trainer
from tests.conftest import DIGITS_CONFIG, ROOT, SMALL_MODEL, TOY_MODEL
from tests.models.test_training_options import FAMILIES
from tests.trained import write_digits_checkpoint

FROZEN = {
    "focal": ("patch_embed.", "absolute_pos_embed", "layers.0."),
    "focalv2": ("patch_embed.", "absolute_pos_embed", "layers.0."),
    "twins": ("patch_embeds.0.", "patch_embeds.1.", "pos_block.0.", "blocks.0."),
}


@pytest.fixture
def trainer(digits, tmp_path, shared_graphs):
    """trainer("name", overrides...) builds a run of one epoch on a network that compiles fast."""

    def build(name, *overrides, config=DIGITS_CONFIG):
        common = [f"data.path={digits}", f"runtime.output={tmp_path / name}", "train.epochs=1", "train.batch_size=96",
                  "schedule.warmup_epochs=0", "data.workers=1", shared_graphs]  # fmt: skip
        config = load_config(config, [*TOY_MODEL, *common, *overrides])
        return Trainer(config, start(config))

    return build


def tensors(path):
    return {name: value for name, value in read_checkpoint(path).items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("family", FAMILIES)
def test_freezing_takes_the_first_stages_with_what_follows_them(family):
    options = {"drop_path_rate": 0.4, "attn_drop_rate": 0.1} | ({} if family == "twins" else {"ape": True})
    model = create_model(family, **FAMILIES[family] | options)
    names = [parameter.name for parameter in model.trainable_params()]
    model.freeze(0)
    assert [parameter.name for parameter in model.trainable_params()] == names
    model.freeze(1)
    assert [p.name for p in model.trainable_params()] == [n for n in names if not n.startswith(FROZEN[family])]
    # Of two blocks and one, the last alone keeps its stochastic depth and dropout.
    assert [rate > 0 for rate in model.drop_path_rates] == [False] * 4 + [True] * 2
    for kind in (DropPath, Dropout):
        regularised = [name for name, cell in model.cells_and_names() if isinstance(cell, kind) and cell.rate]
        assert regularised
        assert all(name.startswith(("layers.1.blocks.0.", "blocks.1.0.")) for name in regularised)
    model.freeze(2)
    assert {name.split(".")[0] for name in (p.name for p in model.trainable_params())} == {"norm", "head"}


def test_frozen_weights_stay_and_travel_with_the_checkpoint(trainer, capsys):
    run = trainer("run", *SMALL_MODEL, "train.frozen_stages=1", "model.drop_path_rate=0.2")
    before = {parameter.name: parameter.asnumpy().copy() for parameter in run.model.get_parameters()}
    run.run()
    assert "frozen: the patch embedding and 1 of 2 stages" in capsys.readouterr().out
    content = tensors(run.checkpoints.last)
    for name, value in before.items():
        is_frozen = name.startswith(FROZEN["focalv2"]) or "topk" in name
        assert np.array_equal(content[name], value) == is_frozen, name
        # Neither moments nor averages of what does not change.
        for prefix in ("optimizer.moment1.", "ema."):
            assert (prefix + name in content) != is_frozen, name
    # The averaged weights are whole all the same.
    average, used = select_weights(read_checkpoint(run.checkpoints.last), "ema")
    assert (used, average.keys()) == ("ema", before.keys())
    model = run.config.build_model("CPU")
    load_weights(model, average)
    for parameter in model.get_parameters():
        source = parameter.name if parameter.name not in run_trainable(run) else "ema." + parameter.name
        np.testing.assert_array_equal(parameter.asnumpy(), content[source])

    start_from = f"train.resume={run.checkpoints.last}"
    again = trainer("again", *SMALL_MODEL, "train.frozen_stages=1", start_from, "train.epochs=2")
    for parameter in again.state.parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), content[parameter.name])
    with pytest.raises(CheckpointError, match=r"has the state of optimizer\.name adamw, not of sgd") as error:
        trainer("other", *SMALL_MODEL, "optimizer.name=sgd", start_from)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"has the state of train\.frozen_stages 1, not of 0"):
        trainer("other", *SMALL_MODEL, start_from)


def run_trainable(run):
    return {parameter.name for parameter in run.model.trainable_params()}


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_optimizers_train_and_their_checkpoints_restore(trainer, name):
    options = [f"optimizer.name={name}", "optimizer.layer_decay=0.8", "ema.enabled=false"]
    run = trainer("run", *options)
    before = run.model.head.weight.asnumpy().copy()
    run.run()
    assert not np.array_equal(run.model.head.weight.asnumpy(), before)
    content = tensors(run.checkpoints.last)
    again = trainer("again", *options, f"train.resume={run.checkpoints.last}", "train.epochs=2")
    state = {parameter.name: parameter.asnumpy() for parameter in again.state.parameters()}
    assert state.keys() == content.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(value, content[key], err_msg=key)
    assert state["optimizer.step"] == 14


def test_evaluation_keeps_its_interval_and_shows_both_weights(trainer, capsys):
    run = trainer("run", "train.epochs=3", "eval.interval=2")
    run.run()
    lines = capsys.readouterr().out.splitlines()
    shown = [tuple(line.split()[1:3]) for line in lines if "top-1" in line and line.startswith("epoch")]
    # The last epoch is evaluated in any case.
    assert shown == [("2/3", "raw"), ("2/3", "ema"), ("3/3", "raw"), ("3/3", "ema")]
    assert run.state.progress.best_epoch in (2, 3)


def test_weights_of_other_classes_and_another_size_start_a_run(trainer, digits, tmp_path, capsys):
    source = create_model("focalv2", **trainer("source", *SMALL_MODEL).config.model.arguments)
    path = tmp_path / "source.ckpt"
    ms.save_checkpoint(source, str(path))
    few = tmp_path / "few"
    for split in ("train", "val"):
        (few / split).mkdir(parents=True)
        for digit in "024":
            (few / split / digit).symlink_to(digits / split / digit)
    capsys.readouterr()
    options = ["model.num_classes=3", "model.img_size=64", f"train.pretrained={path}"]
    run = trainer("run", *SMALL_MODEL, f"data.path={few}", *options)
    out = capsys.readouterr().out
    assert f"checkpoint {path}: initialised (the head, for another number of classes): head.weight, head.bias" in out
    assert "kept as the model's own (the file's are of another size): layers.0.blocks.0.attn.topk" in out
    assert run.model.head.weight.shape == (3, 32)
    for name in ("patch_embed.proj.weight", "layers.1.blocks.0.attn.qkv.weight"):
        values = [{p.name: p.asnumpy() for p in model.get_parameters()}[name] for model in (source, run.model)]
        np.testing.assert_array_equal(*values)


def test_as_many_other_classes_start_the_head_anew(trainer, tmp_path, capsys):
    """Names tell heads of one shape apart; train.pretrained_head says otherwise."""
    config = trainer("source").config
    names = (*"01234", *"vwxyz")
    path = write_digits_checkpoint(config, tmp_path / "source.ckpt", classes=names)
    source = select_weights(read_checkpoint(path))[0]["head.bias"]
    for choice, rows, said in (("auto", 0, "initialised (the head, for other classes: 5 (v, w, x, ...)"),
                               ("by_name", 5, "taken by the names of 5 of 10 classes"),
                               ("keep", 10, None)):  # fmt: skip
        capsys.readouterr()
        run = trainer("run", f"train.pretrained={path}", f"train.pretrained_head={choice}")
        out = capsys.readouterr().out
        assert (f"checkpoint {path}: {said}" in out) if said else (out == "")
        bias = run.model.head.bias.asnumpy()
        np.testing.assert_array_equal(bias[:rows], source[:rows])
        np.testing.assert_array_equal(bias[rows:], 0)


def test_missing_weights_are_named_with_the_file_that_asks_for_them(trainer):
    with pytest.raises(ConfigError, match=r"train\.pretrained: nowhere\.pth: no such file; name another") as error:
        trainer("run", "train.pretrained=nowhere.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(CONFIG_ROOT.glob("finetune/*.yaml")), ids=lambda path: path.stem)
def test_every_fine_tuning_recipe_says_what_it_starts_from(path):
    """A run from scratch has updates enough for an average; a short one from good weights has not."""
    config, from_scratch = load_config(path), "from scratch" in path.read_text().splitlines()[0]
    assert bool(config.train.pretrained) != from_scratch
    assert config.ema.enabled == from_scratch


def test_digits_of_some_classes_keep_their_split(digits, tmp_path):
    output = tmp_path / "some"
    command = [sys.executable, "scripts/prepare_digits.py", "--output", output, "--classes"]
    subprocess.run([*command, "1", "3"], cwd=ROOT, check=True)
    for split in ("train", "val"):
        assert sorted(path.name for path in (output / split).iterdir()) == ["1", "3"]
        for digit in "13":
            some, all_ = ({p.name for p in (folder / split / digit).iterdir()} for folder in (output, digits))
            assert some == all_
    # Others take their place.
    subprocess.run([*command, "2", "4"], cwd=ROOT, check=True)
    assert sorted(path.name for path in (output / "val").iterdir()) == ["2", "4"]
