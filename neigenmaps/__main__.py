"""`neigenmaps VERB ...`, which is also `python -m neigenmaps VERB ...`."""

import argparse
import difflib
import importlib
import sys
from typing import NoReturn

from neigenmaps.errors import NeigenmapsError

VERBS = {  # each is a module of neigenmaps.commands, imported only when it is called
    "train": "train from a YAML file, as train.py does",
    "embed": "encode a folder of images, or a data set, into a file of codes",
    "retrieve": "find the images most similar to a query",
    "evaluate": "measure a model at every code length, beside its rivals",
    "export": "write a model or codes for timm, ONNX, faiss, NumPy",
    "align": "how far saved models agree with references, and runs with each other",
    "report": "write the page of a run: curves, maps, neighbours, without network",
}


class Parser(argparse.ArgumentParser):
    """Answers a mistake in a line, with the nearest known name."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\nSee {self.prog} --help.\n")


def main(args: list[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    verb = args[0] if args else "--help"
    if verb not in VERBS:
        _overview().parse_args([verb])  # --help ends here
        near = difflib.get_close_matches(verb, VERBS, n=1)
        advice = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(VERBS)}."
        sys.exit(f"error: unknown verb '{verb}'. {advice}")
    if verb == "train":  # Lightning's parser reads its own arguments
        from neigenmaps.cli import train

        train(args[1:])
        return
    command = importlib.import_module(f"neigenmaps.commands.{verb}")
    parser = Parser(prog=f"neigenmaps {verb}", description=command.__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_arguments(parser)
    try:
        command.run(parser.parse_args(args[1:]))
    except NeigenmapsError as error:
        sys.exit(f"error: {error}")


def _overview() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {verb:<10}{summary}" for verb, summary in VERBS.items())
    parser = Parser(
        prog="neigenmaps",
        description=f"Ordered eigenfunctions as representations.\n\nverbs:\n{listed}\n\n`neigenmaps VERB --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="neigenmaps VERB ...",
    )
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
