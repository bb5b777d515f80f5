"""Computes the package list, so that a new sub-package can never be missing from the wheel; the rest is pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "clipkit.conf"],
    package_dir={"": "src", "clipkit.conf": "conf"},
    package_data={
        "clipkit": ["py.typed"],
        "clipkit.conf": ["**/*.yaml"],
        "clipkit.data.emoji": ["*.zip", "NOTICE", "LICENSE-*"],
        "clipkit.models.emoji_clip": ["*.json", "*.safetensors"],
    },
)
