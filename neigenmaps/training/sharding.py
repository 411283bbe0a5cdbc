"""FSDP of the encoder: parameters, gradients and the optimiser's state lie spread over processes (torch's `fully_shard`).

What is unusual: Lightning's own "fsdp" is torch's older form, which makes vectors of all parameters, so that weight decay could not
tell matrices from biases, and lets nobody call a part of the module. On the command line "fsdp" means the class below.
"""

import contextlib
from collections.abc import Iterator

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from neigenmaps.nn import NeuralEigenmapModel


class FSDP(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, over all processes of all nodes. Checkpoints are one file, as without it."""

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False, process_group_backend=process_group_backend)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


def shard(model: NeuralEigenmapModel, mesh: DeviceMesh) -> None:
    """Spread backbone and projector, each gathered as one when it computes. Once is enough: a sharded model stays as it is."""
    if is_sharded(model):
        return
    model.backbone.to(memory_format=torch.contiguous_format)  # others can't be cut
    for part in (model.backbone, model.projector, model):
        fully_shard(part, mesh=mesh)


def is_sharded(model: torch.nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """All parameters whole on every process, so that processes may call the model as often as each likes."""
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole(model: NeuralEigenmapModel) -> NeuralEigenmapModel:
    """The model in one piece, on every process; itself when it is. All processes must ask."""
    if not is_sharded(model):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    alone = NeuralEigenmapModel(**model.config).to(model.ritz_rotation)
    alone.load_state_dict(state)
    return alone.train(model.training)
