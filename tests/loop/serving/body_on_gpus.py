"""A server's body on four GPUs of the fake driver library, one lost, one throttled. Runs in a process of its own:

python -m tests.loop.serving.body_on_gpus OUT      # one JSON object: what was seen
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from loop.compose.serving_body import Body, Load
from loop.compose.serving_config import load_serving_config
from loop.compose.serving_world import build_serving_world
from loop.contracts import DeviceView
from physical.placement import device_views
from tests.physical.telemetry import fake

PATIENCE_S = 120.0


def main(out: Path) -> None:
    """Watch until telemetry shows both."""
    gpus = fake.Machine(Path(os.environ["FAKE_NVML_STATE"]))
    for slot in range(4):
        gpus.plug(slot, max_sm_mhz=1000, sm_mhz=1000)
    config = load_serving_config(None, {"engine": "torch", "cluster": "virtual-4"})
    world = build_serving_world(config, out)
    seen: list[tuple[DeviceView, ...]] = []
    told: list[str] = []
    nominal = device_views(world.world.topology)
    body = Body(config.telemetry, world, nominal, slo_wait_s=1.0, see=seen.append, tell=told.append)
    body.start()
    try:
        until_s = time.monotonic() + PATIENCE_S
        harmed = False
        while time.monotonic() < until_s:
            body.look(lambda: Load(0, 0, 0))
            if not harmed and body.in_words().count("gpu") == 4:
                harmed = True
                gpus.gpu(1).error = fake.GPU_IS_LOST
                gpus.gpu(2).sm_mhz, gpus.gpu(2).throttle = 500, fake.HW_THERMAL
            latest = {view.id: view for view in seen[-1]} if seen else {}
            if latest and not latest["virtual-0/gpu1"].available and latest["virtual-0/gpu2"].speed == 0.5:
                break
            time.sleep(0.05)
        metrics = [(m.name, dict(m.labels), m.value) for m in body.metrics()]
        window = body.window(0.0)
        devices = {view.id: [view.available, view.speed] for view in seen[-1]}
        found = {"devices": devices, "told": told, "metrics": metrics, "words": body.in_words()}
        sys.stdout.write(json.dumps(found | {"window": asdict(window)}))
    finally:
        body.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
