"""Objects of named classes, kept as a pickle describes them: inert, with their arguments and their state.

Apart from the other values, because only formats that say so get them: elsewhere such an object is an Opaque.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Record"]


# Told apart by identity: to compare what strangers nested may take for ever.
@dataclass(slots=True, eq=False)
class Record:
    """An object of a class that was not looked up.

    Attributes:
        name: the class's name, with its module's.
        arguments: what it was made of.
        state: what it was given afterwards; None if nothing.
    """

    name: str
    arguments: tuple[object, ...]
    state: object = None
