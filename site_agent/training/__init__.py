"""The trainer: reads patient records, trains an adapter. It has no key and no network, and speaks through a folder."""

from __future__ import annotations

import os

# Safety: the libraries of Hugging Face read these when they are imported, which is after this line wherever that is.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[_name] = "1"
