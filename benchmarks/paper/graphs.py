"""The two halves of an optimizer step, between which `ldp.step` stands: as they are written, or replayed as CUDA graphs.

A graph holds the batch, forward, backward and the sum of the losses; another one the optimizer. What changes from step to
step lies in tensors that stay in place: bits, position in the epoch, learning rate. Steps on which the controller senses have
a graph of their own. The first steps run as written, on the stream of the capture: they build what a capture must find (the
gradients, the optimizer's state, the choice of convolutions).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_STEPS = 4  # of each kind, before its capture


class Steps:
    """loss: (0-d) of the last step. total: sum of the losses since it was last set to 0, float64."""

    keeps_gradients = False
    note = "eager"

    def __init__(self, model, data, optimizer):
        self.model, self.data, self.optimizer = model, data, optimizer
        self.loss = torch.zeros((), device=data.device)
        self.total = torch.zeros((), device=data.device, dtype=torch.float64)

    def set_lr(self, lr: float) -> None:
        """For this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def gradients(self, sensing: bool) -> None:
        """Batch, forward, backward."""
        inputs, targets = self.data.batch()
        loss = self.data.loss(self.model(inputs), targets)
        loss.backward()
        self.loss.copy_(loss.detach())
        self.total.add_(self.loss)
        self.data.position.add_(1)

    def update(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)


class GraphSteps(Steps):
    """The same, replayed. Where a capture fails, `note` says why and the steps go on as written."""

    keeps_gradients = True  # in place, since the optimizer's graph reads them there

    def __init__(self, model, data, optimizer):
        super().__init__(model, data, optimizer)
        self.graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self.seen: dict[str, int] = {}
        self.note = "graph"
        self.lr = torch.zeros((), device=data.device)

    def set_lr(self, lr):
        super().set_lr(lr)
        self.lr.fill_(lr)

    def gradients(self, sensing):
        self._run("sensing" if sensing else "ordinary", super().gradients, sensing)

    def update(self):
        self._run("update", super().update)

    def _run(self, name: str, function: Callable, *args) -> None:
        if name not in self.graphs and self.note == "graph" and self.seen.get(name, 0) >= WARM_STEPS:
            self._capture(name, function, *args)
        if name in self.graphs:
            self.graphs[name].replay()
        else:
            self.seen[name] = self.seen.get(name, 0) + 1
            function(*args)

    def _capture(self, name: str, function: Callable, *args) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        try:
            graph = torch.cuda.CUDAGraph()
            super().set_lr(self.lr)  # the fused optimizers read a tensor on the device; `ldp.step` gets the number
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                function(*args)
            self.graphs[name] = graph
        except RuntimeError as error:
            self.graphs.clear()
            self.note = f"eager: the capture of {name} failed: {str(error).splitlines()[0]}"
        finally:
            super().set_lr(lr)


def steps_of(model, data, optimizer, graph: bool) -> Steps:
    """`GraphSteps` where they are asked for and the data are on a GPU."""
    return (GraphSteps if graph and data.device.type == "cuda" else Steps)(model, data, optimizer)
