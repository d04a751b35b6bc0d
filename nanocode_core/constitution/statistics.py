"""What happened while the data was made: per family and in total."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nanocode_core.constitution.production import Made
from nanocode_core.constitution.revision import Outcome


def statistics(made: Made) -> dict[str, Any]:
    """{"total": {...}, "families": {name: {...}}}; see `_count` for the fields."""
    families = list(dict.fromkeys([*made.dropped, *(outcome.task.family for outcome in made.train)]))

    def of(outcomes: Sequence[Outcome], family: str | None) -> list[Outcome]:
        return [outcome for outcome in outcomes if family in (None, outcome.task.family)]

    def count(family: str | None) -> dict[str, Any]:
        drops = sum((made.dropped[name] for name in families if family in (None, name)), Counter[str]())
        return _count(of(made.train, family), of(made.held_out, family), of(made.refused, family), drops)

    return {"total": count(None), "families": {family: count(family) for family in families}}


def _count(
    train: Sequence[Outcome], held_out: Sequence[Outcome], refused: Sequence[Outcome], dropped: Counter[str]
) -> dict[str, Any]:
    """Counts of one family, over all its tasks; shares from 0 to 1."""
    outcomes = [*train, *held_out, *refused]
    attempts = [attempt for outcome in outcomes for attempt in outcome.attempts]
    reasons = Counter(_kind(flaw.reason) for attempt in attempts for flaw in attempt.flaws)
    return {
        "tasks": len(outcomes),
        "rollouts": len(train),
        "pairs": sum(outcome.pair() is not None for outcome in train),
        "held_out": len(held_out),
        "held_out_pairs": sum(outcome.pair() is not None for outcome in held_out),
        "refused": len(refused),
        "accepted_first": _share(sum(outcome.attempts[0].accepted for outcome in outcomes), len(outcomes)),
        "attempts": round(len(attempts) / max(1, len(outcomes)), 3),
        "check_passes": _share(sum(attempt.solved for attempt in attempts), len(attempts)),
        "calls": round(sum(t.call is not None for o in train for t in o.attempts[-1].turns) / max(1, len(train)), 3),
        "rejected_for": dict(reasons.most_common(30)),
        "dropped_tasks": dict(sorted(dropped.items())),
    }


def _share(part: int, whole: int) -> float:
    return round(part / max(1, whole), 4)


def _kind(reason: str) -> str:
    """A reason without the names and numbers of its task."""
    reason = re.sub(r"(the check fails: |edits |changes )\S.*?( unasked| without reading it|$)", r"\1...\2", reason)
    return re.sub(r"\d+ times", "several times", reason)
