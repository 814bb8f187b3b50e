"""A teacher that is the mean of the student's last states, over a window that grows (2401.15914, section 3.3)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlp.adapters.opened import Opened
from vlp.adapters.promptsrc import divergence
from vlp.adapters.shots import Shots


class LocalMean:
    """The mean of the prompts after the last m_t epochs, m_t from window[0] to window[1] by half a cosine.

    view: the learner opened once more, to hold the mean. What of the mean is to stay near (here logits, by the
    divergence of PromptSRC) the paper leaves open.
    """

    def __init__(self, view: Opened, window: tuple[int, int], epochs: int) -> None:
        self.view, self.window, self.epochs = view, window, epochs
        self.states: list[dict[str, Tensor]] = []
        self.epoch = 0
        self._weight: Tensor | None = None
        self._weights = view.weights()

    @torch.no_grad()
    def add(self, learned: nn.Module) -> None:
        """The state of the student after an epoch."""
        self.epoch += 1
        self.states.append({name: tensor.detach().clone() for name, tensor in learned.state_dict().items()})
        del self.states[: -self.window[1]]
        last = self.states[-span(self.epoch, self.epochs, self.window) :]
        mean = {name: torch.stack([state[name] for state in last]).mean(dim=0) for name in last[0]}
        self.view.learned.load_state_dict(mean)
        self._weight = self._weights()

    def distance(self, shots: Shots, features: Float[Tensor, "B D"], weight: Float[Tensor, "C D"]) -> Tensor:
        """Of the student's probabilities from the teacher's; 0 in the first epoch."""
        if self._weight is None:
            return weight.sum() * 0
        scale = self.view.encoder.scale
        with torch.no_grad():
            before = scale * self.view.features(shots.image).to(weight.dtype) @ self._weight.to(weight.dtype).T
        return divergence(scale * features @ weight.T, before)


def span(epoch: int, epochs: int, window: tuple[int, int]) -> int:
    """M_t = floor((1 + cos((1 + t / T) pi)) / 2 * (m_max - m_min)) + m_min."""
    low, high = window
    return math.floor((1 + math.cos((1 + epoch / max(epochs, 1)) * math.pi)) / 2 * (high - low)) + low
