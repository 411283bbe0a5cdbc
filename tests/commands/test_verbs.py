"""`neigenmaps VERB`: what is listed exists, and a slip is answered with the nearest verb."""

import importlib

import pytest

from neigenmaps.__main__ import VERBS, main


def test_every_listed_verb_has_its_module() -> None:
    for verb in VERBS.keys() - {"train"}:
        command = importlib.import_module(f"neigenmaps.commands.{verb}")
        assert callable(command.add_arguments)
        assert callable(command.run)


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_help_lists_the_verbs(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)


def test_an_unknown_verb_is_answered_with_the_nearest() -> None:
    with pytest.raises(SystemExit, match=r"unknown verb 'trian'. Did you mean 'train'\?"):
        main(["trian"])


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"train"}))
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert not ended.value.code
    assert f"neigenmaps {verb}" in capsys.readouterr().out
