"""How Lightning trains where `clipkit.ranks` has brought several processes together."""

from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from clipkit.approaches.base import Approach
from clipkit.errors import UserError
from clipkit.ranks import Place, place, ranks

__all__ = ["leave_signals_to_us", "settings_for_processes", "synchronise_batchnorm", "trains_batchnorm"]


class MetProcesses(ClusterEnvironment):
    """The processes that have met already: Lightning starts none and asks no variables."""

    def __init__(self, own: Place) -> None:
        super().__init__()
        self.own = own

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.own.address

    @property
    def main_port(self) -> int:
        return self.own.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.own.ranks

    def set_world_size(self, size: int) -> None:
        """It is what it is."""

    def global_rank(self) -> int:
        return self.own.rank

    def set_global_rank(self, rank: int) -> None:
        """It is what it is."""

    def local_rank(self) -> int:
        return self.own.local_rank

    def node_rank(self) -> int:
        return self.own.machine


def trains_batchnorm(module: pl.LightningModule) -> bool:
    """Whether BatchNorm takes its statistics from the batch in training; elsewhere it keeps those that it has."""
    module.train()
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in module.modules())


def leave_signals_to_us(trainer: pl.Trainer) -> None:
    """Lightning asks all GPUs before each batch whether one was told to end, and waits; `CheckpointWriter` asks."""
    loop: Any = trainer.fit_loop.epoch_loop
    if ranks() > 1 and hasattr(loop, "_broadcast_sigterm_tensor"):
        loop._broadcast_sigterm_tensor = lambda: None


def synchronise_batchnorm(module: nn.Module) -> None:
    """Let BatchNorm take its statistics from all processes, in place.

    torch's own conversion makes new layers: it would lose the activations that timm keeps inside of its BatchNorm, and
    the pieces of a tower that is cut in groups would go on with the old ones. Outside of training nothing changes.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, nn.SyncBatchNorm):
            part.__class__ = SyncBatchNormAct if isinstance(part, BatchNormAct2d) else nn.SyncBatchNorm
            part.process_group = None  # type: ignore[assignment]  # all processes


def settings_for_processes(module: Approach, device: torch.device) -> dict[str, object]:
    """The Trainer's arguments for as many processes as train together.

    Gradients are averaged over processes: the losses are made for that (`clipkit.losses`). Buffers are not sent around:
    statistics of BatchNorm are computed over all processes on GPUs, and are refused on processors.

    Raises:
        UserError: BatchNorm would be trained by several processes on processors, or in chunks.
    """
    own = place()
    if ranks() == 1:
        return {"plugins": [MetProcesses(own)]}  # else Lightning reads a SLURM job's variables, and refuses some
    batchnorm = trains_batchnorm(module)
    if batchnorm and device.type != "cuda":
        raise UserError(
            "this image tower trains BatchNorm, whose statistics several processes cannot share on processors: each "
            "would see its own part of the batch. Take a tower without (backbone=vit_s16_112), a pretrained one, whose "
            "statistics stay, or a single process"
        )
    if batchnorm and module.stage.chunk_size is not None:
        raise UserError(
            f"stage {module.stage_name}: chunk_size cuts each process's share by itself, and BatchNorm over several "
            "processes needs as many chunks in each: set chunk_size=null, or take a tower without BatchNorm"
        )
    if batchnorm:
        synchronise_batchnorm(module)
    return {
        "strategy": DDPStrategy(
            cluster_environment=MetProcesses(own),
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        ),
        "devices": own.local_ranks,
        "num_nodes": own.ranks // own.local_ranks,
    }
