"""Lets a model write after prompts, so that a prompt that goes on from the last one costs only what is new.

A `Writer` knows what each slot of its engine holds. A prompt that begins with all of that is
extended; any other one starts its slot anew (the context was full and turns left it, what the model
wrote was no turn, or nobody took all of it).
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from nanocode_core.model.engine import Engine
from nanocode_core.model.gpt import GPT
from nanocode_core.model.weights import load_model


class Writer:
    """An engine and the ids that its slots hold.

    Args:
        stops: ids that end a turn.
        slots: prompts that are written after side by side.
        temperature: 0: greedy.

    Attributes:
        context: positions the model may use: twice its training context.
    """

    def __init__(self, model: GPT, stops: AbstractSet[int], slots: int = 1, temperature: float = 0.0):
        self.context = 2 * model.shape.sequence
        self._engine = Engine(model, batch=slots, context=self.context)
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._stops = stops
        self._temperature = temperature
        self._turns = 0

    @classmethod
    def load(cls, directory: Path, stops: AbstractSet[int], temperature: float = 0.0) -> "Writer":
        """A writer for one conversation with the model in a folder.

        Raises:
            UserError: there is no such model.
        """
        return cls(load_model(directory), stops, temperature=temperature)

    def clear(self) -> None:
        """Empty all slots: what is written next depends on the prompts alone."""
        for slot, held in enumerate(self._held):
            self._engine.reset(slot)
            held.clear()
        self._turns = 0

    def stream(self, prompt: Sequence[int]) -> Iterator[int]:
        """What the model writes after a prompt, id by id, up to and with a stop; the caller may leave early."""
        new = self._new(0, prompt)
        self._turns += 1
        held = self._held[0]
        room = self._engine.room(0) - len(new)
        for id_ in self._engine.stream(new, room, self._stops, self._temperature, seed=self._turns):
            held.append(id_)
            yield id_

    def write(self, prompts: Sequence[Sequence[int] | None], max_new: int) -> list[list[int]]:
        """What the model writes after each prompt, in lockstep; nothing where there is no prompt.

        Args:
            prompts: at most one a slot.
            max_new: ids after a prompt, at most.
        """
        slots = [slot for slot, prompt in enumerate(prompts) if prompt is not None]
        self._engine.extend({slot: self._new(slot, prompts[slot] or ()) for slot in slots})
        self._turns += 1
        written: list[list[int]] = [[] for _ in prompts]
        said = self._engine.generate(slots, max_new, self._stops, self._temperature, seed=self._turns)
        for slot, ids in zip(slots, said, strict=True):
            self._held[slot] += ids
            written[slot] = ids
        return written

    def _new(self, slot: int, prompt: Sequence[int]) -> list[int]:
        """What has to be added to a slot for it to hold `prompt`; it is emptied where it holds anything else."""
        held = self._held[slot]
        known = len(held)
        if self._engine.lengths[slot] != known or known >= len(prompt) or list(prompt[:known]) != held:
            self._engine.reset(slot)
            known = 0
        self._held[slot] = list(prompt)
        return list(prompt[known:])
