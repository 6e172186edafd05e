"""Mixture-of-Experts layers, the small model made of them, and its training. torch lives here."""

from moeviz.moe.layer import MoELayer
from moeviz.moe.routers import Router, RoutingTensors, build_router

__all__ = ["MoELayer", "Router", "RoutingTensors", "build_router"]
