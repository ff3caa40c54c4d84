"""Close a DICOM association cleanly when something unexpected happens on it.

pynetdicom runs each association in its own thread. An unexpected event stops that thread without
any message: an event for which the state machine of PS3.8 section 9.2 has no transition (such as
our abort after the peer's abort, while the connection is being closed), or an invalid message. The
thread also waits without limit for the rest of a partly received message, or for a peer that stops
reading, because no timer of the standard runs during that time. `end_alone` makes both cases close
the association and does not affect any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["end_alone"]

_IDLE = "Sta1"
"""State without a connection (PS3.8 table 9-10)."""

log = logging.getLogger(__name__)


def end_alone(event: Any, ended: Callable[[], None] | None = None) -> None:
    """Handle EVT_CONN_OPEN: close only this association if an error occurs on it.

    The peer may be silent for at most the network timeout, also within a message.

    Parameters
    ----------
    event : pynetdicom.events.Event
    ended : callable, optional
        Called when the connection closes, for whatever reason; possibly more than once.
    """
    provider = event.assoc.dul
    connection = None if provider.socket is None else provider.socket.socket
    if connection is not None:
        connection.settimeout(event.assoc.network_timeout)

    def finish() -> None:
        if connection is not None:
            with suppress(OSError):
                connection.close()  # pynetdicom does not if the peer closed first
        if event.assoc.is_acceptor and event.assoc.requestor.primitive is None:
            # The peer left before it requested anything; the thread still waits for a request.
            provider.to_user_queue.put(None)
        if ended is not None:
            ended()

    machine = provider.state_machine
    act = machine.do_action

    def do_action(name: str) -> None:
        try:
            act(name)
            if machine.current_state == _IDLE:
                finish()
        except Exception as error:
            # Input from a peer can make the state machine raise any exception.
            log.debug("an association ended out of turn (%s)", type(error).__name__)
            if provider.socket is not None:
                provider.socket.close()
            provider.kill_dul()
            event.assoc.is_established = False
            finish()

    machine.do_action = do_action
