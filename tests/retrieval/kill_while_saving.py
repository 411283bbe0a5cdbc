"""Run by a test: save over an old index, get killed on the way, look at what is on disk; again and again.

    python kill_while_saving.py FOLDER ROWS WIDTH KILLS

Children are forked, so that each costs no imports. Kill moments are spread over a measured save and a little beyond. Prints
JSON: how many kills left the old file, the new one, and how many came before and after the new file's name was given.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from neigenmaps.retrieval import CodeStore

torch.set_num_threads(1)


def save_in_child(store: CodeStore, path: Path, delay: float | None) -> bool:
    """True if the child finished before it was killed."""
    child = os.fork()
    if child == 0:
        store.save(path)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    folder, n_rows, width, n_kills = Path(sys.argv[1]), *map(int, sys.argv[2:])
    path = folder / "index.safetensors"
    generator = np.random.default_rng(0)
    codes = generator.standard_normal((n_rows, width), dtype=np.float32)
    old, new = CodeStore(codes, fingerprint="old"), CodeStore(-codes, fingerprint="new")
    old.save(path)
    started = time.perf_counter()
    assert save_in_child(new, path, None)
    seconds = time.perf_counter() - started
    counts = {"old": 0, "new": 0, "finished": 0, "left_over": 0}
    for delay in np.linspace(0, 1.3 * seconds, n_kills):
        old.save(path)
        counts["finished"] += save_in_child(new, path, float(delay))
        found = CodeStore.load(path)  # verifies every digest
        sample = np.linspace(0, n_rows - 1, 50).astype(np.int64)
        sign = {"old": 1, "new": -1}[str(found.fingerprint)]
        np.testing.assert_array_equal(found.gather(sample, width), sign * codes[sample])
        counts[str(found.fingerprint)] += 1
        left_over = [file for file in folder.iterdir() if file != path]
        counts["left_over"] += len(left_over)
        for file in left_over:
            file.unlink()
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
