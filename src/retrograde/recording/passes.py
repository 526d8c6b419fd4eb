"""The backward passes that run while a block records."""

import sys
from collections.abc import Callable

from retrograde.recording.backward_calls import Roots
from retrograde.recording.backward_pass import BackwardPass
from retrograde.recording.observation import observe
from retrograde.recording.states import StateTracker


class Passes:
    """The backward passes in the block.

    Attributes:
        tracker: follows states between the calls of all layers.
        failure: what the latest failed pass raised.
        after: called when a pass has ended.
    """

    def __init__(self, keep: int | None) -> None:
        self.tracker = StateTracker()
        self.failure: BaseException | None = None
        self.after: Callable[[], None] | None = None
        self._keep = keep
        self._ended: list[BackwardPass] = []
        self._running: BackwardPass | None = None
        self._depth = 0
        self._lock = self.tracker.lock  # passes in other threads are announced as well

    def current(self) -> BackwardPass | None:
        """The pass that is running, if any."""
        return self._running

    def all(self) -> list[BackwardPass]:
        """All passes, also one that another thread still runs through another model."""
        with self._lock:
            return [*self._ended, *([self._running] if self._running else [])]

    def start(self, roots: Roots) -> Callable[[], None]:
        """A backward pass starts, or one within it (checkpointing); the result ends it."""
        with self._lock:
            running = self._running = self._running or BackwardPass()
            self._depth += 1
            try:
                handles = observe(self.tracker, roots, running)
            except Exception as error:  # not into the user's backward pass
                handles = []
                why = f"observing the backward pass failed, {type(error).__name__}: {error}"
                running.problems |= dict.fromkeys(self.tracker.layers, why)

        def end() -> None:
            for handle in handles:
                handle.remove()
            self.failure = sys.exc_info()[1] or self.failure
            with self._lock:
                self._depth -= 1
                if self._depth:
                    return
                self._running = None
                self._forget(running)
                self._ended.append(running)
                self.tracker.passes += bool(running.arrived)
                if self.after:
                    self.after()

        return end

    def _forget(self, new: BackwardPass) -> None:
        """Let go of the passes that are not kept beside a new one."""
        if self._keep is not None:
            through = [one for one in self._ended if one.arrived]
            self._ended = through[max(0, len(through) - self._keep + bool(new.arrived)) :]
