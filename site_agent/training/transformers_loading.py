"""Runs transformers' loaders on a folder: what they cannot load, or would fill up by themselves, is a typed error.

Knows neither tasks nor adapters. The loaders' own errors say nothing of data, but their type is enough.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from transformers.utils import logging as transformers_logging

from site_agent.training.errors import BaseModelInvalidError
from site_agent.training.fitting import is_out_of_memory

Loaded = TypeVar("Loaded")


def load_or_explain(load: Callable[[], Loaded]) -> Loaded:
    """Run one of the loaders.

    Raises:
        BaseModelInvalidError: it cannot load.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        message = "the libraries of this trainer cannot load the base model"
        raise BaseModelInvalidError(message, reason=type(error).__name__) from error


def load_whole(load: Callable[[], tuple[Loaded, Mapping[str, Any]]]) -> Loaded:
    """Run a loader of weights that also says what it loaded (``output_loading_info``).

    A weight that the files lack is drawn at random by transformers, with a warning, and would be another at each site.

    Raises:
        BaseModelInvalidError: it cannot load, or the files do not hold every weight of the model.
    """
    model, told = load_or_explain(load)
    missing = sorted(told["missing_keys"])
    if missing:
        message = "the files of the base model do not hold every weight that its configuration asks for"
        raise BaseModelInvalidError(message, missing=len(missing), first=missing[0])
    return model
