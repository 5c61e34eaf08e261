"""docs/developers/api.md and the API are the same: resources, methods, fields."""

import json
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast

import msgspec
import pytest
from starlette.routing import Route

from replicator.access import AccessView
from replicator.agent import api
from replicator.agent import routes as resources
from replicator.agent.api_body import ActionBody, Body, Empty
from replicator.agent.calendar_service import CalendarRequest, CalendarView, TargetCalendarRequest
from replicator.agent.connections import ConnectRequest
from replicator.agent.failover.api import MonitorActionBody, RemoveMonitorBody
from replicator.agent.failover.divergence_api import DivergenceBody
from replicator.agent.failover.failback_api import FailbackBody
from replicator.agent.failover.group_scripts import ScriptRequest
from replicator.agent.failover.guard_api import GuardActionBody
from replicator.agent.failover.guards import GuardView
from replicator.agent.failover.monitors import MonitorRequest, MonitorView
from replicator.agent.failover.siblings_api import SiblingBody
from replicator.agent.gate import Gate
from replicator.agent.mounts import MountView
from replicator.agent.protect import ProtectRequest
from replicator.agent.recovery_control import RecoveryView
from replicator.agent.repsets import RepsetView
from replicator.agent.routes.access import LoginBody
from replicator.agent.routes.agent import StopBody
from replicator.agent.routes.connections import MirrorBody, WaitBody
from replicator.agent.routes.mounts import MountBody, OptionsBody, ReloadBody, UnmountBody
from replicator.agent.routes.orphans import OrphansBody, OrphanSettingsBody
from replicator.agent.routes.recovery import ForceBody, PriorityBody, SpeedBody
from replicator.agent.routes.repsets import NameBody, RepsetBody, RuleBody, RulesBody
from replicator.agent.routes.restores import CopiesBody
from replicator.agent.routes.targets import TargetsBody
from replicator.agent.routes.trust import PairBody, PeerBody
from replicator.agent.schedule_service import ScheduleRequest, TargetScheduleRequest
from replicator.agent.service import AgentView, Service
from replicator.agent.targets import TargetView
from replicator.agent.transmissions import (
    ConnectionTransmission,
    TargetRequest,
    TransmissionRequest,
    TransmissionView,
)
from replicator.agent.verify_service import VerifyRequest
from replicator.diagnostics import DiagnosticsReport, LinkEstimate
from replicator.failover.monitor import AddressView, CheckView
from replicator.failover_drills import DrillRequest
from replicator.failovers import MonitorSettings
from replicator.restores import RestoreRequest
from replicator.status import (
    Lag,
    LagSample,
    PathConnection,
    PathOperation,
    PathReport,
    QueueView,
    RunReport,
    ScheduleStatus,
    StageLag,
    StoryEntry,
    VerifyDifference,
    VerifyProgress,
)
from replicator.transmission import TransmissionSettings, TransmissionStatus

TEXT = Path(api.__file__).parents[2].joinpath("docs", "developers", "api.md").read_text()

