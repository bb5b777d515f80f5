"""Computes the package list, so that no new sub-package is missing from the wheel. The rest is pyproject.toml."""

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
