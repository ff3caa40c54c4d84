"""An association that ends early ends alone.

pynetdicom drives each association by a thread of its own, and that thread dies of an event that the
state machine of PS3.8 section 9.2 has no transition for: for example an abort of ours after the
peer's, while the connection is being closed. What is lost then is a thread, not a program, and
nobody is told. Such an event ends the association here, and no thread.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["end_alone"]

log = logging.getLogger(__name__)


def end_alone(event: Any) -> None:
    """Handle EVT_CONN_OPEN: from now on an event out of turn closes this association alone."""
    provider = event.assoc.dul
    machine = provider.state_machine
    act = machine.do_action

    def do_action(name: str) -> None:
        from pynetdicom.fsm import InvalidEventError

        try:
            act(name)
        except InvalidEventError:
            log.debug("an association ended out of turn")
            if provider.socket is not None:
                provider.socket.close()
            provider.kill_dul()
            event.assoc.is_established = False

    machine.do_action = do_action
