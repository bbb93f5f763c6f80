"""Five times what the engine can answer, for a few seconds: what is answered in time stays, the rest hears at once.

The figures of the issue are those of tests/benchmarks/overload.py; here a machine that does other things too may halve
them.
"""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import overload
from tests.serving.servers import server_process


def test_overload_keeps_goodput(tiny_model: Path, full: bool) -> None:
    flags = (
        *(f"--max_rows={overload.ROWS}", f"--encode_batch={overload.ENCODE_BATCH}"),
        *(f"--decode_iterations={overload.ITERATIONS}", "--engine=fake", "--fake_step_s=0.008"),
    )
    with server_process(tiny_model, *flags) as server:
        pid = server.process.pid
        peak = overload.measure(server.address, pid, 3.0, 3.0, None)
        over = overload.measure(server.address, pid, 20.0 if full else 6.0, 3.0, 5 * peak.goodput_rps)
    print({name: round(value, 4) for name, (value, _) in overload.verdicts(peak, over).items()})
    assert over.goodput_rps > 0.6 * peak.goodput_rps
    assert over.refused.count > over.admitted
    assert over.late <= 0.1 * over.admitted
    assert over.refused.p50 < 0.5
    assert set(over.reasons) <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