# What a request may say, and what only its group's beginning speaks of.
BODIES: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("POST", "/v1/login"): LoginBody,
    ("POST", "/v1/agent/stop"): StopBody,
    ("POST", "/v1/mounts"): MountBody,
    ("DELETE", "/v1/mounts"): UnmountBody,
    ("POST", "/v1/mounts/options"): OptionsBody,
    ("POST", "/v1/mounts/reload"): ReloadBody,
    ("POST", "/v1/repsets"): RepsetBody,
    ("PUT", "/v1/repsets/{name}"): RulesBody,
    ("POST", "/v1/repsets/{name}/rules"): RuleBody,
    ("DELETE", "/v1/repsets/{name}/rules"): RuleBody,
    ("POST", "/v1/repsets/{name}/copy"): NameBody,
    ("POST", "/v1/repsets/{name}/rename"): NameBody,
    ("POST", "/v1/connections"): ConnectRequest,
    ("POST", "/v1/connections/{connection}/mirror"): MirrorBody,
    ("POST", "/v1/connections/{connection}/replicate"): ActionBody,
    ("POST", "/v1/connections/{connection}/transmit"): ActionBody,
    ("POST", "/v1/connections/{connection}/target"): ActionBody,
    ("POST", "/v1/connections/{connection}/recovery"): ActionBody,
    ("POST", "/v1/connections/{connection}/force"): ForceBody,
    ("POST", "/v1/recovery"): SpeedBody,
    ("POST", "/v1/repsets/{name}/priority"): PriorityBody,
    ("POST", "/v1/connections/{connection}/transmission"): TransmissionRequest,
    ("POST", "/v1/transmission"): TargetRequest,
    ("POST", "/v1/connections/{connection}/wait"): WaitBody,
    ("POST", "/v1/protect"): ProtectRequest,
    ("POST", "/v1/targets"): TargetsBody,
    ("POST", "/v1/identity"): ActionBody,
    ("POST", "/v1/peers"): PeerBody,
    ("POST", "/v1/pairing"): ActionBody,
    ("POST", "/v1/pair"): PairBody,
    ("POST", "/v1/targets/orphans"): OrphanSettingsBody,
    ("POST", "/v1/connections/{connection}/orphans"): OrphansBody,
    ("POST", "/v1/connections/{connection}/schedule"): ScheduleRequest,
    ("POST", "/v1/connections/{connection}/calendar"): CalendarRequest,
    ("POST", "/v1/schedule"): TargetScheduleRequest,
    ("POST", "/v1/calendar"): TargetCalendarRequest,
    ("POST", "/v1/connections/{connection}/diagnostics"): ActionBody,
    ("POST", "/v1/connections/{connection}/verify"): VerifyRequest,
    ("POST", "/v1/failover/monitors/{name}/scripts/{kind}"): ScriptRequest,
    ("POST", "/v1/failover/monitors/{name}/drills"): DrillRequest,
    ("POST", "/v1/divergence/{bundle}"): DivergenceBody,
    ("POST", "/v1/failover/monitors/{name}/failback"): FailbackBody,
    ("POST", "/v1/failover/monitors/{name}/siblings"): SiblingBody,
    ("POST", "/v1/restores"): RestoreRequest,
    ("POST", "/v1/restores/copies"): CopiesBody,
    ("POST", "/v1/restores/{restore}"): ActionBody,
    ("POST", "/v1/failover/monitors"): MonitorRequest,
    ("POST", "/v1/failover/guards/{guard}"): GuardActionBody,
    ("PUT", "/v1/failover/monitors/{name}"): MonitorRequest,
    ("POST", "/v1/failover/monitors/{name}"): MonitorActionBody,
    ("DELETE", "/v1/failover/monitors/{name}"): RemoveMonitorBody,
}
ANSWERS = {
    "Access": AccessView,
    "Agent": AgentView,
    "Mounts": MountView,
    "Replication sets": RepsetView,
    "Recovery": RecoveryView,
    "Targets": TargetView,
    "Queues": QueueView,
}


def routes() -> set[tuple[str, str]]:
    """(method, path) of everything the application answers, by asking its route table."""
    application = api.application(cast(Service, None), cast(Gate, None))
    found = set()
    for route in application.routes:
        assert isinstance(route, Route)
        cell = dict(zip(route.endpoint.__code__.co_freevars, route.endpoint.__closure__ or (), strict=True))
        found |= {(method, route.path) for method in cell["methods"].cell_contents}
    return found


def path_of(text: str) -> str:
    path = text.split("?")[0].replace("NAME", "{name}").replace("ID", "{connection}")
    path = re.sub(r"^/v1/restores/(\{connection\}|[0-9]+)$", "/v1/restores/{restore}", path)
    path = re.sub(r"^/v1/failover/monitors/[^/{]+", "/v1/failover/monitors/{name}", path)
    path = re.sub(r"^/v1/divergence/[^/{]+", "/v1/divergence/{bundle}", path)
    path = re.sub(r"^/v1/failover/guards/({name}|[^/{]+)", "/v1/failover/guards/{guard}", path)
    path = re.sub(r"^/v1/failover/witness/[^/]+", "/v1/failover/witness/{group}", path)
    path = re.sub(r"^/v1/divergence/[^/{]+", "/v1/divergence/{bundle}", path)
    path = re.sub(r"/scripts/[a-z][a-z-]+", "/scripts/{kind}", path)
    path = re.sub(r"^/v1/repsets/[^/{]+", "/v1/repsets/{name}", path)
    return re.sub(r"^/v1/connections/[^/{]+", "/v1/connections/{connection}", path)


def documented() -> set[tuple[str, str]]:
    headings = [line for line in TEXT.splitlines() if line.startswith("### ")]
    return {
        (method, path_of(path))
        for line in headings
        for method, path in re.findall(r"(GET|POST|PUT|DELETE|PATCH) (/v1[^`\s]*)", line)
    }


def groups() -> dict[str, str]:
    """Text of each part of the document, by its heading."""
    _, *parts = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    return {part.split("\n")[0]: part for part in parts}


