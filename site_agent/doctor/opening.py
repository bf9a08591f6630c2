"""Opens a scene: each thing that takes long is looked at once, when the first check asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache

from site_agent.doctor.scene import Asked, Scene
from site_agent.doctor.trainer_sight import trainer_standing
from site_agent.doctor.walks import walk_all
from site_agent.folder import SiteFolder


def open_scene(
    folder: SiteFolder, *, clock: Callable[[], datetime], environment: Mapping[str, str], asked: Asked
) -> Scene:
    """The scene of a real machine."""
    bare = Scene(folder=folder, clock=clock, environment=environment, asked=asked)
    return replace(
        bare,
        trainer=cache(lambda: trainer_standing(bare.settings(), environment=environment)),
        walks=cache(lambda: walk_all(bare)),
    )
