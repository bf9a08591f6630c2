"""What can be wrong with a study's table, each with what to do about it.

    wardround.errors.CommandError
    └── StudyTableError
        ├── TableUnreadableError    the document is none of ours
        ├── TableBusyError          another command is filling it
        ├── SettingsDifferError     its cells were filled with other settings
        ├── TableElsewhereError     another command fills the study's table
        ├── TableMixedError         a page would mix cells of different settings
        ├── FirstRunNeededError     the base model follows from a run, which is not made here
        ├── MetricUnknownError      a figure that this version does not know
        └── SplitUnusableError      nothing to train on, to choose by or to evaluate on

The exit codes are those of the three programs.
"""

from __future__ import annotations

from typing import ClassVar

from wardround.errors import CommandError, ExitCode


class StudyTableError(CommandError):
    """A study's table cannot be filled or shown."""

    code = "study-table"


class TableUnreadableError(StudyTableError):
    """The document is no study's table, or another study's."""

    code = "study-table-unreadable"
    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class TableBusyError(StudyTableError):
    """Another command is filling the table."""

    code = "study-table-busy"
    exit_code: ClassVar[ExitCode] = ExitCode.UNAVAILABLE


class SettingsDifferError(StudyTableError):
    """The table has cells of other settings than those of now; they are not mixed."""

    code = "study-settings-differ"
    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class TableElsewhereError(StudyTableError):
    """The study's table has a command of its own."""

    code = "study-table-elsewhere"
    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class TableMixedError(StudyTableError):
    """A page cannot show cells of different settings side by side."""

    code = "study-table-mixed"


class FirstRunNeededError(StudyTableError):
    """The study's base model follows from a run of its own, which this command does not make."""

    code = "study-first-run-needed"
    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class MetricUnknownError(StudyTableError):
    """The study is judged by a metric that this version does not have."""

    code = "study-metric-unknown"
    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class SplitUnusableError(StudyTableError):
    """A part of the data has no record."""

    code = "study-split-unusable"
