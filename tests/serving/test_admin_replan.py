"""An operator asks a server on the real engine for another plan while it answers: the plan changes, the answers do not,
and whoever looks on is told."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import grpc
import pytest

from serving.load import LoadRequest, LoadResult, run_load
from serving.proto.exegpt.v1 import admin_pb2 as pb
from serving.proto.exegpt.v1.admin_pb2_grpc import AdminStub
from solver.plan.plan import from_json
from tests.serving.servers import server_process
from tests.serving.telemetry.scraped import families, until, value
from tests.serving.test_planned import make_plan

BOUND_S = 5.0


@pytest.fixture(scope="module")
def planned(numbers_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plan(numbers_model, tmp_path_factory.mktemp("planned"), (range(4, 20, 3), range(1, 16, 3)), 9 * 2**19)


def requests(count: int) -> list[LoadRequest]:
    """Greedy and seeded ones of a hundred kinds, in turns."""
    return [
        LoadRequest(
            [5 + n % 10] * (4 + n % 13),
            {"max_tokens": 1 + n % 15, "ignore_eos": True, "temperature": 1.0 if n % 2 else 0.0, "seed": n % 100},
        )
        for n in (k % 100 for k in range(count))
    ]


def bound_of(reply: pb.GetPlanResponse) -> float | None:
    bounds = from_json(reply.plan).bounds
    return None if bounds is None else bounds.latency_s


def test_a_plan_that_was_asked_for_takes_over_under_load(numbers_model: Path, planned: Path, tmp_path: Path) -> None:
    socket, folder = tmp_path / "admin", planned.parent
    flags = [f"--plan={planned}", "--replan=auto", f"--admin_socket={socket}", "--metrics_address=127.0.0.1:0"]
    flags += [f"--{name}={folder / f'{name}.json'}" for name in ("cluster", "profile")]
    results: list[LoadResult] = []
    with server_process(numbers_model, *flags) as server, grpc.insecure_channel(f"unix:{socket}") as channel:
        admin = AdminStub(channel)
        assert bound_of(admin.GetPlan(pb.GetPlanRequest())) != BOUND_S
        enough = threading.Event()

        def ask() -> None:
            while not enough.is_set():
                results.extend(run_load(server.address, requests(100)))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            until(lambda: len(results) >= 100)
            admin.Replan(pb.ReplanRequest(latency_bound_s=BOUND_S))
            # Another one may come before it, since nothing here is as fast as its profile says.
            until(lambda: bound_of(admin.GetPlan(pb.GetPlanRequest())) == BOUND_S, timeout_s=180)
            since = len(results)
            until(lambda: len(results) >= since + 200)
        finally:
            enough.set()
            asking.join()
        after = from_json(admin.GetPlan(pb.GetPlanRequest()).plan)
        found = value(families(server.address_of("metrics")), "exegpt_latency_bound_seconds")
        decisions = [json.loads(each)["event"] for each in admin.GetStats(pb.GetStatsRequest()).decisions]
        server.terminate()
        status, _, errors = server.finish()
    assert status == 0, errors
    assert after.bounds is not None
    assert (after.bounds.latency_s, found) == (BOUND_S, BOUND_S)
    assert decisions.index("ask") < decisions.index("planned") < decisions.index("swap")
    # Nobody's answer was lost, or another one because the schedule changed beneath it.
    assert [result.error for result in results if result.error] == []
    kinds = [result.token_ids for result in results[:100]]
    assert all(result.token_ids == kinds[number % 100] for number, result in enumerate(results))
