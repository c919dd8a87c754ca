"""The methods that are compared: one file each, found here by its name.

A method file defines one class with the attributes ``key`` and ``title`` and scikit-learn's ``fit`` and
``predict_proba`` (see `base.Method`). To add one, put a file into this folder, or name a file elsewhere by its path.
"""

import functools
import importlib
import importlib.util
import pkgutil
from pathlib import Path

from bcdlib.errors import InputError
from bcdlib.methods.base import KerasMethod, Method

__all__ = ["KerasMethod", "Method", "get", "names"]

_NOT_METHODS = ("base", "backbones")


@functools.cache
def names() -> tuple[str, ...]:
    """Keys of the methods in this folder, the paper's own first."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_METHODS)
    return tuple(sorted(found, key=lambda name: name != "resnet50"))


def get(name: str) -> type[Method]:
    """The class of a method.

    Parameters
    ----------
    name : str
        A key from `names`, or the path of a Python file that holds one method class.

    Raises
    ------
    InputError
        Unknown key, no such file, or a file that does not hold exactly one method.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise InputError(f"{name}: no such method file")
        spec = importlib.util.spec_from_file_location(f"bcdlib_method_{Path(name).stem}", name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    elif name in names():
        module = importlib.import_module(f"bcdlib.methods.{name}")
    else:
        raise InputError(f"unknown method {name!r}; known are {', '.join(names())}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise InputError(f"{name}: a method file defines one subclass of Method, this one {len(classes)}")
    return classes[0]
