"""One folder for each kind of thing read. A folder that is here is a source: nothing is registered by hand."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from exporter.core.source import Source


@cache
def sources() -> dict[str, type[Source]]:
    """Every source by its kind: the class named `SOURCE` in each folder, in alphabetical order."""
    found = sorted(module.name for module in iter_modules(__path__) if module.ispkg)
    return {name: import_module(f"{__name__}.{name}").SOURCE for name in found}
