"""moeviz shows where every token goes inside a Mixture-of-Experts model, live."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeviz.trace.store import open_trace

__all__ = ["open_trace"]


def __getattr__(name: str) -> Any:
    # looked up when it is used, so that importing moeviz loads neither numpy nor zarr
    if name == "open_trace":
        from moeviz.trace.store import open_trace

        return open_trace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
