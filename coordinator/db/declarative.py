"""What every table shares: how constraints are named and how Python types are stored."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, BigInteger, LargeBinary, MetaData, String
from sqlalchemy.orm import DeclarativeBase

from coordinator.db.types import UtcDateTime

_NAMING = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """What every table shares: how constraints are named and how Python types are stored."""

    metadata = MetaData(naming_convention=_NAMING)
    type_annotation_map = {  # noqa: RUF012 # SQLAlchemy reads it from the class as a plain dictionary
        datetime: UtcDateTime,
        bytes: LargeBinary,
        str: String,
        int: BigInteger,
        dict[str, object]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        list[object]: JSON(none_as_null=True),
    }
