"""The program ``wardround-site`` that looks after seconds, not minutes, whether HTTP/2 works again.

A composition for tests only: the choice between the transports is the product's own, its one long wait is short.
"""

from __future__ import annotations

import sys

import site_agent.link.transport_choice as choice

choice.TransportChoice.__init__.__kwdefaults__["_return_after_s"] = 3.0
choice.FIRST_RETURN_S = 3.0

if __name__ == "__main__":
    from site_agent.__main__ import main

    sys.exit(main())
