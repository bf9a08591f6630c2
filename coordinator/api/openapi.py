"""The OpenAPI document: every operation with the answers that it really gives, refusals included."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI

from coordinator.api.problems import MEDIA_TYPE
from coordinator.api.schemas import Problem

_PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}
PROBLEMS: dict[int | str, dict[str, object]] = {
    span: {"description": description, "content": {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}}}
    for span, description in (
        ("4XX", "a problem document; `code` says which"),
        ("5XX", "a problem document: try again where it is 503, ask the operator where it is not"),
    )
}
"""What any operation may answer besides."""


def install_openapi(app: FastAPI) -> None:
    """Make the application's document say what its problem handlers do, and not what FastAPI would do without them."""
    made = app.openapi

    def openapi() -> dict[str, object]:
        document = cast("dict[str, object]", made())
        components = cast("dict[str, dict[str, object]]", document["components"])
        schemas = components["schemas"]
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for operations in cast("dict[str, dict[str, dict[str, dict[str, object]]]]", document["paths"]).values():
            for operation in operations.values():
                # FastAPI's own form of a validation error, which nobody ever sees here: 4XX says it all.
                operation["responses"].pop("422", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # the way that FastAPI documents
