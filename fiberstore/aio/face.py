"""The coroutines of the asynchronous face, derived from the contract.

A person writes a method in two places: its contract and its implementation. Its coroutine is made when a
class says ``of=`` which contract it is the face of. ``tools/write_aio_stub.py`` writes the stubs, by which
type checkers and editors know the coroutines.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import update_wrapper
from typing import Any, ClassVar, Self, get_origin

from fiberstore.aio.workers import Threads

_COPIES: dict[object, Callable[[Any], object]] = {Iterable: list, Mapping: copy}
_faces: dict[object, type["Face"]] = {}


class Face:
    """A blocking object in coroutines: same names, same arguments, same contract.

    A subclass declares of which class it is the face: ``class AsyncCheckpoints(Face, of=Checkpoints)``. It
    then gets every public method of that class that it neither defines nor inherits, as a coroutine that
    calls the method in a thread. Iterables and mappings are copied first, in the task of the caller. A method
    that returns ``Self`` becomes a method that returns another face, and a property that returns an object
    with a face becomes a property that returns the face. A method that the subclass defines without a
    docstring gets that of the contract.

    Args:
        wrapped: The object.
        threads: Where its methods are called.
    """

    _contract: ClassVar[type]
    _wrapped: Any

    def __init__(self, wrapped: object, threads: Threads) -> None:
        self._wrapped = wrapped
        self._threads = threads

    def __init_subclass__(cls, *, of: type | None = None) -> None:
        super().__init_subclass__()
        if of is None:
            return
        _faces[of] = cls
        cls._contract = of
        for name in public_names(of):
            member = inspect.getattr_static(of, name)
            if hasattr(cls, name):
                by_hand = vars(cls).get(name)
                if inspect.isfunction(by_hand) and by_hand.__doc__ is None:
                    by_hand.__doc__ = inspect.getdoc(member)
            elif isinstance(member, property) and member.fget is not None:
                setattr(cls, name, _property(of, name, member.fget))
            elif inspect.isfunction(member):
                setattr(cls, name, _method(cls, of, name, member))

    def _on(self, wrapped: object) -> Self:
        """Return the face of another object of the same class, on the same threads."""
        other = copy(self)
        other._wrapped = wrapped
        return other


def public_names(contract: type) -> list[str]:
    """Return the names of a class's own and inherited public attributes, in the order they are written."""
    owners = [vars(owner) for owner in reversed(contract.__mro__)]
    return [name for name in dict.fromkeys(name for owner in owners for name in owner) if name[0] != "_"]


def _property(contract: type, name: str, getter: Callable[..., Any]) -> property:
    face = _faces[inspect.signature(getter).return_annotation]

    def get(self: Face) -> Face:
        return face(getattr(self._wrapped, name), self._threads)

    get.__name__ = name
    get.__annotations__["return"] = face
    return property(get, doc=inspect.getdoc(getattr(contract, name)))


def _method(cls: type, contract: type, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)
    copies = {
        parameter.name: _COPIES[get_origin(parameter.annotation)]
        for parameter in signature.parameters.values()
        if get_origin(parameter.annotation) in _COPIES
    }

    def query(self: Face, *args: object, **kwargs: object) -> Face:
        return self._on(getattr(self._wrapped, name)(*args, **kwargs))

    async def coroutine(self: Face, *args: object, **kwargs: object) -> object:
        if copies:
            given = signature.bind(self, *args, **kwargs)
            for parameter in [parameter for parameter in copies if parameter in given.arguments]:
                given.arguments[parameter] = copies[parameter](given.arguments[parameter])
            args, kwargs = given.args[1:], given.kwargs
        return await self._threads.run(getattr(self._wrapped, name), *args, **kwargs)

    made = query if signature.return_annotation is Self else coroutine
    update_wrapper(made, method, updated=())
    made.__module__ = cls.__module__
    made.__qualname__ = f"{cls.__qualname__}.{name}"
    made.__doc__ = inspect.getdoc(getattr(contract, name))
    return made
