"""The tables of a site's identity that came after the first ones; ``models`` names them with all others."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.db.declarative import Base


class SiteStatementRow(Base):
    """One of a site's last statements: its place, its digest and that of the one before. Two copies fork here."""

    __tablename__ = "site_statements"

    site_id: Mapped[str] = mapped_column(ForeignKey("sites.site_id"), primary_key=True)
    counter: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    previous_sha256: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
