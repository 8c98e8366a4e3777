"""Commands from process to process, over a channel of the broker: end these streams, give up these slots."""

import json
import logging
from collections.abc import Callable, Mapping

from .broker import Broker
from .cursor import Position
from .event import RESERVED_PREFIX, data_of
from .outbox import Delivery
from .reasons import GapReason
from .turn import Batch

logger = logging.getLogger("livepush_asgi")

COMMAND_CHANNEL = RESERVED_PREFIX + "commands"


async def tell(broker: Broker, name: str, **arguments: object) -> None:
    """Publish a command to every process, this one included. Raises BrokerUnavailableError."""
    await broker.publish(COMMAND_CHANNEL, json.dumps({"command": name, **arguments}))


class CommandListener:
    """A listener of the hub that carries out commands. One that cannot be read is logged, not raised."""

    def __init__(self, handlers: Mapping[str, Callable[[dict[str, object]], None]]) -> None:
        self._handlers = handlers

    several = False

    def receive(self, batch: Batch, /) -> None:
        """Carry out commands."""
        for delivery in batch.deliveries:
            self._carry_out(delivery)

    def _carry_out(self, delivery: Delivery) -> None:
        try:
            arguments = json.loads(data_of(delivery.block))
            self._handlers[arguments.pop("command")](arguments)
        except Exception:
            logger.exception("a command on %r cannot be carried out", COMMAND_CHANNEL)

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Commands may have been lost: whoever sent one then was told that the broker was away."""

    def subscribed(self, channel: str, /) -> None:
        """Nothing waits for this."""
