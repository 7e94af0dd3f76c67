"""AWP: minimise the loss at the worst weights nearby, so that the robust loss becomes flat around the solution.

    v_l = gamma |w_l| g_l / |g_l|   for each layer l, g the gradient of the loss at w;   step with the gradient at w + v

It works with any loss: images and teacher logits are kept, the student's logits are computed anew at w + v. Two
training forwards and backwards instead of one. Only weights of two or more dimensions move (no biases, no norms).

The official code lets a proxy copy of the net take one step of plain SGD uphill, which is the direction above, and
steps its optimiser at w + v before it takes v back; here v is taken back first, so weight decay acts on w. As there,
running statistics see the pass at w + v only. gamma 0.01 (adversarial training), 0.005 (TRADES).

References: wu2020adversarial
"""

from dataclasses import dataclass, field

import torch

from rkd.plugin import Run, Schedule, Step, at, hookimpl


@dataclass
class Awp:
    """Adversarial weight perturbation (AWP, 2020): the loss at the worst weights nearby."""

    gamma: Schedule = 0.01

    _run: Run | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.gamma) and self.gamma < 0:
            raise ValueError(f"gamma must not be negative, got {self.gamma:g}")

    @hookimpl
    def rkd_run_start(self, run: Run) -> None:
        self._run = run

    @hookimpl
    def rkd_backward(self, step: Step) -> bool:
        run = self._run
        if run is None:
            return False
        net = run.student.net
        statistics = [buffer for one in run.nets.values() for buffer in one.buffers()]
        buffers = [buffer.clone() for buffer in statistics]
        loss = run.backward(run, step)
        moved = [p for p in net.parameters() if p.requires_grad and p.ndim > 1 and p.grad is not None]
        kept = [p.detach().clone() for p in moved]
        gamma = at(self.gamma, step.progress)
        with torch.no_grad():
            for buffer, before in zip(statistics, buffers, strict=True):
                buffer.copy_(before)
            for weight in moved:
                assert weight.grad is not None
                weight.add_(weight.grad * (gamma * weight.norm() / (weight.grad.norm() + 1e-20)))
        run.optimizer.zero_grad(set_to_none=True)
        try:
            run.backward(run, step, again=True)
        finally:
            with torch.no_grad():
                for weight, before in zip(moved, kept, strict=True):
                    weight.copy_(before)
        run.loss_value = loss
        return True


@hookimpl
def rkd_extensions():
    return {"awp": Awp}
