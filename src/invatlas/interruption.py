"""Ctrl-C while an atlas is fitted: the first keeps what was learnt, the second quits at once.

Whatever is fitted, none comes between files and their place.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STATUS = 130
KEEPING = "keeping what was learnt, if an epoch has ended, and "
NOTICED = "Interrupted: {}writing the atlas; Ctrl-C again quits without writing."
NOTHING = "Interrupted; nothing was written."


@dataclass
class Interruption:
    """What SIGINT does to a fit, and whether it came.

    Attributes
    ----------
    say
        Prints a sentence.
    came
        Whether Ctrl-C was pressed.
    stage
        ``training``: the first raises KeyboardInterrupt, which ends training. ``layout``: there
        is nothing left to end; a second one leaves the process, as numba would swallow an
        exception. ``writing``: a second one raises, so that unfinished files are removed.
        ``moving``: files go to their place, which nothing may interrupt.
    """

    say: Callable[[str], None]
    came: bool = False
    stage: str = "training"

    def __call__(self, *_: object) -> None:
        """Handle the signal."""
        if self.stage == "moving":
            return
        if not self.came:
            self.came = True
            training = self.stage == "training"
            self.say(NOTICED.format(KEEPING if training else ""))
            if training:
                raise KeyboardInterrupt
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.stage == "writing":
            raise KeyboardInterrupt
        self.say(NOTHING)
        os._exit(STATUS)


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Interruption]:
    """Let an :class:`Interruption` handle Ctrl-C, unless the process was told to ignore it."""
    interruption, before = Interruption(say), signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interruption)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def settled() -> Iterator[Callable[[], None]]:
    """Give a function to call when files are whole: from then on Ctrl-C is not heard."""
    before = signal.getsignal(signal.SIGINT)

    def settle() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    try:
        yield settle
    finally:
        signal.signal(signal.SIGINT, before)
