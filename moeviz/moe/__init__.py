"""Mixture-of-Experts layers, models and training in torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeviz.moe.layer import MoELayer
    from moeviz.moe.routers import Router, RoutingTensors, build_router

__all__ = ["MoELayer", "Router", "RoutingTensors", "build_router"]

_HOMES = {"MoELayer": "layer", "Router": "routers", "RoutingTensors": "routers", "build_router": "routers"}


def __getattr__(name: str) -> Any:
    # looked up when it is used, so that the names of the tasks cost no import of torch
    if name in _HOMES:
        return getattr(importlib.import_module(f"moeviz.moe.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
