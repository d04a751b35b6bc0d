"""When a run has gone wrong: a loss or gradient that is no number, or a loss that has exploded.

Exploded is a loss above `FACTOR` x the first loss + `MARGIN` for `PATIENCE` steps on end: a model that
has been worse than at its start for so long does not come back. A single step above (a batch of
outliers; preference losses have them) only puts a save off, so that no checkpoint holds a bad state.
"""

import math
from collections.abc import Callable, Mapping

from nanocode_core.errors import UserError

FACTOR = 1.5
MARGIN = 1.0
PATIENCE = 10


class Health:
    """Watches the losses of a run in the order of its steps.

    Attributes:
        first_loss: of the run's first step; None before it. It is kept in the checkpoints, so that a
            resumed run is held to the same limit.
    """

    def __init__(self, stage: str, first_loss: float | None, last_good: Callable[[], int | None]) -> None:
        """For the stage of this name.

        Args:
            last_good: steps done in the newest complete checkpoint, for the message.
        """
        self._stage, self._last_good = stage, last_good
        self.first_loss = first_loss
        self._above = 0

    @property
    def limit(self) -> float:
        """The loss above which a step is not well."""
        return math.inf if self.first_loss is None else FACTOR * self.first_loss + MARGIN

    @property
    def well(self) -> bool:
        """Whether the last loss was within the limit: the state may be saved."""
        return self._above == 0

    def check(self, done: int, values: Mapping[str, float]) -> None:
        """Look at the metrics of the step that ended with `done` steps done.

        Raises:
            UserError: the run has gone wrong; names the step, its batch and the last good checkpoint.
        """
        loss, norm = values["loss"], values["gradient_norm"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(self.message(done, f"loss {loss}, gradient norm {norm}"))
        if self.first_loss is None:
            self.first_loss = loss
        self._above = self._above + 1 if loss > self.limit else 0
        if self._above >= PATIENCE:
            began = done - PATIENCE + 1
            text = f"the loss has exploded: {loss:.4g}, above {self.limit:.4g} since step {began} and still"
            raise UserError(self.message(done, text))

    def message(self, done: int, what: str) -> str:
        """What has gone wrong at which step, what is saved, and what to do."""
        good = self._last_good()
        saved = f"the last good checkpoint is after step {good}" if good else "there is no checkpoint before it"
        return (
            f"{self._stage}: {what} at step {done} (batch {done - 1}); {saved}. Lower the learning rates "
            f"({self._stage} optimizer) and start again"
        )
