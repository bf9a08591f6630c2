"""What can be wrong with named tensors.

TensorsError
├── AdapterLayoutInvalidError       the document of a layout
├── AdapterLayoutSparseError        a layout whose sums would show a row of one site
├── AdapterTensorError              a name, shape or dtype that is not the layout's
├── SafetensorsInvalidError         bytes that are no safetensors file, or tensors that cannot be one
└── ModelDigestError                entries, configuration or tokenizer from which no digest can be taken
"""

from __future__ import annotations

from fl_protocol.errors import ProtocolError


class TensorsError(ProtocolError):
    """Named tensors are not what they should be."""

    code = "tensors-error"


class AdapterLayoutInvalidError(TensorsError):
    """An adapter layout, or the document of one, is not well formed."""

    code = "adapter-layout-invalid"


class AdapterLayoutSparseError(TensorsError):
    """An adapter layout has a tensor that is no half of a low-rank pair on a linear module."""

    code = "adapter-layout-sparse"


class AdapterTensorError(TensorsError):
    """A tensor's name, shape or dtype is not the one in the adapter layout."""

    code = "adapter-tensor-invalid"


class SafetensorsInvalidError(TensorsError):
    """Bytes are no safetensors file, or tensors cannot be written as one."""

    code = "safetensors-invalid"


class ModelDigestError(TensorsError):
    """A model's entries or configuration cannot be identified by a digest."""

    code = "model-digest-invalid"
