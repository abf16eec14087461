"""DeepSpeed, and the only file that imports it: process group, engine, state by parameter name, monitors.

bf16 runs by autocast over fp32 weights at every ZeRO stage, inside the module where DeepSpeed does not see it. So
weights, accumulated gradients and reductions are fp32 everywhere, there is no second copy of the weights that could
go stale, and a stage changes where the optimizer's state lies but not what is computed.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

# Without a GPU say so before DeepSpeed looks for accelerators of its own accord.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from trainer.engine.config import InputError, Optimizer, Pretraining

MOMENTS = ("exp_avg", "exp_avg_sq")
Result = TypeVar("Result")


def start_processes() -> None:
    """Join the launcher's process group (gloo on CPU, NCCL on GPUs); alone where no launcher set one up."""
    deepspeed.utils.logger.setLevel("WARNING")
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    # Before anything is sent: NCCL sends from the current GPU, which is the first one on every rank until set.
    get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if get_accelerator().device_name() == "cpu":
        # Its shared-memory collectives compile for a minute at first use; gloo does the same here.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    else:
        deepspeed.init_distributed(verbose=False)


def end_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End the process without the interpreter's teardown.

    There a rank on CPU that has finished its work now and then aborts ("terminate called without an active exception",
    2 of 10 launches with torch 2.13; which thread is left is not known), and the launcher takes that for a failed run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def rank() -> int:
    """This process's number, also before the group exists."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size()


def device() -> torch.device:
    return torch.device(get_accelerator().device_name(int(os.environ.get("LOCAL_RANK", "0"))))


def on_first_rank(action: Callable[[], Result]) -> Result:
    """Run an action on rank 0; every rank returns its result, or raises its InputError."""
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except (InputError, OSError) as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise InputError(outcome[1])
    result: Result = outcome[0]
    return result


def all_reduce_sum(*values: float) -> list[float]:
    """Sums over the ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return total.tolist()


