"""DeepSpeed, and the only file that imports it: process group, engine, state by parameter name, monitors.

bf16 runs by autocast over fp32 weights at every ZeRO stage, inside the module where DeepSpeed does not see it. So
weights, accumulated gradients and reductions are fp32 everywhere, there is no second copy of the weights that could
go stale, and a stage changes where the optimizer's state lies but not what is computed.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

# Without a GPU say so before DeepSpeed looks for accelerators of its own accord.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from trainer.engine.allocator import keep_freed_memory
from trainer.engine.config import GRADIENT_BUCKET, AdamW, InputError, Training, WeightsAndBiases
from trainer.engine.monitor import prepare_wandb
from trainer.engine.network import interface_towards
from trainer.engine.phases import Phase

MOMENTS = ("exp_avg", "exp_avg_sq")
RATE_SCALE = "rate_scale"  # what a model marks parameters with that learn faster or slower than the others
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
        keep_freed_memory()
        # Gloo asks what address the host's own name has, which on many hosts is loopback, where no other host is.
        if interface := interface_towards(os.environ["MASTER_ADDR"]):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
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


def check_raw_keys(config: Training) -> None:
    """InputError where DeepSpeed does not take the configuration's raw keys; before anything is written."""
    if not config.deepspeed:
        return
    try:
        DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, **config.deepspeed})
    except Exception as error:  # of whatever kind: it reads the keys as it goes
        reason = " ".join(str(error).split())
        raise InputError(f"deepspeed: found {config.deepspeed}, which DeepSpeed refuses: {reason}") from error


def rank() -> int:
    """This process's number, also before the group exists."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size()


def settle(deterministic: bool) -> None:
    """Choose torch's algorithms: never TF32 in fp32 arithmetic, and on demand only such as repeat their bits."""
    torch.set_float32_matmul_precision("highest")
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)  # imports inductor, which takes seconds
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def device() -> torch.device:
    return torch.device(get_accelerator().device_name(int(os.environ.get("LOCAL_RANK", "0"))))


def device_name() -> str:
    """The GPU's own name, "cpu" without one; also before the group exists."""
    if not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name(int(os.environ.get("LOCAL_RANK", "0")))


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


def gather_objects(own: Any) -> list[Any]:
    """What each rank gives, in the order of the ranks."""
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, own)
    return found


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error of a collective says that another process is gone (gloo has no class for it)."""
    return isinstance(error, dist.DistError) or any(
        sign in str(error) for sign in ("by peer", "gloo", "Broken pipe")
    )


class TrainingModule(nn.Module):
    """The model and its loss as one module, so that autocast lies inside what DeepSpeed wraps."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], precision: str) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.precision = precision

    def forward(self, *inputs: Any) -> Tensor:
        with autocast(self.precision):
            return self.loss(self.model, *inputs)


