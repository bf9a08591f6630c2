"""RunService: runs as a site sees them. Each method is one service call."""

from __future__ import annotations

import asyncio

from coordinator.gateway.admission import calling_site
from coordinator.gateway.interceptors import Context
from coordinator.services.approve_run import approve_run, withdraw_approval
from coordinator.services.list_runs_for_site import SiteRun, get_roster, get_run_for_site, list_pending_runs
from coordinator.services.report_dataset_withdrawn import report_dataset_withdrawn
from coordinator.services.resources import Resources
from fl_protocol.wire.convert import run_id_from_proto, signed_from_proto
from fl_protocol.wire.v1 import run_pb2, run_pb2_grpc


class RunServicer(run_pb2_grpc.RunServiceServicer):
    """Translates messages into service calls."""

    def __init__(self, resources: Resources) -> None:
        """Take what the services work with."""
        self._resources = resources

    async def ListPending(  # noqa: N802 # the method's name in the proto
        self, request: run_pb2.ListPendingRequest, context: Context
    ) -> run_pb2.ListPendingResponse:
        """The open runs that wait for this site's word."""
        del request, context
        runs = await asyncio.to_thread(list_pending_runs, self._resources, site_id=calling_site())
        return run_pb2.ListPendingResponse(runs=[_summary(run) for run in runs])

    async def GetRun(  # noqa: N802 # the method's name in the proto
        self, request: run_pb2.GetRunRequest, context: Context
    ) -> run_pb2.GetRunResponse:
        """A run's documents, as exact bytes."""
        del context
        detail = await asyncio.to_thread(
            get_run_for_site, self._resources, site_id=calling_site(), run_id=run_id_from_proto(request.run_id)
        )
        return run_pb2.GetRunResponse(
            run=_summary(detail.run),
            run_spec_json=detail.run_spec_json,
            adapter_layout_json=detail.adapter_layout_json,
            initial_state_blob_sha256=detail.initial_state_blob_sha256,
        )

    async def SubmitApproval(  # noqa: N802 # the method's name in the proto
        self, request: run_pb2.SubmitApprovalRequest, context: Context
    ) -> run_pb2.SubmitApprovalResponse:
        """Record a site's signed yes or no."""
        del context
        await asyncio.to_thread(
            approve_run,
            self._resources,
            site_id=calling_site(),
            run_id=run_id_from_proto(request.run_id),
            statement=signed_from_proto(request.statement),
        )
        return run_pb2.SubmitApprovalResponse()

    async def Withdraw(  # noqa: N802 # the method's name in the proto
        self, request: run_pb2.WithdrawRequest, context: Context
    ) -> run_pb2.WithdrawResponse:
        """Record that a site takes its approval back."""
        del context
        await asyncio.to_thread(
            withdraw_approval,
            self._resources,
            site_id=calling_site(),
            run_id=run_id_from_proto(request.run_id),
            statement=signed_from_proto(request.statement),
        )
        return run_pb2.WithdrawResponse()

    async def GetRoster(  # noqa: N802 # the method's name in the proto
        self, request: run_pb2.GetRosterRequest, context: Context
    ) -> run_pb2.GetRosterResponse:
        """The cohort of a run."""
        del context
        members = await asyncio.to_thread(
            get_roster, self._resources, site_id=calling_site(), run_id=run_id_from_proto(request.run_id)
        )
        return run_pb2.GetRosterResponse(
            sites=[
                run_pb2.RosterEntry(
                    site_id=member.site_id,
                    signing_key_sha256=member.signing_key_sha256,
                    approved=member.is_approved,
                    revoked=member.is_revoked,
                )
                for member in members
            ]
        )

    async def ReportDatasetWithdrawn(  # noqa: N802 # the method's name in the proto
        self, request: run_pb2.ReportDatasetWithdrawnRequest, context: Context
    ) -> run_pb2.ReportDatasetWithdrawnResponse:
        """Record that a site took a dataset out of use."""
        del context
        await asyncio.to_thread(
            report_dataset_withdrawn,
            self._resources,
            site_id=calling_site(),
            statement=signed_from_proto(request.statement),
        )
        return run_pb2.ReportDatasetWithdrawnResponse()


def _summary(run: SiteRun) -> run_pb2.RunSummary:
    return run_pb2.RunSummary(run_id=run.run_id, name=run.name, run_spec_sha256=run.run_spec_sha256, state=run.state)
