"""Keep what was found out for the next time: a file that is whole or not there, and a disk that may be full."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["kept"]


@contextmanager
def kept(place: Path) -> Iterator[Path]:
    """Give a path to write to, and move what was written to `place` when it is complete.

    What cannot be written is not kept, without an error: it costs no more than to find it out again.
    """
    part = place.with_name(f".{place.name}.part{os.getpid()}")
    with suppress(OSError):  # then writing fails
        place.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.replace(place)
    except OSError:
        pass
    finally:
        with suppress(OSError):  # moved, or never begun
            part.unlink()
