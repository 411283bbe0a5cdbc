"""FSDP on two gloo processes trains what DDP trains, and saves a model in one piece."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from small_runs import STEPS_PER_EPOCH, make_data, make_module, make_trainer
from test_training_alignment_ddp import free_port
from test_training_resume import assert_equal_states

from neigenmaps.errors import InputError
from neigenmaps.training import FSDP, CollapseGuard, EMAWeights, FitRitz, read_checkpoint
from neigenmaps.training.checkpoints import WholeCheckpointIO
from neigenmaps.training.saved_models import read_model
from neigenmaps.training.sharding import is_sharded, whole

WORLD = 2


def work(rank: int, port: int, folder: str, images: str, kind: str, checkpoint: str | None = None) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    place = Path(folder)
    if kind == "ddp":
        strategy: Any = DDPStrategy(process_group_backend="gloo")
    else:
        strategy = FSDP("gloo")
    keeps = ModelCheckpoint(place, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = make_trainer(
        place,
        2,
        devices=WORLD,
        strategy=strategy,
        plugins=[LightningEnvironment(), WholeCheckpointIO()],
        callbacks=[CollapseGuard(), FitRitz(100, place / "last.ckpt"), keeps],
        enable_checkpointing=True,
    )
    # in float32 Adam makes whole steps of rounding where gradients are next to nothing
    module = make_module(seed=0 if checkpoint is None else 7, channels_last=True).double()
    trainer.fit(module, make_data(Path(images)), ckpt_path=checkpoint, weights_only=True)
    assert trainer.global_step == 2 * STEPS_PER_EPOCH
    model = whole(module.model)
    assert is_sharded(module.model) == (kind == "fsdp")
    assert not is_sharded(model)
    codes = model.encode(torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64))
    torch.save({"state": model.state_dict(), "codes": codes}, place / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # that returns a view, which nobody changes in place
def test_fsdp_trains_and_saves_what_ddp_does(tmp_path: Path, few_digits: Path) -> None:
    found = {}
    for kind in ("ddp", "fsdp"):
        (tmp_path / kind).mkdir()
        given = (free_port(), str(tmp_path / kind), str(few_digits), kind)
        mp.start_processes(work, args=given, nprocs=WORLD, start_method="fork")
        ranks = [torch.load(tmp_path / kind / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
        torch.testing.assert_close(ranks[0]["codes"], ranks[1]["codes"], rtol=1e-5, atol=1e-6)
        found[kind] = ranks[0]["state"]
        saved = read_model(tmp_path / kind / "last.ckpt")
        for name, value in saved.state_dict().items():
            torch.testing.assert_close(value, found[kind][name].to(value.dtype), rtol=1e-6, atol=1e-7, msg=name)
        assert read_checkpoint(tmp_path / kind / "last.ckpt")["optimizer_states"]
    weights = [name for name in found["ddp"] if name.endswith("weight")]
    for name in weights:
        torch.testing.assert_close(found["fsdp"][name], found["ddp"][name], rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module", "ignore:The dirpath has changed")
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_resume_within_an_epoch_over_processes(tmp_path: Path, few_digits: Path, kind: str) -> None:
    """Weights, running statistics, order and the optimiser's state equal those of the run that was left alone, bit for bit."""
    states, optimizers = [], []
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        checkpoint = None if name == "whole" else str(tmp_path / "whole" / "step=3.ckpt")
        given = (free_port(), str(tmp_path / name), str(few_digits), kind, checkpoint)
        mp.start_processes(work, args=given, nprocs=WORLD, start_method="fork")
        states.append([torch.load(tmp_path / name / f"{rank}.pt", weights_only=True)["state"] for rank in range(WORLD)])
        optimizers.append(read_checkpoint(tmp_path / name / "last.ckpt")["optimizer_states"])
    assert_equal_states(*states)
    assert_equal_states(*([one["state"] for one in optimizer] for optimizer in optimizers))  # groups come back as lists


def test_the_older_form_is_refused() -> None:
    module = make_module()
    module.trainer = SimpleNamespace(strategy=FSDPStrategy())  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"use neigenmaps\.training\.FSDP"):
        module.configure_model()


def test_averaged_weights_of_a_spread_model_are_refused() -> None:
    average = EMAWeights()
    trainer: Any = SimpleNamespace(strategy=FSDP(), callbacks=[average])
    with pytest.raises(InputError, match="leave one of them out"):
        average.setup(trainer, make_module(), "fit")
