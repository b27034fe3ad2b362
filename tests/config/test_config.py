"""Configuration: every shipped file builds, and what cannot work is refused by name."""

import os

import pytest
import yaml

from focal_twins.config.load import CONFIG_ROOT, ConfigError, find_config, load_config
from focal_twins.config.renamed_keys import RENAMED_KEYS
from focal_twins.config.task_sections import TASK_SECTIONS
from focal_twins.models import list_models
from focal_twins.models.backbones.backbone import image_size
from tests.conftest import DIGITS_CONFIG, ONE_OF_EACH_KIND

TINY = "focalv2_tiny_useconv_patch4_window7_224"
SHIPPED = [path for path in sorted(CONFIG_ROOT.rglob("*.yaml")) if path.parent.name != "base"]
# Of the published sizes, one of each kind is built each time, and of the networks on a backbone one of each.
BUILT_EACH_TIME = {
    *ONE_OF_EACH_KIND,
    "semantic_fpn_twins_svt_small_ade20k",
    "upernet_focal_tiny_useconv_ade20k",
    "retinanet_twins_svt_small_3x_coco",
    "atss_focal_tiny_3x_coco",
}
PUBLISHED = {*list_models(), *(path.stem for path in SHIPPED if path.parent.name in ("segmentation", "detection"))}
BUILT = [
    pytest.param(path, marks=pytest.mark.exhaustive if path.stem in PUBLISHED - BUILT_EACH_TIME else [])
    for path in SHIPPED
]


@pytest.fixture
def write(tmp_path):
    """Write a YAML file and return its path."""

    def to(text, name="x.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return to


def refusal(path, *overrides) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_of_other_systems_load_or_say_what_they_need(write):
    """Notepad writes a mark and other line ends; PowerShell writes UTF-16."""
    path = write("")
    text = f"model: {{name: {TINY}}}\ntrain:\n  batch_size: 8\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_config(path).train.batch_size == 8
    path.write_bytes(text.encode("utf-16"))
    assert "is not UTF-8 text; save it as UTF-8" in refusal(path)


def test_a_tilde_is_the_home_folder_and_a_path_is_not_empty(monkeypatch):
    """A shell leaves runtime.output=~/runs/x as it is: it would be a folder called ~ here."""
    monkeypatch.setenv("HOME", "/home/of/a/user")
    keys = (
        "runtime.output",
        "runtime.compile_cache",
        "data.path",
        "train.pretrained",
        "train.resume",
        "eval.class_map",
    )
    config = load_config(TINY, [f"{key}=~/x" for key in keys])
    for section, key in (key.split(".") for key in keys):
        assert getattr(getattr(config, section), key) == "/home/of/a/user/x"
    for key in keys:
        assert f"{key}: " in refusal(TINY, f"{key}=''")


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.stem)
def test_shipped_configuration_builds(path):
    config = load_config(path)
    model = config.build_model("CPU")
    assert model.img_size == image_size((config.backbone or config.model).resolved()["img_size"])
    assert model.num_classes == config.model.resolved()["num_classes"]
    assert not (path.stem in list_models() and config.model.name != path.stem)


def test_every_published_model_has_a_configuration():
    assert {path.stem for path in SHIPPED} >= set(list_models())


def test_paths_of_any_bytes_survive(write):
    """On the command line, where YAML refuses them, and in config.yaml."""
    path = os.fsdecode(b"/data/caf\xe9")
    config = load_config(DIGITS_CONFIG, [f"data.path={path}"])
    assert load_config(write(config.to_yaml())).data.path == config.data.path == path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_resolved_configuration_loads_to_itself(path, write):
    config = load_config(path)
    again = load_config(write(config.to_yaml()))
    assert again.to_dict() == config.to_dict()


