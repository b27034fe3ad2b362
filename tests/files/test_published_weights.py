"""Published weights by name: the table, how they are found here, and how they are downloaded, from a stand-in hub."""

import hashlib
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from safetensors.numpy import save

from focal_twins.config.load import find_config
from focal_twins.files import published_weights
from focal_twins.files.download import DownloadError, download, locate, weights_file
from focal_twins.files.published_weights import PUBLISHED_WEIGHTS
from focal_twins.measuring.published import PUBLISHED
from tests.conftest import ROOT

NAME, UNCHECKED = "twins_svt_small.in1k", "twins_pcpvt_small.in1k"  # with a published checksum, and without
CONTENT = save({"head.bias": np.arange(300_000, dtype=np.float32)})
SIZE = len(CONTENT)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for one file of a repository: its size, checksum and commit, then its bytes."""

    protocol_version = "HTTP/1.1"
    sent = SIZE  # bytes before the connection breaks
    asked: list[str]

    @property
    def has_file(self) -> bool:
        """Of this file alone, and not once more after the connection broke."""
        return "/resolve/" in self.path and not (self.asked and self.sent < SIZE)

    def do_HEAD(self):
        if not self.has_file:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        if self.has_file:
            self.asked.append(self.path)
            self.wfile.write(CONTENT[: self.sent])
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@contextmanager
def hub(sent=SIZE):
    """Serve on a free port; gives the address and the list of paths that were downloaded."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"asked": asked, "sent": sent}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fetch(tmp_path):
    """fetch(address, "NAME", ...) runs scripts/download_weights.py against a hub: the process and the folder."""

    def call(address, *names):
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "GLOG_v": "4"}
        environment |= {"no_proxy": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "scripts/download_weights.py", *names, "--folder", tmp_path / "weights"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done, tmp_path / "weights"

    return call


def test_table_names_networks_that_are_here():
    for name, weights in PUBLISHED_WEIGHTS.items():
        assert name == weights.name
        assert find_config(weights.config).stem == weights.config
        assert weights.address.startswith("https://")
        assert weights.sha256 is None or re.fullmatch("[0-9a-f]{64}", weights.sha256)
    assert len({weights.file for weights in PUBLISHED_WEIGHTS.values()}) == len(PUBLISHED_WEIGHTS)
    # Whatever has published figures has a place.
    assert {weights.config for weights in PUBLISHED_WEIGHTS.values()} >= PUBLISHED.keys()


def test_weights_are_found_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (UNCHECKED, f"timm/{UNCHECKED}"):
        path, weights = locate(name)
        assert (str(path), weights.name) == (f"weights/{UNCHECKED}.safetensors", UNCHECKED)
    focal = "focal-tiny-is224-ws7.pth"
    assert locate(f"elsewhere/{focal}")[1].config == "focal_tiny_patch4_window7_224"
    assert str(weights_file("mine.ckpt")) == "mine.ckpt"
    (tmp_path / focal).touch()
    assert locate(focal) == (tmp_path.relative_to(tmp_path) / focal, None)  # what is there is taken as it is
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{UNCHECKED}.safetensors").touch()
    assert weights_file(UNCHECKED).is_file()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (NAME, r"scripts/download_weights\.py .*train\.download=true.*timm/twins_svt_small\.in1k \(96\.3 MB\)"),
        ("upernet_twins_svt_small.ade20k", r"in a browser from https://drive.* save it as weights/upernet_\S+\.pth$"),
        ("focal_tiny_patch4_window7_224.in1k", r"link is closed .* belongs at weights/focal-tiny-is224-ws7\.pth$"),
        ("mine/focal-tiny-is224-ws7.pth", r"belongs at mine/focal-tiny-is224-ws7\.pth$"),
    ],
)
def test_what_is_not_here_says_how_to_get_it(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownloadError, match=says) as error:
        weights_file(name)
    assert "\n" not in str(error.value)


def test_a_file_of_another_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights" / f"{NAME}.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    with pytest.raises(DownloadError, match="is not the published file"):
        weights_file(NAME)
    known = PUBLISHED_WEIGHTS[NAME]
    right = published_weights.PublishedWeights(**vars(known) | {"sha256": hashlib.sha256(CONTENT).hexdigest()})
    monkeypatch.setitem(PUBLISHED_WEIGHTS, NAME, right)
    assert weights_file(NAME).samefile(path)


def test_download_comes_whole_and_once(fetch):
    with hub() as (address, asked):
        done, folder = fetch(address, f"timm/{UNCHECKED}")
        assert (done.returncode, done.stderr) == (0, "")
        assert "no checksum of it was published" in done.stdout
        assert (folder / f"{UNCHECKED}.safetensors").read_bytes() == CONTENT
        assert asked == [f"/timm/{UNCHECKED}/resolve/main/model.safetensors"]
        again, _ = fetch(address, UNCHECKED)
        assert "is here already" in again.stdout
        assert len(asked) == 1
        # What the hub gives is not what was published: it is not kept, in the cache neither.
        for _ in range(2):
            done, folder = fetch(address, NAME)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
            assert "is not the published file" in done.stderr
            assert sorted(path.name for path in folder.iterdir()) == [f"{UNCHECKED}.safetensors"]
        assert len(asked) == 3


def test_a_download_in_part_has_no_name(fetch):
    with hub(sent=100_000) as (address, _):
        done, folder = fetch(address, UNCHECKED)
    assert done.returncode == 1
    assert f"{UNCHECKED}: cannot be downloaded from https://huggingface.co/timm/{UNCHECKED}" in done.stderr
    assert not folder.exists() or not list(folder.iterdir())


def test_without_the_package_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"pip install huggingface_hub; or get model\.safetensors in a browser"):
        download(PUBLISHED_WEIGHTS[NAME], tmp_path / "x.safetensors")


def test_the_list_and_what_is_no_name(run_script, tmp_path):
    code, out, _ = run_script("scripts.download_weights", "--folder", tmp_path)
    assert (code, len(out.splitlines())) == (0, len(PUBLISHED_WEIGHTS))
    code, _, err = run_script("scripts.download_weights", "nonsense", "--folder", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert "nonsense: no published weights of this name" in err
