"""Which published tables speak for which device kind.

Peak figures are the vendor's (dense 16-bit floats); those of A100, H100 and H200 as aiconfigurator's system files give
them, the others' from their vendors' data sheets. They shape the rooflines that ratios are
interpolated over, and stand alone only in estimates, which are marked so.
"""

from __future__ import annotations

import dataclasses

from solver.facts.workload import Floats

# Fractions and launch time of a bandwidth-bound kernel, from aiconfigurator's system files
# (mem_bw_empirical_scaling_factor, mem_empirical_constant_latency).
BANDWIDTH_SHARE = 0.8
LAUNCH_S = 3e-6
# Of an element: every table read here is of 16-bit floats.
TABLE_BYTES = 2


@dataclasses.dataclass(frozen=True)
class TableDevice:
    """One device kind in the tables.

    Attributes:
      kind: as clusters name it.
      flops_per_s, bytes_per_s: peaks.
      system: aiconfigurator's name; "" where it has none.
      vllm, trtllm: versions of its tables there; "" where it has none.
      vidur: vidur's name of the device; "" where it has none.
      single: layout, "gpu" or "tpu", of LLMServingSim's tables, which hold one model on one device; "" where none.
    """

    kind: str
    flops_per_s: float
    bytes_per_s: float
    system: str = ""
    vllm: str = ""
    trtllm: str = ""
    vidur: str = ""
    single: str = ""


DEVICES = {
    device.kind: device
    for device in (
        TableDevice("a100-80g", 312e12, 2.039e12, "a100_sxm", "0.14.0", "1.0.0", "a100"),
        TableDevice("h100-80g", 989e12, 3.35e12, "h100_sxm", "0.14.0", "", "h100"),
        TableDevice("h200-141g", 989e12, 4.8e12, "h200_sxm", "0.14.0", "1.2.0rc5"),
        TableDevice("a40-48g", 149.7e12, 0.696e12, vidur="a40"),
        TableDevice("rtx4090-24g", 165.2e12, 1.008e12, single="gpu"),
        TableDevice("tpu-v6e", 918e12, 1.638e12, single="tpu"),
    )
}


def table_device(kind: str) -> TableDevice:
    """Raises ValueError with one line naming the kinds there are."""
    if kind not in DEVICES:
        raise ValueError(
            f"device_kind: no published table for {kind!r}; there are some for {', '.join(DEVICES)}; "
            "on other devices measure with exegpt profile --model=DIR"
        )
    return DEVICES[kind]


def streaming_s(device: TableDevice, size_bytes: Floats) -> Floats:
    """Estimated time of one kernel that only moves these bytes."""
    return LAUNCH_S + size_bytes / (BANDWIDTH_SHARE * device.bytes_per_s)
