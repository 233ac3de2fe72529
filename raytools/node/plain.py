"""Plain data with named fields: what dataclasses give, without their price at start-up.

Importing `dataclasses` and decorating the classes of a run takes 15 ms, a third of what a whole limited run
may cost. Type checkers see dataclasses (PEP 681).
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes 5 ms; type checkers read this name as true
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_options):
        """Nothing at run time."""
        return lambda cls: cls


class _Factory:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, factory: Callable[[], T]) -> T:
    """A default that is made anew for each object."""
    return _Factory(factory)  # type: ignore[return-value]  # what a field's declaration wants to see


_NO_DEFAULT = object()


@dataclass_transform(field_specifiers=(field,))
class Plain:
    """Base of plain data: annotated names are fields, class attributes their defaults."""

    _fields: tuple[str, ...] = ()
    _defaults: dict[str, object] = {}  # noqa: RUF012 - replaced per class, never changed

    def __init_subclass__(cls) -> None:
        # names only, and of this class alone: inspect.get_annotations would be the import this avoids
        own = cls.__dict__.get("__annotations__", {})  # noqa: RUF063
        cls._fields = (*cls._fields, *own)
        cls._defaults = {name: getattr(cls, name, _NO_DEFAULT) for name in cls._fields}

    def __init__(self, *values: Any, **named: Any) -> None:
        given = dict(zip(self._fields, values, strict=False))
        doubled, unknown = given.keys() & named.keys(), named.keys() - self._defaults.keys()
        if len(values) > len(self._fields) or doubled or unknown:
            raise TypeError(f"{type(self).__name__} takes {self._fields}, found {values} and {named}")
        given.update(named)
        for name, default in self._defaults.items():
            if name not in given:
                if default is _NO_DEFAULT:
                    raise TypeError(f"{type(self).__name__} needs {name}")
                given[name] = default.make() if isinstance(default, _Factory) else default
        self.__dict__.update(given)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # fields may change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self._fields)})"


def as_dict(value: Any) -> Any:
    """The value with every Plain in it as a dictionary, in the order of its fields."""
    if isinstance(value, Plain):
        return {name: as_dict(getattr(value, name)) for name in value._fields}
    if isinstance(value, (list, tuple)):
        return [as_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: as_dict(item) for key, item in value.items()}
    return value
