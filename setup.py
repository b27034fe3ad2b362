"""Names the packages of the wheel for pyproject.toml: those in src, and configs/ as focal_twins/configs."""

from setuptools import find_packages, setup

setup(
    license="MIT",  # pyproject.toml would need setuptools 77 for it
    license_files=["LICENSE", "NOTICE"],
    packages=[*find_packages("src"), "focal_twins.configs"],
    package_dir={"": "src", "focal_twins.configs": "configs"},
    include_package_data=True,  # all files that MANIFEST.in names
)
