"""What admins, study leads and newcomers type: a REST client, the command ``wardround`` and the demonstration.

Knows the coordinator by its REST interface and the site agent by its command line only; imports neither.
"""

from __future__ import annotations

__version__ = "0.1.0"
