"""clipkit: train, adapt, evaluate and use CLIP-style image–text models.

>>> import clipkit
>>> model = clipkit.load("emoji_clip")
>>> model.classify("photo.png", labels=["cat", "dog"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipkit.errors import UserError

if TYPE_CHECKING:
    from clipkit.models.model import Model
    from clipkit.runs.load import load

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "__version__", "load"]

_LAZY = {"load": "clipkit.runs.load", "Model": "clipkit.models.model"}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for: `import clipkit` stays instant."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'clipkit' has no attribute {name!r}")
