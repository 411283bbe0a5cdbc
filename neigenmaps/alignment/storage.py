"""An aligner as one safetensors file: reading one from a stranger runs no code, and a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from neigenmaps.errors import CheckpointError
from neigenmaps.features import fingerprint_rows, read_tensors
from neigenmaps.files import whole_file

FORMAT = "neigenmaps.aligner/1"


def write_state(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Tensors and a JSON header, written whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digests = {name: fingerprint_rows(tensor) for name, tensor in tensors.items()}
    text = {"format": FORMAT, "kind": kind, "header": json.dumps(header), "digests": json.dumps(digests)}
    with whole_file(path) as unfinished:
        save_file(tensors, unfinished, metadata=text)


def read_state(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` wrote. Raises CheckpointError when the file is missing, damaged, or holds another kind."""
    path = Path(path)
    text, tensors = read_tensors(path, "an aligner", make="write one with save", again="save it again")
    if text.get("format") != FORMAT or text.get("kind") != kind:
        if text.get("format") == FORMAT:
            raise CheckpointError(f"{path} holds a {text.get('kind')}, not a {kind}: load it as what it is")
        raise CheckpointError(f"expected an aligner ({FORMAT}) in {path}, got format {text.get('format')!r}")
    try:
        digests, header = json.loads(text["digests"]), json.loads(text["header"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error!r}): save it again") from error
    if digests != {name: fingerprint_rows(tensor) for name, tensor in tensors.items()}:
        raise CheckpointError(f"{path} is damaged: its tensors differ from those that were saved; save it again")
    return tensors, header
