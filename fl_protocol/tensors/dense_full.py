"""Which layouts of whole models may be summed: those whose every row moves in every step, at every site.

A table with one row a token and nothing else (an embedding) is moved only where its token stands. Tied to the head it
is moved everywhere: the gradient of a softmax, (p - y) h^T, has a part for each row, whichever tokens were seen. So a
layout of the kind ``full`` has exactly one table of tokens, tied, and none of positions. What a row of a token then
still tells, and why a vocabulary of codes that several sites have is its other half: docs/decisions/0047. Pure; knows
no model.
"""

from __future__ import annotations

from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.errors import AdapterLayoutSparseError

TOKEN_TABLE = "embed_tokens"  # noqa: S105 - a module's name
_OTHER_TABLES = frozenset(
    {
        "embed_in",
        "embed_out",
        "embed_positions",
        "embeddings",
        "lm_head",
        "output_layer",
        "position_embeddings",
        "shared",
        "tok_embeddings",
        "token_type_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)
MAX_PARAMETERS = 50_000_000
"""Small models only: what is larger is adapted, not exchanged whole."""


def check_dense_full(layout: AdapterLayout) -> None:
    """Check that a layout is that of a small causal model with one tied table of tokens.

    Raises:
        AdapterLayoutSparseError: names the first tensor that is something else.
    """
    if layout.n_parameters > MAX_PARAMETERS:
        raise AdapterLayoutSparseError("a model of this size is not exchanged whole", tensor="(all)")
    tables = 0
    for tensor in layout.tensors:
        parts = set(tensor.name.split("."))
        if _OTHER_TABLES & parts:
            message = "a table of tokens or positions that is not tied to the head: a row may show one site's tokens"
            raise AdapterLayoutSparseError(message, tensor=tensor.name[:200])
        tables += TOKEN_TABLE in parts
    if tables != 1:
        raise AdapterLayoutSparseError("a whole model has one tied table of tokens", tensor=TOKEN_TABLE)