class TrainingModule(nn.Module):
    """The model and its loss as one module, so that autocast lies inside what DeepSpeed wraps."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], precision: str) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.precision = precision

    def forward(self, *inputs: Any) -> Tensor:
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return self.loss(self.model, *inputs)


class Engine:
    """One optimizer step over the micro-batches of a batch, on any number of processes.

    The micro-batches are numbered across the whole step; rank r takes every world-size-th. Every rank runs the same
    number of passes: one left without a micro-batch runs one of weight 0.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], config: Pretraining) -> None:
        self.micro_batches = config.batch_size // config.micro_batch_size
        self.passes = -(-self.micro_batches // world_size())
        module = TrainingModule(model, loss, config.precision)
        groups = parameter_groups(model, config.optimizer, config.extra_positions_only)
        settings = config.optimizer
        optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, weight_decay=0.0
        )
        self.zero_stage = config.zero_stage
        self.clipping = settings.gradient_clipping
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config={
                "train_batch_size": config.micro_batch_size * self.passes * world_size(),
                "train_micro_batch_size_per_gpu": config.micro_batch_size,
                "gradient_accumulation_steps": self.passes,
                "gradient_clipping": self.clipping,
                "zero_optimization": {"stage": self.zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**12,
                **config.deepspeed,
            },
        )
        self.model = model
        if self.zero_stage:
            self._create_moments()

    def _create_moments(self) -> None:
        """Make and link Adam's state for ZeRO now, where torch makes it at the first step.

        A checkpoint is loaded before any step; and DeepSpeed 0.19.8 links names to state after the first of several
        parameter groups has stepped, when the others have none yet, and then never again.
        """
        partitions = self.optimizer.single_partition_of_fp32_groups
        state = self.optimizer.optimizer.state
        for parameters, partition in zip(self.optimizer.bit16_groups, partitions, strict=True):
            moments = {moment: torch.zeros_like(partition) for moment in MOMENTS}
            state[partition] = {"step": torch.tensor(0.0), **moments}
            lazy_init_hp_params_optimizer_state(parameters, partition, state)

    def assigned(self) -> Iterator[tuple[int, float]]:
        """(micro-batch number, weight) of each pass of this rank; the weight is 1, or 0 for a surplus pass."""
        for turn in range(self.passes):
            number = turn * world_size() + rank()
            yield (number, 1.0) if number < self.micro_batches else (0, 0.0)

    def backward(self, loss_sum: Tensor, denominator: float) -> None:
        """Accumulate the gradient of loss_sum / denominator, where the denominator is the whole step's.

        DeepSpeed divides by the passes and by the processes; multiplying by both leaves the plain sum.
        """
        self.engine.backward(loss_sum * (self.passes * world_size() / denominator))

    def next_pass(self) -> None:
        """Between two passes of one step."""
        self.engine.step()

    def gradient_norm(self) -> float | None:
        """The reduced gradient's 2-norm before clipping, at the end of a step.

        ZeRO knows it only after its step, so for stages 1 and 2 this is None before and the figure after.
        """
        if self.zero_stage:
            norm = self.engine.get_global_grad_norm()
            return None if norm is None else float(norm)
        norms = [p.grad.float().norm() for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.stack(norms).norm())

    def update(self, learning_rate: float) -> float | None:
        """Take the optimizer's step; returns the gradient's norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None if self.zero_stage else self.gradient_norm()
        self.engine.step()
        return self.gradient_norm() if self.zero_stage else norm

    def state(self) -> dict[str, dict[str, Tensor]]:
        """{"weights" | moment: {parameter name: float32 tensor}}; collective, the same on every rank."""
        out: dict[str, dict[str, Tensor]] = {"weights": {}, **{moment: {} for moment in MOMENTS}}
        for name, parameter in self.model.named_parameters():
            full = (
                safe_get_full_fp32_param(parameter) if self.zero_stage and parameter.requires_grad else None
            )
            out["weights"][name] = (parameter if full is None else full).detach().float().cpu().clone()
            if not parameter.requires_grad:
                continue
            for moment in MOMENTS:
                if self.zero_stage:
                    value = safe_get_full_optimizer_state(parameter, moment)
                else:
                    value = self.optimizer.state[parameter][moment]
                out[moment][name] = value.detach().float().cpu().clone()
        return out

    def load_state(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        """Take over a state saved at `step` on any number of processes and any ZeRO stage."""
        for name, parameter in self.model.named_parameters():
            with torch.no_grad():
                # Also at ZeRO 1 and 2: setting the optimizer's copy alone leaves the working weights stale.
                parameter.copy_(state["weights"][name])
            if not parameter.requires_grad:
                continue
            if self.zero_stage:
                safe_set_full_fp32_param(parameter, state["weights"][name].to(parameter.device))
                for moment in MOMENTS:
                    safe_set_full_optimizer_state(parameter, state[moment][name].to(parameter.device), moment)
            else:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    **{moment: state[moment][name].to(parameter.device, copy=True) for moment in MOMENTS},
                }
        if self.zero_stage:
            for inner in self.optimizer.optimizer.state.values():
                inner["step"] = torch.tensor(float(step))


def parameter_groups(
    model: nn.Module, settings: Optimizer, extra_positions_only: bool
) -> list[dict[str, Any]]:
    """Two groups: weights decay, biases and LayerNorms do not (allenai's script).

    Where only the added positions train, everything else is a constant and nothing decays: decay would move the
    rows of the position table that are to stay.
    """
    if extra_positions_only:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("embeddings.position_embeddings.weight"))
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            bare = (
                name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name or extra_positions_only
            )
            (kept if bare else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def monitors(run: Path) -> Callable[[dict[str, float], int], None]:
    """A function that writes named figures of a step to RUN/tensorboard, on rank 0."""
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    section = {"enabled": True, "output_path": str(run), "job_name": "tensorboard"}
    master = MonitorMaster(get_monitor_config({"tensorboard": section}))

    def write(figures: dict[str, float], step: int) -> None:
        master.write_events([(f"train/{name}", value, step) for name, value in figures.items()])

    return write