def test_small_carries_the_recipe_of_the_reports():
    config = load_config("focalv2_small_useconv_patch4_window7_224").to_dict()
    expected = {
        "optimizer": {"name": "adamw", "base_lr": 5e-4, "lr_batch_size": 512, "weight_decay": 0.05, "clip_norm": 5.0},
        "schedule": {"name": "clipped_cosine", "warmup_prefix": True, "min_lr": 5e-6, "warmup_epochs": 20,
                     "warmup_lr": 1e-5, "cooldown_epochs": 20, "cooldown_lr": 5e-6},
        "train": {"epochs": 320, "batch_size": 64},
        "augment": {"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "switch_prob": 0.5, "erasing": 0.25,
                    "erasing_mode": "pixel", "auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic"},
        "eval": {"crop_ratio": 0.875},
        "ema": {"enabled": True, "decay": 0.99992},
        "amp": {"level": "O1", "loss_scale": "dynamic", "init_scale": 1024},
        "model": {"drop_path_rate": 0.3, "depths": [2, 2, 18, 2], "num_classes": 1000},
    }  # fmt: skip
    for section, values in expected.items():
        assert {key: config[section][key] for key in values} == values


def test_files_inherit_and_the_last_word_is_the_command_line(write):
    write("train: {epochs: 50, batch_size: 8}\nschedule: {warmup_epochs: 1}\n", "base/a.yaml")
    path = write(f"base: base/a.yaml\nmodel: {{name: {TINY}}}\ntrain: {{batch_size: 16}}\n")
    config = load_config(path, ["model.depths=[1, 1, 1, 1]", "optimizer.base_lr=1e-4"])
    assert (config.train.epochs, config.train.batch_size, config.optimizer.base_lr) == (50, 16, 1e-4)
    assert config.model.resolved()["depths"] == [1, 1, 1, 1]


