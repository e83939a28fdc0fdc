"""SIGTERM: noted while there is something to save, an exception elsewhere."""

import os
import signal
import threading

import pytest

from experiments.shell import interruption
from experiments.shell.errors import Preempted


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_signal_is_only_noted():
    with interruption.deferred() as stop_requested:
        assert not stop_requested()
        terminate()
        assert stop_requested()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_nobody_asked_for_goes_to_the_former_handler():
    with interruption.raised():
        with pytest.raises(Preempted), interruption.deferred():
            terminate()
        # Who raised it has handled it.
        with pytest.raises(Preempted), interruption.deferred():
            terminate()
            raise Preempted
        with pytest.raises(Preempted):
            terminate()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_threads_than_the_first_go_unnoted():
    answers = []

    def work():
        with interruption.deferred() as stop_requested:
            answers.append(stop_requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
