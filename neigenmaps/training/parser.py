"""A configuration parser that answers a mistake in a line or two, with the nearest known name.

jsonargparse reports every type that it tried. `explain` finds in that report the innermost thing that is wrong.
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

KEY = re.compile(r'Parser key "([^"]+)":?')
PROBLEM = re.compile(r"^( *)(?:- )?Problem with given class_path '([\w.]+)':\n((?:\1 +.*\n?)+)", re.MULTILINE)
VALUE = re.compile(r"(?:Got value|Given value): (.*)")
LITERAL = re.compile(r"typing\.Literal\[([^\]]*)\]")
PLAIN_TYPE = re.compile(r"Expected a <class '(?:\w+\.)*(\w+)'>")
NO_OPTION = re.compile(r"Option '([\w.]+)' is not accepted")
NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)|module '[\w.]+' has no attribute '(\w+)'")
UNKNOWN_KEY = re.compile(r"[Oo]ption '([\w.]+)'|[Aa]rguments?: --([\w.]+)")


class Mistake(NamedTuple):
    message: str
    unknown: str = ""  # the name that has a near one
    known: tuple[str, ...] = ()


class SuggestingParser(LightningArgumentParser):
    """Answers a mistake with the nearest known name, in a few lines and without the list of all options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # else --model.width_ would silently be some longer name

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser for the arguments of one class: what it says becomes part of the report
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        keys = [action.dest for one in self._with_subparsers(parser) for action in one._actions]
        self.exit(2, f"error: {suggest(explain(message.rstrip(), keys))}\n")

    @staticmethod
    def _with_subparsers(parser: Any) -> list[Any]:
        choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
        return [parser, *(sub for names in choices for sub in names.values())]


def suggest(mistake: Mistake) -> str:
    """The message, and the known name nearest to the unknown one, whatever its case."""
    by_lower = {name.lower(): name for name in mistake.known}
    near = difflib.get_close_matches(mistake.unknown.lower(), by_lower, n=1)
    return f"{mistake.message}\nDid you mean '{by_lower[near[0]]}'?" if near else mistake.message


def explain(message: str, keys: Iterable[str], place: str = "") -> Mistake:
    """What a report of jsonargparse comes down to; the report itself where it is short, or of an unknown form.

    keys: all that the parser knows. place: the key whose value the report is about, as far as it was followed.
    """
    if key := KEY.search(message):
        place = f"{place}.{key[1]}" if place else key[1]
    elif not place:
        found = UNKNOWN_KEY.search(message)
        return Mistake(message, (found[1] or found[2]) if found else "", tuple(keys))
    if inner := PROBLEM.search(message):
        return _explain_class(inner[3], inner[2], place)
    value = VALUE.search(message)
    given = value[1].strip("'") if value else ""
    if missing := NO_CLASS.search(message):
        return Mistake(f"{place}: unknown class '{given}'", missing[1] or missing[2], _subclasses(message))
    choices = tuple(choice.strip(" '") for listed in LITERAL.findall(message) for choice in listed.split(","))
    types = tuple(name for name in PLAIN_TYPE.findall(message) if name != "NoneType")
    if value and (choices or types):
        expected = ", ".join(dict.fromkeys([*types, *(f"'{choice}'" for choice in choices)]))
        return Mistake(f"{place}: expected {expected}, got '{given}'", given, choices)
    return Mistake(message)


def _explain_class(report: str, class_path: str, place: str) -> Mistake:
    if found := NO_CLASS.search(report):
        return Mistake(f"{place}: unknown class '{class_path}'", found[2], tuple(dir(_module(class_path))))
    if KEY.search(report):
        return explain(report, (), place)
    if found := NO_OPTION.search(report):
        options = inspect.signature(_class(class_path)).parameters
        return Mistake(f"{place}: {class_path} has no option '{found[1]}'", found[1], tuple(options))
    return Mistake(f"{place}: {class_path}: {' '.join(report.split())}")


def _module(class_path: str) -> Any:
    return importlib.import_module(class_path.rpartition(".")[0])


def _class(class_path: str) -> Any:
    return getattr(_module(class_path), class_path.rpartition(".")[2])


def _subclasses(message: str) -> tuple[str, ...]:
    """Names of the classes that a report expected: all subclasses, so far imported, of the types it tried."""
    wanted = re.search(r"Subtypes: (.*)", message)
    pending, names = [], set()
    for path in re.findall(r"neigenmaps(?:\.\w+)+|pytorch_lightning(?:\.\w+)+", wanted[1] if wanted else ""):
        pending.append(_class(path))
    while pending:
        one = pending.pop()
        names.add(one.__name__)
        pending += one.__subclasses__()
    return tuple(sorted(names))