def examples() -> list[tuple[str, str, Any]]:
    """(method, path, body) of all calls that the document shows."""
    found = []
    for call in re.findall(r"^\$ api ((?:[^\n]*\\\n|[^\n]*'\{[^']*\}'|[^\n]*))$", TEXT, flags=re.MULTILINE):
        method = re.search(r"-X (\w+)", call)
        url = re.search(r"http://agent(/v1[^\s']*)", call)
        body = re.search(r"-d '(.*)'", call, flags=re.DOTALL)
        assert url is not None, call
        found.append((method[1] if method else "GET", url[1], json.loads(body[1]) if body else None))
    return found


def test_every_resource_is_documented_and_every_documented_one_is_there() -> None:
    assert documented() == routes()


def test_every_request_body_is_known_here() -> None:
    modules = [
        import_module(f"{resources.__name__}.{found.name}") for found in iter_modules(resources.__path__)
    ]
    bodies = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Body) and value not in (Body, Empty)
    }
    assert bodies | {
        CalendarRequest,
        ConnectRequest,
        ProtectRequest,
        ScheduleRequest,
        TargetCalendarRequest,
        TargetScheduleRequest,
        VerifyRequest,
        RestoreRequest,
        TransmissionRequest,
        TargetRequest,
        MonitorRequest,
        MonitorActionBody,
        GuardActionBody,
        RemoveMonitorBody,
        ScriptRequest,
        DivergenceBody,
        FailbackBody,
        DrillRequest,
        DivergenceBody,
        FailbackBody,
        SiblingBody,
    } == set(BODIES.values())
    assert set(BODIES) <= routes()


@pytest.mark.parametrize(("request_", "body"), BODIES.items(), ids=lambda value: str(value))
def test_every_field_is_documented(request_: tuple[str, str], body: type[msgspec.Struct]) -> None:
    (group,) = (text for text in groups().values() if request_ in _headings(text))
    for field in body.__struct_fields__:
        assert re.search(rf"[`\"]{field}[`\"]", group), field


@pytest.mark.parametrize(
    "answer",
    [StoryEntry, Lag, LagSample, StageLag, ScheduleStatus, DiagnosticsReport, LinkEstimate, CalendarView],
)
def test_every_field_of_story_and_meter_is_documented(answer: type[msgspec.Struct]) -> None:
    for field in answer.__struct_fields__:
        assert f'"{field}"' in groups()["Connections"], field


@pytest.mark.parametrize("answer", [MonitorView, AddressView, CheckView, MonitorSettings, GuardView])
def test_every_field_of_monitors_is_documented(answer: type[msgspec.Struct]) -> None:
    for field in answer.__struct_fields__:
        assert re.search(rf"[`\"]{field}[`\"]", groups()["Failover"]), field


@pytest.mark.parametrize("answer", [VerifyProgress, VerifyDifference, RunReport])
def test_every_field_of_verifications_is_documented(answer: type[msgspec.Struct]) -> None:
    for field in answer.__struct_fields__:
        assert f'"{field}"' in groups()["Verification"], field


@pytest.mark.parametrize("answer", [PathReport, PathConnection, PathOperation])
def test_every_field_of_why_is_documented(answer: type[msgspec.Struct]) -> None:
    for field in answer.__struct_fields__:
        assert f'"{field}"' in groups()["Why"], field


@pytest.mark.parametrize(
    "answer", [TransmissionView, ConnectionTransmission, TransmissionSettings, TransmissionStatus]
)
def test_every_field_of_transmission_is_documented(answer: type[msgspec.Struct]) -> None:
    for field in answer.__struct_fields__:
        assert f'"{field}"' in groups()["Transmission"], field


def _headings(group: str) -> set[tuple[str, str]]:
    return {(m, path_of(p)) for m, p in re.findall(r"(GET|POST|PUT|DELETE) (/v1[^`\s]*)`", group)}


@pytest.mark.parametrize(("group", "answer"), ANSWERS.items())
def test_every_field_of_an_answer_is_documented(group: str, answer: type[msgspec.Struct]) -> None:
    for field in answer.__struct_fields__:
        assert f'"{field}"' in groups()[group], field


def test_every_example_is_a_request_that_is_understood() -> None:
    seen = set()
    for method, url, body in examples():
        request = (method, path_of(url))
        assert request in routes()
        if body is not None:
            msgspec.convert(body, BODIES[request], strict=True)  # unknown and missing fields raise
            seen.add(request)
    missing = set(BODIES) - seen
    # Each of these is shown by its twin.
    assert missing == {
        ("POST", "/v1/repsets/{name}/rename"),
        ("POST", "/v1/connections/{connection}/replicate"),
    }
