"""Being stopped by hand: the update that is under way ends, and the last checkpoint holds it."""

import signal
import threading
from typing import Any

from labkit import runtime

#: Signals that ask a program to end; SIGHUP, which a closed terminal sends, is not everywhere.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stop:
    """Ctrl-C (a notebook's stop button), SIGTERM or a closed terminal end a run after an update.

    So the last checkpoint holds that update. A second Ctrl-C interrupts at once; under nohup a
    closed terminal ends nothing. Several ranks are torchrun's to stop: they could not agree on the
    update.
    """

    def __init__(self, here: runtime.World):
        self.wanted = False
        self.listens = here.size == 1 and threading.current_thread() is threading.main_thread()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if self.listens:
            for number in STOPPING:
                hangup = number == getattr(signal, "SIGHUP", None)
                if hangup and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup: the run is to outlive its terminal
                self.before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
