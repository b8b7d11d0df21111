"""The engine of a run: processes, devices and precision, as Hugging Face `accelerate` has them.

`accelerate` keeps what it was told in the process, where the next to ask would find it. An `Engine` leaves all of that
as it was, but the group of processes, which is made once and stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
LOST = ("gloo", "nccl", "connection", "processgroup", "watchdog", "peer")
"""Words in what torch says of a process that has gone."""


class ProcessLostError(RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


class Engine:
    """Runs a step on one process or its share of it on each of several.

    Args:
        device: Where the model is; of several processes, each takes the device that `accelerate` gives it.
        precision: `"no"`, `"bf16"` or `"fp16"`.

    Attributes:
        rank, ranks: The number of this process, and how many there are.
        first: Whether this is the first process, which alone speaks and writes.
        device: Where the model is to be.

    Raises:
        ImportError: `accelerate` is not installed.
        ValueError: fp16 on a CPU; a way of sharing a model out that is not supported here.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState, GradientState, PartialState
            from accelerate.utils import DistributedDataParallelKwargs
        except ImportError as error:
            raise ImportError("train runs on accelerate: pip install 'sde-diffusion[train]'") from error
        joined = torch.distributed.is_available() and torch.distributed.is_initialized()
        alone = not joined and int(os.environ.get("WORLD_SIZE", "1")) < 2
        if precision == "fp16" and alone and device.type == "cpu":
            raise ValueError("precision='fp16' needs a GPU, and the model is on the CPU: take 'bf16'")
        kept: list[Any] = [AcceleratorState, GradientState, *([PartialState] if alone else [])]
        self._before = [(state._shared_state, dict(state._shared_state)) for state in kept]
        try:
            for shared, _ in self._before:
                shared.clear()
            on_cpu = device.type == "cpu" if alone else _meet_on_cpu(joined)
            with _environment(joined):
                self._accelerator = Accelerator(
                    cpu=on_cpu,
                    mixed_precision=precision,
                    device_placement=not alone,
                    kwargs_handlers=[
                        DistributedDataParallelKwargs(find_unused_parameters=True)
                    ],  # of conditions left out
                )
            _check_kind(self._accelerator.distributed_type.value)
        except BaseException:
            self.close()
            raise
        self.rank, self.ranks = self._accelerator.process_index, self._accelerator.num_processes
        self.first = self.rank == 0
        self.device = device if alone else self._accelerator.device

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Puts back what `accelerate` had been told before."""
        for shared, before in self._before:
            shared.clear()
            shared.update(before)

    def seed(self, seed: int) -> None:
        """Seeds what a network draws by itself; `torch.manual_seed` takes a millisecond where there is no GPU."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def prepare(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The module with its gradients shared, in the precision asked for; the optimiser, which knows of its scale."""
        both: tuple[nn.Module, Any] = self._accelerator.prepare(module, optimiser)
        return both

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """For one micro-batch: gradients are shared after the last of a step alone."""
        quiet: AbstractContextManager[Any] = nullcontext() if last else self._accelerator.no_sync(module)
        return quiet

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss, scaled where the precision asks for it."""
        self._accelerator.backward(loss)

    def clip(self, parameters: list[nn.Parameter], most: float) -> float:
        """The norm of the gradient, of all parameters together, before it is cut to `most`."""
        if self.scaler is not None:
            self._accelerator.unscale_gradients()
        # that of accelerate does the same on the kinds of sharing that there are here, and looks for more of them
        return float(nn.utils.clip_grad_norm_(parameters, most))

    @property
    def scaler(self) -> Any:
        """What scales the loss in fp16; else None."""
        return self._accelerator.scaler

    def sum(self, numbers: Iterable[float]) -> list[float]:
        """The sums of numbers over all processes, on each of them."""
        own = torch.tensor(list(numbers), dtype=torch.float64, device="cpu")
        if self.ranks > 1:
            own = own.to(self.device)
            torch.distributed.all_reduce(own)
        return own.tolist()

    def told(self, thing: Any) -> Any:
        """What the first process has, on each of them."""
        if self.ranks == 1:
            return thing
        held = [thing if self.first else None]
        torch.distributed.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def from_first(self, call: Callable[[], T]) -> T:
        """What a call answers that the first process alone makes, on each of them; where it fails, all end.

        Raises:
            ProcessLostError: It failed, in all processes but the first, which has the error itself.
        """
        found: Any = None
        error: Exception | None = None
        if self.first:
            try:
                found = call()
            except Exception as failure:  # noqa: BLE001 - raised again below, when the others know
                error = failure
        found, failed = self.told((found, None if error is None else repr(error)))
        if error is not None:
            raise error
        if failed:
            raise ProcessLostError(f"the first process failed: {failed}")
        answer: T = found
        return answer

    def gathered(self, thing: Any) -> list[Any]:
        """What each process has, on each of them."""
        if self.ranks == 1:
            return [thing]
        held = [None] * self.ranks
        torch.distributed.all_gather_object(held, thing)
        return held

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises `ProcessLostError` where torch fails since another process has gone."""
        try:
            yield
        except RuntimeError as error:
            said = f"{type(error).__name__} {error}".lower()
            if self.ranks > 1 and any(word in said for word in LOST):
                raise ProcessLostError(str(error).splitlines()[0][:200]) from error
            raise


def _check_kind(kind: str) -> None:
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ValueError(
            f"accelerate was told to share the model out by {kind}: train runs on one process, or on several that hold "
            "the whole model each. Launch with `accelerate launch --multi_gpu` or `torchrun`"
        )


def _meet_on_cpu(joined: bool) -> bool:
    """Whether several processes work on CPUs."""
    if joined:
        return "gloo" in torch.distributed.get_backend() and "nccl" not in torch.distributed.get_backend()
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available()


@contextmanager
def _environment(joined: bool) -> Iterator[None]:
    """What a launcher would have said of processes that joined without one; `accelerate` asks nobody else."""
    before = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    if joined:
        rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        here = max(1, torch.cuda.device_count() or count)
        said = (rank, rank % here, count, min(here, count))
        os.environ.update({name: os.environ.get(name, str(n)) for name, n in zip(before, said, strict=True)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