def test_errors_name_the_file_that_set_the_key(write):
    write("train: {epochs: many}\n", "base/a.yaml")
    path = write(f"base: base/a.yaml\nmodel: {{name: {TINY}}}\n")
    message = refusal(path)
    assert message.split(": ")[0].endswith("base/a.yaml")
    assert "train.epochs: Input should be a valid integer, got 'many'" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.embed_dm=3", "command line: model.embed_dm: unknown key; did you mean embed_dim?"),
        ("train.epoch=3", "command line: train.epoch: unknown key; did you mean epochs?"),
        ("optimizer.lr=0.1", "command line: optimizer.lr: unknown key; did you mean optimizer.base_lr?"),
        ("train.lr=0.1", "train.lr: unknown key; did you mean optimizer.base_lr?"),
        ("lr=0.1", "command line: lr: unknown section; did you mean optimizer.base_lr?"),
        ("optim.learning_rate=0.1", "unknown section; did you mean optimizer.base_lr?"),
        ("optimizer.batch_size=8", "unknown key; did you mean train.batch_size?"),
        ("data.epochs=8", "unknown key; did you mean train.epochs?"),
        ("train.workers=2", "unknown key; did you mean data.workers?"),
        ("workers=2", "workers: unknown section; did you mean data.workers?"),
        ("train.img_size=64", "unknown key; did you mean model.img_size?"),
        ("solver.base_lr=1", "unknown section; did you mean optimizer.base_lr?"),
        ("trian.epochs=3", "command line: trian.epochs: unknown section; did you mean train?"),
        ("train.epochs=3.5", "train.epochs: Input should be a valid integer, got 3.5"),
        ("train.epochs=true", "train.epochs: Input should be a valid integer, got True"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1, got 0"),
        ("data.workers=none", "data.workers: Input should be 'auto' or Input should be a valid integer"),
        ("model.embed_dim=100", "model.num_heads: stage 0 has 100 channels, which 3 heads do not divide"),
        ("model.img_size=225", "model.img_size: 225 does not give maps that 7x7 windows tile in every stage; "
                               "the nearest that does is 224"),
        ("model.img_size=384", "the nearest that does is 448"),
        ("model.focal_levels=[3,2,2,2]", "model.focal_levels: stage 0 asks for 3"),
        ("model.name=focalv2_tny", "did you mean focalv2"),
        ("augment.scale=[0.9,0.1]", "augment.scale: must be two values in ascending order, got [0.9, 0.1]"),
        ("augment.erasing_count=[3,1]", "augment.erasing_count: must be two values in ascending order, got [3, 1]"),
        ("augment.cooldown=none", "command line: augment.cooldown: has no effect without schedule.cooldown_epochs"),
        ("augment.auto_augment=rand-n0", "augment.auto_augment: 'rand-n0': n must be above 0"),
        ("data.mean=[0.5]", "data.mean: has 1 values for 3 channels"),
        ("train.epochs=10", "do not fit into train.epochs 10; for a short run add schedule.warmup_epochs=0"),
        ("schedule.name=cosin", "schedule.name: Input should be 'cosine', 'clipped_cosine', 'linear'"),
        ("schedule.name=multistep", "schedule.milestones: multistep needs at least one"),
        ("schedule.milestones=[30]", "schedule.milestones: have no effect in a cosine schedule"),
        ("train.updates=9", "train.updates: takes the place of train.epochs, which is 300; set one of them to null"),
        ("train.epochs=null", "train.epochs: is null, and so is train.updates; one of them is needed"),
        ("schedule.warmup_updates=9", "takes the place of schedule.warmup_epochs, which is 20"),
        ("schedule.warmup_ratio=0.1", "takes the place of schedule.warmup_lr, which is 5e-07; set one of them to null"),
        ("schedule.min_lr=1e-3", "schedule.min_lr: 0.001 is above optimizer.base_lr 0.0005"),
        ("optimizer.name=adam", "optimizer.name: Input should be 'adamw', 'sgd' or 'lamb', got 'adam'"),
        ("optimizer.layer_decay=1.5", "optimizer.layer_decay: Input should be less than or equal to 1, got 1.5"),
        ("train.frozen_stages=5", f"train.frozen_stages: 5 is more than the 4 stages of {TINY}"),
        ("optimizer.base_lr=.inf", "optimizer.base_lr: Input should be a finite number"),
        ("runtime.seed=5000000000", "runtime.seed: Input should be less than 4294967296"),
        ("mix_up=0.8", "mix_up: is now augment.mixup"),
        ("train.epochs", "'train.epochs' is not of the form section.key=value"),
        ("model.conv_implementation=conv2d", "model.conv_implementation: unknown key"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(override, expected):
    assert expected in refusal(TINY, override)


@pytest.mark.parametrize(
    ("milestones", "prefix", "expected"),
    [
        ("[60, 30]", "false", "[60.0, 30.0] must be in ascending order"),
        ("[30, 30]", "false", "[30.0, 30.0] must be in ascending order"),
        ("[30, 290]", "false", "290 is not within the 290 epochs"),
        ("[30, 275]", "true", "275 is not within the 270 epochs after warm-up"),
    ],
)
def test_milestones_are_within_the_shape(milestones, prefix, expected):
    """Of 300 epochs, 20 of them warm-up and 10 cool-down."""
    options = ["schedule.name=multistep", f"schedule.warmup_prefix={prefix}", "schedule.cooldown_epochs=10"]
    assert f"schedule.milestones: {expected}" in refusal(TINY, *options, f"schedule.milestones={milestones}")
    load_config(TINY, [*options, "schedule.milestones=[30, 269]"])


def test_of_two_keys_for_one_thing_the_default_gives_way(write):
    """The default of one, that is, to what a file says of the other; and what is written loads again."""
    text = f"model: {{name: {TINY}}}\ntrain: {{updates: 90}}\nschedule: {{warmup_updates: 9, warmup_ratio: 0.1}}\n"
    config = load_config(write(text))
    assert (config.train.epochs, config.train.updates) == (None, 90)
    assert (config.schedule.warmup_epochs, config.schedule.warmup_lr) == (None, None)
    assert load_config(write(config.to_yaml())).to_dict() == config.to_dict()
    message = refusal(write(text), "schedule.warmup_updates=91")
    assert message == "command line: schedule.warmup_updates: 91 do not fit into train.updates 90; " + (
        "for a short run add schedule.warmup_updates=0"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mix_up: 0.8\n", "mix_up: is now augment.mixup"),
        ("warmup_length: 20\n", "warmup_length: is now schedule.warmup_epochs"),
        ("train: 3\n", "train: is a section"),
        ("model: {}\n", "model.name: must be the name of a model"),
        ("- 1\n", "must hold sections"),
        ("train: {epochs: 1, epochs: 2}\n", "key 'epochs' appears twice"),
        ("train: [1\n", "not valid YAML"),
        ("base: nowhere.yaml\n", "base: nowhere.yaml does not exist"),
        ("base: x.yaml\n", "base: inherits from itself"),
        ("base: 3\n", "base: must be a file or a list of files, got 3"),
        ("base:\n", "base: must be a file or a list of files, got None"),
        ("name: 3\n", "name: must be a text, got 3"),
    ],
)
def test_broken_files_are_refused(write, text, expected):
    assert expected in refusal(write(text))


def test_numbers_in_scientific_notation_are_numbers(write):
    config = load_config(write(f"model: {{name: {TINY}}}\noptimizer: {{base_lr: 1e-3, eps: 1.5E-8}}\n"))
    assert (config.optimizer.base_lr, config.optimizer.eps) == (1e-3, 1.5e-8)


def test_old_names_all_lead_somewhere():
    for old, new in RENAMED_KEYS.items():
        section, key = new.split(".")
        assert section == "model" or key in TASK_SECTIONS["classification"].schemas()[section].model_fields, old


def test_configurations_are_found_by_name():
    path = find_config(TINY)
    assert path == find_config(f"src/configs/{TINY}.yaml") == find_config(f"{TINY}.yaml")
    assert yaml.safe_load(path.read_text())["model"]["name"] == TINY
    with pytest.raises(ConfigError, match=f"did you mean .*{TINY}.yaml"):
        find_config(TINY.replace("tiny", "tny"))
    with pytest.raises(ConfigError, match="no such file"):
        find_config(f"elsewhere/{TINY}.yaml")


def test_images_are_grey_or_rgb():
    assert "model.in_chans: images are read as grey (1) or RGB (3)" in refusal(
        TINY, "model.in_chans=2", "data.mean=[0.5,0.5]", "data.std=[0.5,0.5]"
    )


@pytest.mark.parametrize(
    ("device", "overrides", "expected"),
    [
        ("CPU", [], ("unfold", "products", "polynomial", "compiled", False)),
        ("Ascend", [], ("conv2d", "operator", "erf", "none", False)),
        ("CPU", ["runtime.conv_implementation=conv2d"], ("conv2d", "products", "polynomial", "compiled", False)),
        ("CPU", ["runtime.kernels=none"], ("unfold", "products", "polynomial", "none", False)),
        ("Ascend", ["runtime.norm_gradient=products"], ("conv2d", "products", "erf", "none", False)),
        ("Ascend", ["runtime.gelu=polynomial"], ("conv2d", "operator", "polynomial", "none", False)),
        ("CPU", ["train.recompute=true"], ("unfold", "products", "polynomial", "compiled", True)),
        ("CPU", ["model.use_checkpoint=true"], ("unfold", "products", "polynomial", "compiled", True)),
    ],
)
def test_what_devices_and_options_make_of_the_model(device, overrides, expected, monkeypatch):
    monkeypatch.setattr("focal_twins.config.load.create_model", lambda name, **arguments: arguments)
    monkeypatch.setattr("focal_twins.config.load.set_device_options", lambda arguments, **chosen: arguments | chosen)
    arguments = load_config("focalv2_digits", overrides).build_model(device)
    names = ("conv_implementation", "norm_gradient", "gelu", "kernels", "use_checkpoint")
    chosen = tuple(arguments.get(name, False) for name in names)
    assert chosen == expected
