"""Classes of your own from your own files, `net.py:Net`: you name them, and never a file that was loaded.

A file is run once in a process, as `import` does; what it imports from beside itself is found.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
import weakref
from pathlib import Path
from types import ModuleType

__all__ = ["code_of", "file_of", "load_class"]

_CODES: weakref.WeakKeyDictionary[type, str | None] = weakref.WeakKeyDictionary()


def load_class(name: str) -> type:
    """Imports a class from a file, whose code is run.

    Args:
        name: The file and the class in it, `net.py:Net`.

    Raises:
        ValueError: No such form of a name, or no such class in the file.
        FileNotFoundError: No such file.
        TypeError: What is called so is no class.
        ImportError: The file failed when it was run; the message says in which line.
    """
    file, colon, inside = str(name).rpartition(":")
    if not colon or not inside.isidentifier() or not file.endswith(".py"):
        raise ValueError(f"{name!r} is no name of a class in a file: write it as net.py:Net")
    path = Path(file).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file}, where the class {inside} was to be")
    module = _run(path)
    if not hasattr(module, inside):
        own = [key for key, value in vars(module).items() if _is_of(value, module)]
        raise ValueError(f"{file} has no {inside}: it has {', '.join(own) or 'no classes'}")
    found = getattr(module, inside)
    if not isinstance(found, type):
        raise TypeError(f"{inside} in {file} is a {type(found).__name__}, wanted a class: name it, without making one")
    code_of(found)  # now: the file may be changed while a run goes on
    return found


def file_of(cls: type) -> str | None:
    """The name, without its folder, of the file that a class was defined in; None where there is none."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return Path(file).name if isinstance(file, str) else None


def code_of(cls: type) -> str | None:
    """A digest of the source of the file that a class was defined in, as it was when this was asked first.

    Of a class in a script that is run, it is that of the class alone, since scripts change with every run. None where
    there is no source.
    """
    if cls not in _CODES:
        try:
            script = cls.__module__ == "__main__"
            source = inspect.getsource(cls if script else sys.modules[cls.__module__])
            _CODES[cls] = hashlib.sha256(source.encode()).hexdigest()[:16]
        except (OSError, TypeError, KeyError, SyntaxError, ValueError):
            _CODES[cls] = None
    return _CODES[cls]


def _is_of(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


def _run(path: Path) -> ModuleType:
    """Runs a file as a module, which is kept: two classes of one file are of one module."""
    name = f"{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ImportError(f"{path}{_line(error, path)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _line(error: BaseException, path: Path) -> str:
    """The last line of a file that an error passed through, in words."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""
