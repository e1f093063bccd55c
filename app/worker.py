"""The application of one worker process, as the parent hands it on."""

from __future__ import annotations

from dataclasses import dataclass

from .metric_slots import Slots


@dataclass(frozen=True, slots=True)
class Worker:
    """Makes the application in a worker, whose metrics count in a slot of their own. The parent has no application.

    The parent pickles the object for each worker, also for one that takes the place of a worker that died. A worker
    answers its parent only when it has read the object, so this file imports little.
    """

    slots: Slots | None

    def __call__(self) -> object:
        """The application."""
        from . import log  # noqa: PLC0415  # see above
        from .main import served  # noqa: PLC0415

        if self.slots is not None and not self.slots.take():
            log.get_logger().warning("metrics_apart", detail="no slot is free: the metrics lack this worker's")
        return served()
