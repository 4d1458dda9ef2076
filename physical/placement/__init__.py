"""Where replicas can run: deployment options of a topology, and its devices as policies see them."""

from physical.placement.options import deployment_options, device_views, requests_per_s

__all__ = ["deployment_options", "device_views", "requests_per_s"]
