"""Finds the modules behind a model, also those that a function hides, and holds them in evaluation mode in a solve."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain
from threading import Lock
from types import CellType, FunctionType, MethodType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling as is_compiling

DEPTH = 4
"""How many functions deep, each calling the next, a module is looked for."""
MOST = 1024
"""Lists and dicts with more entries than this are data, in which no module is looked for."""
_HELD: dict[int, int] = {}  # modules in training mode that solves hold in evaluation mode: how many, by the module's id
_LOCK = Lock()


def modules_behind(thing: object) -> list[nn.Module]:
    """The outermost modules that a model is, or calls.

    The search goes through modules and the functions they hold as `net`, and from a function to all that it can reach
    by name: the object of a bound method, the arguments of a `partial`, closures, defaults, globals, and the attributes
    of an object; of closures and attributes that are lists, tuples or dicts, through what is in them.
    """
    roots: list[nn.Module] = []
    _search(thing, DEPTH, roots, [], set())
    return roots


def _search(thing: object, depth: int, roots: list[nn.Module], modules: list[nn.Module], seen: set[int]) -> None:
    """Adds the outermost modules behind a thing to `roots`, and all that are in them to `modules`, parents first."""
    if id(thing) in seen or depth < 0:
        return
    if isinstance(thing, nn.Module):
        tree: dict[int, nn.Module] = {}
        _gather(thing, tree)
        roots.append(thing)
        modules.extend(tree.values())
        seen.update(tree)
        for module in tree.values():
            if callable(hidden := module.__dict__.get("net")):
                _search(hidden, depth, roots, modules, seen)
        return
    seen.add(id(thing))
    for part in _parts(thing):
        of_method = isinstance(thing, MethodType) and part is thing.__self__  # which need not be callable itself
        if isinstance(part, nn.Module) or ((callable(part) or of_method) and not isinstance(part, type)):
            _search(part, depth - 1, roots, modules, seen)


def _gather(module: nn.Module, tree: dict[int, nn.Module]) -> None:
    """Adds a module and those in it that are not there yet: what `module.modules()` does, in a quarter of the time."""
    tree[id(module)] = module
    for part in module._modules.values():
        if part is not None and id(part) not in tree:
            _gather(part, tree)


def _parts(thing: object) -> Iterator[object]:
    """What a callable refers to."""
    if isinstance(thing, partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, FunctionType):
        yield getattr(thing, "__wrapped__", None)
        yield from thing.__defaults__ or ()
        yield from (thing.__kwdefaults__ or {}).values()
        for cell in thing.__closure__ or ():
            if cell != CellType():
                yield from _entries(cell.cell_contents)
        names = [name for name in thing.__code__.co_names if _callable(thing.__globals__.get(name))]
        if names:  # `co_names` holds attributes too: the instructions tell which are globals
            loaded = {i.argval for i in dis.get_instructions(thing.__code__) if i.opname == "LOAD_GLOBAL"}
            yield from (thing.__globals__[name] for name in names if name in loaded)
    else:
        for value in list(getattr(thing, "__dict__", {}).values()):
            yield from _entries(value)


def _entries(value: object, depth: int = DEPTH) -> Iterator[object]:
    """What a list, tuple or dict holds, also in such as are in it; anything else as it is."""
    if not isinstance(value, dict | list | tuple):
        yield value
    elif depth and len(value) <= MOST:
        for part in list(value.values() if isinstance(value, dict) else value):
            yield from _entries(part, depth - 1)


def _callable(thing: object) -> bool:
    return isinstance(thing, (nn.Module, FunctionType, MethodType, partial))


def unbound(thing: Any) -> Any:
    """The module, if its own `module.forward` was given, which would hide its attributes; else what was given."""
    if isinstance(thing, MethodType) and thing.__name__ in ("forward", "__call__", "_wrapped_call_impl"):
        return thing.__self__ if isinstance(thing.__self__, nn.Module) else thing
    return thing


def owned(thing: object) -> nn.Module | None:
    """The one module that a bound method or a `partial` holds; None if it holds none, or several.

    Such a module is copied along with the model. One that a function merely reaches by name is not: a copy of the
    function would still call the original module, so it counts as none.
    """
    if isinstance(thing, MethodType):
        parts: tuple[object, ...] = (thing.__self__,)
    elif isinstance(thing, partial):
        parts = (thing.func, *thing.args, *thing.keywords.values())
    else:
        return None
    found = [part if isinstance(part, nn.Module) else owned(part) for part in parts]
    modules = {id(module): module for module in found if module is not None}
    return modules.popitem()[1] if len(modules) == 1 else None


class Evaluation:
    """A context with a model in evaluation mode; at its end every module is in its own mode again.

    Args:
        model: A module or a callable; also modules that a function hides are found.
    """

    def __init__(self, model: object) -> None:
        self.roots: list[nn.Module] = []
        self.modules: list[nn.Module] = []
        if not is_compiling():
            _search(model, DEPTH, self.roots, self.modules, set())
        elif isinstance(model, nn.Module):
            self.roots, self.modules = [model], list(model.modules())
        self._training: list[nn.Module] = []
        self._flags = True

    def __enter__(self) -> None:
        with nullcontext() if is_compiling() else _LOCK:
            self._training = [module for module in self.modules if module.training or id(module) in _HELD]
            if not self._training:
                return
            # Where no module overrides `train` or `eval`, the flag is set directly: tens of microseconds less a solve.
            self._flags = not is_compiling() and all(
                type(m).train is nn.Module.train and type(m).eval is nn.Module.eval and "training" in m.__dict__
                for m in self.modules
            )
            for module in self._training:
                _HELD[id(module)] = _HELD.get(id(module), 0) + 1
            for module in self._training if self._flags else ():
                module.__dict__["training"] = False
            for root in () if self._flags else self.roots:
                root.eval()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._training:
            return
        with nullcontext() if is_compiling() else _LOCK:
            free = [module for module in self._training if _let_go(module)]
            if self._flags:
                for module in free:
                    module.__dict__["training"] = True
            else:
                _set_modes(self.modules, {id(module) for module in free})


def _let_go(module: nn.Module) -> bool:
    """Whether no other thread holds a module in evaluation mode, once this one does no longer."""
    _HELD[id(module)] -= 1
    if _HELD[id(module)]:
        return False
    del _HELD[id(module)]
    return True


def _set_modes(modules: list[nn.Module], training: set[int]) -> None:
    """Sets the mode of each module, parents first: `train` of a parent sets its children's mode as well."""
    for module in modules:
        if module.training != (id(module) in training):
            module.train(id(module) in training)


def home(model: Any) -> tuple[torch.dtype, torch.device]:
    """Dtype (float32 for half precision) and device of the first floating parameter or buffer, or torch's defaults.

    Those of a wrapper are those of the model inside, whatever the rule of the wrapper holds.
    """
    while isinstance(inner := getattr(model, "inner", None), nn.Module):
        model = inner
    for module in modules_behind(model):
        for p in chain(module.parameters(), module.buffers()):
            if p.is_floating_point():
                return (torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype), p.device
    return torch.get_default_dtype(), torch.get_default_device()
