"""The trace store: write with TraceWriter, read with open_trace."""

from moeviz.trace.reader import LayerInfo, Trace, open_trace
from moeviz.trace.writer import TraceWriter

__all__ = ["LayerInfo", "Trace", "TraceWriter", "open_trace"]
