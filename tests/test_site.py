"""The documentation builds as a site, strictly: every page is in the navigation, and every link leads somewhere."""

import subprocess
import sys

from tests.conftest import ROOT


def test_site_builds_strictly(tmp_path):
    """With the documents of the top folder, and a page for every source file and folder that a document links to."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page, shown in {
        "index.html": 'href="source/LICENSE.html"',
        "CONTRIBUTING.html": "ruff",
        "models.html": 'href="source/configs/segmentation/index.html"',
        "source/configs/segmentation/index.html": 'href="upernet_focal_tiny_ade20k.yaml.html"',
        "source/src/focal_twins/config/schema.py.html": "pydantic",
    }.items():
        assert shown in (tmp_path / page).read_text(encoding="utf-8"), f"{page}: no {shown}"