def autocast(precision: str) -> torch.autocast:
    """bf16 arithmetic over fp32 weights, or none."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=precision == "bf16")


class Engine:
    """One optimizer step over the micro-batches of a batch, on any number of processes.

    The micro-batches are numbered across the whole step; rank r takes every world-size-th. Every rank runs the same
    number of passes: one left without a micro-batch runs one of weight 0.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], config: Training, phase: Phase) -> None:
        self.passes = _passes(phase)
        module = TrainingModule(model, loss, config.precision)
        groups = parameter_groups(model, config.optimizer)
        settings = config.optimizer
        trained = [parameter for group in groups for parameter in group["params"]]
        betas = (settings.beta1, settings.beta2)
        # Fused: one pass over the weights instead of six, on a CPU as well.
        optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=betas, eps=settings.epsilon, weight_decay=0.0, fused=True
        )
        self.zero_stage, self.precision = config.zero_stage, config.precision
        self.clipping = settings.gradient_clipping
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config={
                "train_batch_size": phase.micro_batch_size * self.passes * world_size(),
                "train_micro_batch_size_per_gpu": phase.micro_batch_size,
                "gradient_accumulation_steps": self.passes,
                "gradient_clipping": self.clipping,
                "zero_optimization": {
                    "stage": self.zero_stage,
                    # Its buffer is this large whatever it holds: 2 GB by default.
                    "reduce_bucket_size": min(GRADIENT_BUCKET, sum(p.numel() for p in trained)),
                },
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
            state[partition] = {"step": torch.tensor(0.0, device=partition.device), **moments}
            lazy_init_hp_params_optimizer_state(parameters, partition, state)

    def begin(self, phase: Phase) -> None:
        """Let the steps that follow be of a phase; between two steps."""
        self.passes = _passes(phase)
        self.engine.set_train_micro_batch_size(phase.micro_batch_size)
        self.engine.set_train_batch_size(phase.micro_batch_size * self.passes * world_size())
        # DeepSpeed tells a step's last pass by its count of all passes, which the passes a step have to divide.
        self.engine.micro_steps = 0

    @staticmethod
    def assigned(phase: Phase) -> Iterator[tuple[int, float]]:
        """(micro-batch number, weight) of each pass of this rank in a step of the phase; the weight is 1, or 0 for a
        surplus pass."""
        for turn in range(_passes(phase)):
            number = turn * world_size() + rank()
            yield (number, 1.0) if number < phase.micro_batches else (0, 0.0)

    def backward(self, loss_sum: Tensor, denominator: float) -> None:
        """Accumulate the gradient of loss_sum / denominator, where the denominator is the whole step's.

        DeepSpeed divides by the passes and by the processes; multiplying by both leaves the plain sum.
        """
        self.engine.backward(loss_sum * (self.passes * world_size() / denominator))

    def next_pass(self) -> None:
        """Between two passes of one step."""
        self.engine.step()

    def gradient_norm(self) -> float:
        """The reduced gradient's 2-norm before clipping, at the end of a step and before its update; collective.

        Infinite where the gradient is not finite.
        """
        if self.zero_stage:
            return float(self.optimizer.scaled_global_norm())
        norms = [p.grad.float().norm() for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.stack(norms).norm().nan_to_num(nan=math.inf))

    def update(self, learning_rate: float) -> None:
        """Take the optimizer's step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group[RATE_SCALE]
        self.engine.step()

    def skip(self) -> None:
        """End a step without an update: the gradients go, and DeepSpeed's count of passes goes on."""
        if self.zero_stage:
            # As its own optimizer does where loss scaling overflows.
            self.optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
            for group in self.optimizer.averaged_gradients:
                self.optimizer.averaged_gradients[group] = None
                self.optimizer.all_grad_tensors[group] = None
            self.optimizer.zero_grad()
        else:
            self.engine.zero_grad()
        self.engine.micro_steps += 1

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model without dropout, in the run's precision."""
        self.model.eval()
        try:
            with autocast(self.precision), torch.no_grad():
                yield
        finally:
            self.model.train()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """{"weights" | moment: {parameter name: float32 tensor}}; collective, and filled on the first rank alone."""
        out: dict[str, dict[str, Tensor]] = {"weights": {}, **{moment: {} for moment in MOMENTS}}

        def keep(kind: str, name: str, value: Tensor) -> None:
            if rank() == 0:
                out[kind][name] = value.detach().to("cpu", torch.float32, copy=True)

        for name, parameter in self.model.named_parameters():
            trained = parameter.requires_grad
            keep(
                "weights",
                name,
                safe_get_full_fp32_param(parameter) if self.zero_stage and trained else parameter,
            )
            for moment in MOMENTS if trained else ():
                if self.zero_stage:
                    keep(moment, name, safe_get_full_optimizer_state(parameter, moment))
                else:
                    keep(moment, name, self.optimizer.state[parameter][moment])
        return out

    def load_state(self, state: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Take over a state saved after so many updates, on any number of processes and any ZeRO stage."""
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
                    "step": torch.tensor(float(updates), device=parameter.device),
                    **{moment: state[moment][name].to(parameter.device, copy=True) for moment in MOMENTS},
                }
        if self.zero_stage:
            for inner in self.optimizer.optimizer.state.values():
                inner["step"].fill_(updates)


def _passes(phase: Phase) -> int:
    """Forward and backward passes of each process in a step."""
    return -(-phase.micro_batches // world_size())


def parameter_groups(model: nn.Module, settings: AdamW) -> list[dict[str, Any]]:
    """Groups by weight decay and learning rate: weights decay, biases and LayerNorms do not (allenai's script).

    Nor do parameters that a model marks with `decays = False`. Those that it marks with a `rate_scale` learn at so many
    times the schedule's rate.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            bare = name.endswith("bias") or id(parameter) in norms
            decay = settings.weight_decay if getattr(parameter, "decays", not bare) else 0.0
            groups.setdefault((decay, getattr(parameter, RATE_SCALE, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, RATE_SCALE: scale}
        for (decay, scale), parameters in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1]))
    ]


def monitors(run: Path, wandb: WeightsAndBiases) -> Callable[[dict[str, float], int], None]:
    """A function that writes named figures of a step to RUN/tensorboard, on rank 0.

    Where a project is named, to Weights & Biases as well, whose own files lie in RUN/wandb.
    """
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    sections: dict[str, Any] = {
        "tensorboard": {"enabled": True, "output_path": str(run), "job_name": "tensorboard"}
    }
    if wandb.project is not None:
        prepare_wandb(run)
        sections["wandb"] = {"enabled": True, **wandb.model_dump(exclude_none=True)}
    master = MonitorMaster(get_monitor_config(sections))

    def write(figures: dict[str, float], step: int) -> None:
        master.write_events([(f"train/{name}", value, step) for name, value in figures.items()])

    return write
