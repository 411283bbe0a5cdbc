"""One thread where the work is small."""

import contextlib
from collections.abc import Iterator

import torch

SMALL = 1 << 22  # numbers that an operation touches


@contextlib.contextmanager
def few_threads(n_numbers: int) -> Iterator[None]:
    """One thread below `SMALL` numbers: thousands of operations of microseconds each spend more on meeting than on work.

    On a machine whose cores others use too, many times more: a thread that waits for its partner spins.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if n_numbers < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
