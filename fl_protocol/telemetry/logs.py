"""One form of log lines for a whole process: our own, and those of the libraries beside them.

A shell over ``structlog``, used by the composition roots. Logs go to stderr; what is told there is no evidence.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from fl_protocol.telemetry.trace_ids import round_trace
from fl_protocol.telemetry.tracing import current_ids, is_tracing

_ROUND = frozenset({"run_id", "round_index", "round_attempt"})
_LIBRARIES_LEVEL = logging.WARNING
"""Below this what libraries say is of no use to whoever runs this."""


def configure_logs(level: str, *, is_json: bool) -> None:
    """From now on, everything that is logged in this process is a line on stderr.

    Args:
        level: the least level of our own lines; of the libraries' it is at least a warning.
        is_json: one JSON object a line, for machines; else text for people.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer() if is_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(least, _LIBRARIES_LEVEL), force=True)
    # asyncio and warnings say what they have to say in the same form.
    logging.captureWarnings(capture=True)


def _add_trace(logger: WrappedLogger, name: str, line: EventDict) -> EventDict:
    """The trace that the line belongs to, where tracing is on: of the span that is open, or of the round it names."""
    del logger, name
    if not is_tracing():
        return line
    ids = current_ids()
    if ids is not None:
        line["trace_id"], line["span_id"] = f"{ids.trace_id:032x}", f"{ids.span_id:016x}"
    elif _ROUND.issubset(line):
        of_round = round_trace(str(line["run_id"]), int(line["round_index"]), int(line["round_attempt"]))
        line["trace_id"] = f"{of_round.trace_id:032x}"
    return line
