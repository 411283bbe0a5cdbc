"""Run by a test: save over an old index, get killed on the way, look at what is on disk; again and again.

    python kill_while_saving.py FOLDER ROWS WIDTH KILLS replace|add

replace: other codes take the place of all. add: the file is opened, a tenth more rows are added, and it is saved over the
file that it maps. Children are forked, so that each costs no imports. Kill moments are spread over a measured save and a little
beyond. Prints JSON: how many kills left the old file and the new one, how many came too late, and how many left a part behind.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from neigenmaps.retrieval import CodeStore

torch.set_num_threads(1)


def save_in_child(codes: NDArray[np.float32], path: Path, mode: str, delay: float | None) -> bool:
    """True if the child finished before it was killed."""
    child = os.fork()
    if child == 0:
        if mode == "add":
            store = CodeStore.load(path, verify=False)
            store.add(-codes[: len(codes) // 10])
        else:
            store = CodeStore(-codes, fingerprint="new")
        store.save(path)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def state_of(path: Path, codes: NDArray[np.float32], mode: str) -> str:
    """old or new; fails on anything else."""
    found = CodeStore.load(path)  # verifies every digest
    n_rows, width = codes.shape
    sample = np.linspace(0, n_rows - 1, 50).astype(np.int64)
    if mode == "add":
        state = {n_rows: "old", n_rows + n_rows // 10: "new"}[len(found)]
        np.testing.assert_array_equal(found.gather(sample, width), codes[sample])
        added = np.arange(n_rows, len(found))[::97]
        np.testing.assert_array_equal(found.gather(added, width), -codes[added - n_rows])
        return state
    state = str(found.fingerprint)
    np.testing.assert_array_equal(found.gather(sample, width), {"old": 1, "new": -1}[state] * codes[sample])
    return state


def main() -> None:
    folder, n_rows, width, n_kills, mode = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
    path = folder / "index.safetensors"
    codes = np.random.default_rng(0).standard_normal((n_rows, width), dtype=np.float32)
    old = CodeStore(codes, fingerprint="old")
    old.save(path)
    started = time.perf_counter()
    assert save_in_child(codes, path, mode, None)
    seconds = time.perf_counter() - started
    counts = {"old": 0, "new": 0, "finished": 0, "left_over": 0}
    for delay in np.linspace(0, 1.3 * seconds, n_kills):
        old.save(path)
        counts["finished"] += save_in_child(codes, path, mode, float(delay))
        counts[state_of(path, codes, mode)] += 1
        left_over = [file for file in folder.iterdir() if file != path]
        counts["left_over"] += len(left_over)
        for file in left_over:
            file.unlink()
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
