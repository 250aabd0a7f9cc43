"""Name -> class, filled by importing every file of one folder."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from core.errors import UnknownNameError

T = TypeVar("T", bound=type)


class Registry(Generic[T]):
    """The classes found in `package`: dropping a file into that folder adds one.

    The folder is imported on first use, so importing `core` stays cheap and cannot be circular.
    """

    def __init__(self, package: str, kind: str) -> None:
        self.package = package
        self.kind = kind  # "method", "criterion" ...: the word used in messages
        self._classes: dict[str, T] = {}
        self._loaded = False

    def register(self, cls: T) -> T:
        """Class decorator: make `cls` available under `cls.name`.

        A class of the same module and name replaces itself, as happens when a file is reloaded.
        """
        held = self._classes.get(cls.name)
        if held and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"two {self.kind} classes are called {cls.name!r}: {held} and {cls}")
        self._classes[cls.name] = cls
        return cls

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self:
            raise UnknownNameError(unknown(self.kind, name, self))
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return isinstance(name, str) and name in self._classes

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        self._load()
        return len(self._classes)

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{self.package}."):
            importlib.import_module(module.name)
        self._loaded = True


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a wrong name: the nearest right one, or all of them."""
    known = list(known)
    said = str(name)[:80]
    near = difflib.get_close_matches(said.lower().replace("_", "-"), known, n=1)
    near = near or difflib.get_close_matches(said, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"no {kind} is called {said!r}; {hint}"
