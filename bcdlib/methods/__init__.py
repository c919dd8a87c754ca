"""The methods that are compared: one file each, found here by its name.

A method file defines one class with scikit-learn's ``fit`` and ``predict_proba`` (see `_base.Method`). To add
one, put a file into this folder, or name a file elsewhere by its path.
"""

import atexit
import contextlib
import functools
import gc
import hashlib
import importlib.util
import pkgutil
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import keras

from bcdlib.errors import InputError, check_known, one_line
from bcdlib.methods._base import TASKS, Method
from bcdlib.methods._keras import KerasMethod
from bcdlib.methods._saved import SavedMethod, load_saved
from bcdlib.runs.files import why_no_file

keras.config.set_image_data_format("channels_last")  # whatever the user's keras.json says
# before it ends Python collects garbage among all of TensorFlow's objects, which takes a second for nothing
atexit.register(gc.freeze)

__all__ = [
    "TASKS",
    "KerasMethod",
    "Method",
    "SavedMethod",
    "absolute_name",
    "explain_errors",
    "get_method",
    "load_method",
    "method_names",
    "method_settings",
]

_CHANGE = re.compile(r":(?=\w+=)")  # "robust:stages=4:C=0.1"; a path may hold colons of its own
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@functools.cache
def method_names() -> tuple[str, ...]:
    """List the keys of the methods in this folder that run as they are, the paper's own first.

    Those that must be given something, ``embeddings`` and ``encoder``, are found by name only.

    Examples
    --------
    >>> method_names()[0]
    'resnet50'
    """
    names = [name for name in _modules() if not _load(name).given]
    return tuple(sorted(names, key=lambda name: (name != "resnet50", name)))


@functools.cache
def _modules() -> tuple[str, ...]:
    return tuple(
        name for _, name, package in pkgutil.iter_modules(__path__) if not (package or name[0] == "_")
    )


@functools.cache
def _load(name: str) -> type[Method]:
    return _only_method(importlib.import_module(f"bcdlib.methods.{name}"), name)


def method_settings(name: str) -> dict:
    """Read what a name changes in the method's own settings; values get the type of the parameter's default.

    Raises
    ------
    InputError
        Unknown method or parameter, or a value that does not fit.

    Examples
    --------
    >>> method_settings("robust:stages=4:C=0.1")
    {'stages': '4', 'C': 0.1}
    """
    name, *changes = _CHANGE.split(name)
    known = get_method(name)().get_params()
    found = {}
    for key, text in (change.split("=", 1) for change in changes):
        if key not in known:
            raise InputError(f"{name}: no parameter {key!r}; it has {', '.join(sorted(known))}")
        kind = type(known[key])
        try:
            found[key] = _FLAGS[text.lower()] if kind is bool else text if known[key] is None else kind(text)
        except (KeyError, ValueError):
            raise InputError(f"{name}: {key}={text!r}; give {kind.__name__}, as {key}={known[key]}") from None
    return found


def absolute_name(name: str) -> str:
    """Make a name hold in any folder: the path of a method file, or of what it is given, becomes absolute.

    Examples
    --------
    >>> absolute_name("robust:stages=4")
    'robust:stages=4'
    """
    name, *changes = _CHANGE.split(name)
    given = f"{get_method(name).given}="
    for place, change in enumerate(changes):
        path = Path(change.removeprefix(given)).expanduser()
        if change.startswith(given) and path.exists():
            changes[place] = f"{given}{path.absolute()}"
    return ":".join([str(Path(name).absolute()) if name.endswith(".py") else name, *changes])


def get_method(name: str) -> type[Method]:
    """Find the class of a method.

    Parameters
    ----------
    name : str
        A key from `method_names`, or the path of a Python file that holds one method class; changed settings
        may follow (see `method_settings`).

    Raises
    ------
    InputError
        Unknown key, no such file, or a file that does not hold exactly one method that works.

    Examples
    --------
    >>> get_method("resnet50").title
    'ResNet-50'
    """
    name = _CHANGE.split(name)[0]
    if name.endswith(".py"):
        return _own_method(Path(name))
    check_known("method", name, _modules())
    return _load(name)


_LOADING = threading.RLock()  # a second thread must not find a module that is half loaded


def _only_method(module, name) -> type[Method]:
    found = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    }
    last = [kind for kind in found if not any(kind in other.__bases__ for other in found)]
    if len(last) != 1:
        raise InputError(f"{name}: a method file defines one subclass of Method, this one {len(last)}")
    return last[0]


def _own_method(file: Path) -> type[Method]:
    if not file.is_file():
        raise InputError(f"{file}: {why_no_file(file, 'method file')}")
    # as it stands: an edited file is another module; one that was loaded is not loaded again
    digest = hashlib.sha256(f"{file.absolute()}\0".encode() + file.read_bytes()).hexdigest()[:12]
    module_name = f"bcdlib_method_{file.stem}_{digest}"
    with _LOADING:
        if module_name in sys.modules:
            return _only_method(sys.modules[module_name], file)
        spec = importlib.util.spec_from_file_location(module_name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and pickle look there
        try:
            with explain_errors(file):
                spec.loader.exec_module(module)
                kind = _only_method(module, file)
                own = [vars(base) for base in kind.__mro__ if base.__module__ == module_name]
                if not any("key" in names for names in own):  # not that of a method from which it is derived
                    kind.key = file.stem
                if not any("title" in names for names in own):
                    kind.title = kind.key
                kind().get_params()
        except BaseException:
            del sys.modules[module_name]
            raise
        return kind


@contextlib.contextmanager
def explain_errors(name) -> Iterator[None]:
    """Turn what goes wrong in a method file of one's own into one line that names the file and the line.

    Parameters
    ----------
    name : str or path-like
        As of `get_method`; a key from the registry changes nothing.

    Raises
    ------
    InputError
    """
    file = _CHANGE.split(str(name))[0]
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not file.endswith(".py"):
            raise
        path = str(Path(file).absolute())
        lines = [part.lineno for part in traceback.extract_tb(error.__traceback__) if part.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines = [error.lineno]
        place = f"{file}, line {lines[-1]}" if lines else file
        raise InputError(f"{place}: {type(error).__name__}: {one_line(error)}") from error


def load_method(path, *, values: str = "") -> SavedMethod:
    """Load a trained network from a .keras file: one that `Method.save` wrote, or any of plain layers.

    No code of whoever made the file is run, and no other file is opened. A network of others that ends in
    logits gets the sigmoid or softmax that it lacks.

    Parameters
    ----------
    path : path-like
    values : str
        What a network of others was trained on: "0..255", "0..1" or "-1..1"; empty means 0..255, with a
        note where nothing in front of the network says so.

    Returns
    -------
    SavedMethod
        Its ``predict_proba(X, images=None)`` takes uint8 (N, height, width, 3) and applies the stain step
        that the file describes, which keras.models.load_model alone would not. Its ``notes`` say what is
        assumed.

    Raises
    ------
    InputError
        If there is no such file, it does not load, it names what is no plain layer, or it is no network
        from RGB images to 1, 2 or 8 numbers.
    """
    return load_saved(path, {name: get_method(name) for name in method_names()}, values=values)
