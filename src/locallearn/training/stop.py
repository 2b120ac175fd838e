"""Ctrl-C between steps, so that what is saved is a state that training was really in."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, the first Ctrl-C (or SIGTERM) sets ``requested``; the second ends the process as usual.

    Args:
        signals: the signals that do so.
        patient: ignore all but the first. A launcher passes on what the terminal has sent already.
    """

    def __init__(self, *signals: int, patient: bool = False) -> None:
        self.patient = patient
        self.requested = False
        self._signals = signals or (signal.SIGINT, signal.SIGTERM)
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in self._signals:
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self.patient:
            signal.signal(number, self._previous[number])
