"""The program ``wardround-site`` that looks after seconds, not minutes, whether HTTP/2 works again.

A composition for tests only: the choice between the transports is the product's own, its one long wait is short.
"""

from __future__ import annotations

import functools
import sys

from site_agent.__main__ import main
from site_agent.link import link_channel
from site_agent.link.transport_choice import TransportChoice

RETURN_AFTER_S = 3.0

if __name__ == "__main__":
    link_channel.TransportChoice = functools.partial(TransportChoice, _return_after_s=RETURN_AFTER_S)
    sys.exit(main())
