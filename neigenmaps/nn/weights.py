"""Whether a state dict fits a network, said in full before anything is loaded."""

from collections.abc import Mapping

from torch import Tensor, nn

from neigenmaps.errors import CheckpointError


def check_weights(network: nn.Module, state: Mapping[str, Tensor], complaint: str, *, optional: str = "") -> None:
    """Raise CheckpointError, which lists missing, unexpected and misshapen entries, unless `state` fits.

    optional: end of the names that may be missing.
    """
    own = network.state_dict()
    missing = [name for name in own.keys() - state.keys() if not (optional and name.endswith(optional))]
    wrong = [f"missing {name}" for name in missing]
    wrong += [f"unexpected {name}" for name in state.keys() - own.keys()]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:8])
        raise CheckpointError(f"{complaint} ({len(wrong)} entries differ): {shown}")
