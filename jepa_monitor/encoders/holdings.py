"""What modules hold besides their weights: in go modules, out comes a record that puts it back.

A forward pass may count, cache, append and draw: in attributes, in lists and dicts, in what a hook
closes over. A look at a model runs forward passes that training knows nothing of.
"""

from __future__ import annotations

import functools
import operator
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from jepa_monitor.encoders.modules import inner_module, is_of_distributed

__all__ = ["Holdings"]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_MAPPINGS = {dict, OrderedDict, defaultdict}
_SEQUENCES = {list, deque}
_PLAIN = {bool, int, float, str, type(None), FunctionType}
_Scripted = torch.jit._script.OrderedDictWrapper
_LARGE = 2**24  # bytes; a tensor above it that is no buffer is data that a module collects


class Holdings:
    """All that modules, and the hooks on them, hold in plain Python, as it is at construction.

    Recorded are: every attribute of every module; the content of the dicts, lists, deques and sets
    among them, one in another too; the state of random generators of torch, NumPy and Python; and of
    every hook the variables that its function closes over or finds in its file, with the attributes of
    modules and of objects of classes of that file among them, such as the one that it is a method of.
    Not recorded are the attributes of other objects, and files.

    Args:
        modules: Each once. What strategies wrap modules in is not looked into.
    """

    def __init__(self, modules: Collection[nn.Module]) -> None:
        self._modules = [module for module in modules if inner_module(module) is None]
        self._contents: list[tuple[Any, Any]] = []  # a container, and what it held
        self._undo: list[Callable[[], object]] = []
        self._seen: dict[int, Any] = {}
        self._of_modules = 0  # the first so many of the contents are not of hooks
        for module in modules:
            self._attributes(module)
        for module in self._modules:  # a scripted module's are in C++, whatever its attributes are
            self._value(module._parameters)
            self._value(module._buffers)
        self._of_modules = len(self._contents)
        for module in self._modules:
            for name in _HOOKS:
                for hook in getattr(module, name).values():
                    if not is_of_distributed(hook):
                        self._function(hook)

    def _first_time(self, found: Any) -> bool:
        if id(found) in self._seen:
            return False
        self._seen[id(found)] = found  # kept, so that no address is handed out twice
        return True

    def _attributes(self, owner: Any) -> None:
        """Record the attributes of an object."""
        held = vars(owner)
        if not self._first_time(held):
            return
        self._contents.append((held, dict(held)))
        if not isinstance(owner, nn.Module) or inner_module(owner) is None:
            for value in list(held.values()):
                if type(value) not in _PLAIN:  # most are; the call is what costs
                    self._value(value)

    def _value(self, found: Any) -> None:
        """Record the content of a container or the state of a generator; others have none."""
        kind = type(found)
        if kind in _MAPPINGS and self._first_time(found):
            self._contents.append((found, dict(found)))
            for value in list(found.values()):
                self._value(value)
        elif kind in _SEQUENCES and self._first_time(found):
            self._contents.append((found, list(found)))
            for value in list(found):
                self._value(value)
        elif kind is set and self._first_time(found):
            self._contents.append((found, set(found)))
        elif kind is tuple:
            for value in found:
                self._value(value)
        elif kind is _Scripted:
            self._contents.append((found, dict(found.items())))
        elif isinstance(found, torch.Generator):
            self._undo.append(functools.partial(found.set_state, found.get_state()))
        elif isinstance(found, random.Random):  # noqa: S311 - a user's
            self._undo.append(functools.partial(found.setstate, found.getstate()))
        elif isinstance(found, np.random.RandomState):
            self._undo.append(functools.partial(found.set_state, found.get_state()))
        elif isinstance(found, np.random.Generator):
            state = found.bit_generator.state
            self._undo.append(functools.partial(setattr, found.bit_generator, "state", state))

    def _function(self, hook: Any) -> None:
        """Record what a hook can write to: its closure, its file's variables, its owner."""
        home = getattr(hook, "__module__", "")
        if isinstance(hook, functools.partial):
            for part in (*hook.args, *hook.keywords.values()):
                self._reachable(part, home)
            self._function(hook.func)
        elif isinstance(hook, MethodType):
            self._function(hook.__func__)
            self._reachable(hook.__self__, home)
        elif isinstance(hook, FunctionType) and self._first_time(hook):
            for cell in hook.__closure__ or ():
                with suppress(ValueError):  # not assigned yet
                    value = cell.cell_contents
                    self._undo.append(functools.partial(setattr, cell, "cell_contents", value))
                    self._reachable(value, home)
            for value in hook.__defaults__ or ():
                self._reachable(value, home)
            variables = hook.__globals__
            for name in sorted(set(hook.__code__.co_names) & variables.keys()):
                value = variables[name]
                if not isinstance(value, type | ModuleType | FunctionType):
                    self._undo.append(functools.partial(variables.__setitem__, name, value))
                    self._reachable(value, home)
        elif not isinstance(hook, FunctionType):
            self._reachable(hook, home)

    def _reachable(self, found: Any, home: str) -> None:
        """Record what a hook has at hand, but for objects of other files, such as loggers."""
        own = type(found).__module__ == home and not isinstance(found, type)
        if (own or isinstance(found, nn.Module)) and hasattr(found, "__dict__"):
            self._attributes(found)
        else:
            self._value(found)

    def exchange(
        self,
        known: Mapping[int, Tensor],
        parameter: Callable[[Tensor], Tensor],
        other: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """Put other tensors into the modules, until :meth:`restore`.

        A tensor that is held in several places is exchanged once, for the same one everywhere.

        Args:
            known: Substitutes that are there already, by the ``id`` of what they stand for.
            parameter: Makes the substitute of any other parameter.
            other: Makes that of a buffer, and of tables of up to 16 MiB that modules keep as plain
                attributes or in containers.

        Returns:
            All that the modules hold now.
        """
        substitutes = dict(known)
        for module in self._modules:
            for held, make in ((module._parameters, parameter), (module._buffers, other)):
                for tensor in held.values():
                    if tensor is not None and id(tensor) not in substitutes:
                        substitutes[id(tensor)] = make(tensor)

        def substitute(found: Any) -> Any:
            if type(found) is tuple:
                new = tuple(substitute(value) for value in found)
                return new if any(a is not b for a, b in zip(new, found, strict=True)) else found
            if not isinstance(found, Tensor):
                return found
            if id(found) not in substitutes:
                table = type(found) in (Tensor, nn.Parameter) and found.grad_fn is None
                table = table and not is_lazy(found) and found.layout == torch.strided
                small = table and found.nbytes <= _LARGE
                substitutes[id(found)] = other(found) if small else found
            return substitutes[id(found)]

        for container, content in self._contents[: self._of_modules]:
            if not isinstance(content, set):
                for key, value in _items(content):
                    if (new := substitute(value)) is not value:
                        container[key] = new
        return list(substitutes.values())

    def restore(self) -> None:
        """Put everything back."""
        for container, content in self._contents:
            _refill(container, content)
        for undo in self._undo:
            undo()


def _items(content: dict[Any, Any] | list[Any]) -> Iterable[tuple[Any, Any]]:
    return content.items() if isinstance(content, dict) else enumerate(content)


def _same(new: Iterable[Any], old: Iterable[Any]) -> bool:
    new, old = list(new), list(old)
    return len(new) == len(old) and all(map(operator.is_, new, old))


def _refill(container: Any, content: Any) -> None:
    """Give a container its content back, without a touch if nothing has changed."""
    scripted = type(container) is _Scripted  # whose names cannot change
    if isinstance(content, dict) and (scripted or _same(container.keys(), content)):
        for key, value in content.items():
            if container[key] is not value:
                container[key] = value
    elif isinstance(content, dict) or (isinstance(content, set) and container != content):
        container.clear()
        container.update(content)
    elif isinstance(content, list) and not _same(container, content):
        container.clear()
        container.extend(content)
