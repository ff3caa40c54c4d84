"""An association that ends early ends alone.

pynetdicom drives each association by a thread of its own, and that thread dies of what it does not
expect: an event that the state machine of PS3.8 section 9.2 has no transition for, such as an abort
of ours after the peer's while the connection is being closed, or a message that is none. What is
lost then is a thread, not a program, and nobody is told. And it waits for ever for the rest of a
message whose beginning has come, or for a peer that stops reading: no timer of the standard's can
go off meanwhile. Either ends the association here, and no thread.
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
    """Handle EVT_CONN_OPEN: from now on what goes wrong closes this association alone.

    The peer may be silent for as long as the network timeout, also within a message.

    Parameters
    ----------
    event : pynetdicom.events.Event
    ended : callable, optional
        Called when the connection is closed, whichever way it ended; maybe more than once.
    """
    provider = event.assoc.dul
    connection = None if provider.socket is None else provider.socket.socket
    if connection is not None:
        connection.settimeout(event.assoc.network_timeout)

    def finish() -> None:
        if connection is not None:
            with suppress(OSError):
                connection.close()  # pynetdicom does not where the peer was faster
        if event.assoc.is_acceptor and event.assoc.requestor.primitive is None:
            # The peer has gone before it asked for anything, and its thread waits for a request.
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
            # What a peer sends can make the machine raise anything at all.
            log.debug("an association ended out of turn (%s)", type(error).__name__)
            if provider.socket is not None:
                provider.socket.close()
            provider.kill_dul()
            event.assoc.is_established = False
            finish()

    machine.do_action = do_action
