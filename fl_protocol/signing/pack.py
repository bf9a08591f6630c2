"""Moved to ``fl_protocol.packing``."""

from fl_protocol.packing import *  # noqa: F403 - until every import has moved
