"""Environment variables for a while."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def setting(name: str, value: object) -> Iterator[None]:
    """Inside, the environment variable `name` has this value."""
    before = os.environ.get(name)
    os.environ[name] = str(value)
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
