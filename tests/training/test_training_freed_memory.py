"""A step's freed memory is there for the next step, and goes back to the system after the last."""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small_runs import make_data, make_module, make_trainer

from neigenmaps.freed_memory import freed_memory_kept, give_freed_memory_back, keep_freed_memory
from neigenmaps.nn import NeuralEigenmapModel

MB = 2**20


def has_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


needs_glibc = pytest.mark.skipif(not has_glibc(), reason="needs glibc")


@pytest.fixture(autouse=True)
def nobody_set_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if "MALLOC_" in name or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


def page_faults(rounds: int = 20) -> int:
    """Of arrays of 100 MB that are filled and freed, once there is room for them among others."""
    for _ in range(3):
        torch.ones(25 * MB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(25 * MB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_child(call: Callable[[], Any]) -> Any:
    """What the call says in a process of its own: the thresholds are those of a whole process."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(call()))
    child.start()
    answer = answers.get()
    child.join()
    return answer


@needs_glibc
def test_freed_memory_is_used_again_until_it_is_given_back() -> None:
    def measured() -> tuple[int, bool, int, int]:
        plain, kept = page_faults(), keep_freed_memory()
        faults, idle = page_faults(), resident()
        give_freed_memory_back()
        return plain, kept, faults, idle - resident()

    plain, kept, faults, given_back = in_child(measured)
    assert kept
    assert faults < plain / 4  # a hole that a small array moves into is lost, and pages of another one are cleared
    assert given_back > 90 * MB


@needs_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1000000")],
)
def test_thresholds_that_somebody_set_stay(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed_memory()
    with freed_memory_kept(torch.device("cpu")), freed_memory_kept(torch.device("meta")):
        pass


@needs_glibc
def test_the_last_of_several_gives_it_back() -> None:
    def measured() -> tuple[int, int]:
        with freed_memory_kept(torch.device("cpu")):
            NeuralEigenmapModel().encode(
                torch.zeros(100, 1, 8, 8, dtype=torch.uint8), space="backbone"
            )  # keeps it, too
            page_faults()
            idle, faults = resident(), page_faults()
        return faults, idle - resident()

    faults, given_back = in_child(measured)
    assert faults < in_child(page_faults) / 4
    assert given_back > 90 * MB


class Noted(pl.Callback):
    def __init__(self, fails: bool) -> None:
        self.faults: list[int] = []
        self.fails = fails

    def on_train_batch_end(self, *given: Any) -> None:
        self.faults.append(page_faults())
        if self.fails:
            raise RuntimeError("planted")


@needs_glibc
@pytest.mark.parametrize("fails", [False, True], ids=["to its end", "until it fails"])
def test_a_fit_keeps_it_and_gives_it_back(few_digits: Path, tmp_path: Path, fails: bool) -> None:
    def measured() -> tuple[int, list[int], int]:
        before, noted = page_faults(), Noted(fails)
        trainer = make_trainer(tmp_path, max_steps=2, callbacks=[noted])
        with pytest.raises(RuntimeError, match="planted") if fails else contextlib.nullcontext():
            trainer.fit(make_module(), make_data(few_digits))
        return before, noted.faults, resident()

    before, during, left = in_child(measured)
    assert max(during) < before / 4
    assert left < in_child(resident) + 90 * MB
