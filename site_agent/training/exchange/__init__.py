"""What a site puts into the secure sum: one file an algorithm's site half, one table of what each adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from fl_protocol.spec.run_spec_parts import AlgorithmName
from site_agent.training.exchange.fedmed import attention_segments
from site_agent.training.local.rule import RoundStart

AddSegments = Callable[[RoundStart, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""From the start of the round and the adapter as it was trained, raw segments beside those that all algorithms have."""

ALGORITHM_SEGMENTS: dict[AlgorithmName, AddSegments] = {
    AlgorithmName.FEDAVG_LORA: lambda _start, _local_adapter: {},
    AlgorithmName.FEDMED: attention_segments,
}
"""Every algorithm that trains an adapter, by the name in ``aggregation.algorithm``."""
