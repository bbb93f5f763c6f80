"""Flags by which a server is seen into and operated: metrics, traces, logs, the socket for operators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from serving.telemetry.seeing import SeeingOptions

LOG_FORMATS = ("text", "json")


def define_seeing(values: flags.FlagValues) -> None:
    for name, text in (
        ("metrics_address", "host:port of metrics for Prometheus, over HTTP; port 0 picks a free one"),
        ("admin_socket", "path of the unix socket for exegpt admin, which this user alone may open"),
        ("profile_dir", "where exegpt admin profile puts captures of the devices; without it there are none"),
        ("otlp_endpoint", "URL of a receiver of OpenTelemetry traces over gRPC (needs the extra otlp)"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_enum("log_format", "text", LOG_FORMATS, "of the log on standard error", flag_values=values)
    flags.DEFINE_bool(
        "log_requests", False, "log a line for each request when it has ended, never what it says", flag_values=values
    )


def seeing_options(values: flags.FlagValues, model: str) -> SeeingOptions:
    """What the flags say of the model with this name."""
    from serving.telemetry.seeing import SeeingOptions

    def path(name: str) -> Path | None:
        given: str | None = values[name].value
        return None if given is None else Path(given)

    return SeeingOptions(
        model=model,
        metrics_address=values.metrics_address,
        admin_socket=path("admin_socket"),
        profile_dir=path("profile_dir"),
        otlp_endpoint=values.otlp_endpoint,
    )
